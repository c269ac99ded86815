"""Real gateways as processes, and what they leave behind, looked up in /proc and on the disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from scistream.proto import scistream_pb2 as pb
from scistream.proto.scistream_pb2_grpc import ControlStub
from scistream.wire import grpc
from tests.support.ports import BLOCK, port_blocks
from tests.support.programs import Started, run

_TIDY = {"SCISTREAM_SERVER__ON_SHUTDOWN": "release"}  # a test that ends leaves nothing running
_S2CS = [sys.executable, "-m", "s2cs"]


@dataclass
class GatewayProcess:
    """An `s2cs serve` that runs, or has run."""

    directory: Path
    address: str
    first_port: int
    ports: int
    environ: dict[str, str]
    process: subprocess.Popen[bytes] | Started = field(init=False)
    wrapper: list[str] = field(default_factory=list)  # a command that runs another one
    _tunnels: Path = Path("/nonexistent")

    @property
    def ca(self) -> bytes:
        """The CA that its certificate is from."""
        return (self.directory / "certs" / "ca.crt").read_bytes()

    @property
    def token(self) -> str:
        """The admin's token."""
        return (self.directory / "token").read_text().strip()

    @property
    def config(self) -> Path:
        """Its settings."""
        return self.directory / "s2cs.toml"

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self.directory / "serve.log").read_text()

    def add_user(self, name: str, *options: str) -> str:
        """Add a user; the token."""
        added = run("s2cs", "user", "add", name, *options, "--config", self.config)
        added.check_returncode()
        return added.stdout.strip()

    def configure(self, more: str) -> None:
        """Add settings while it runs."""
        self.config.write_text(f"{self.config.read_text()}\n{more}")
        run("s2cs", "reload", "--config", self.config).check_returncode()

    @contextmanager
    def client(self, token: str | None = None) -> Iterator[Client]:
        """Speak the protocol with a token; None is the admin's, empty is none."""
        with grpc.secure_channel(self.address, grpc.ssl_channel_credentials(self.ca)) as channel:
            yield Client(channel, self.token if token is None else token)

    @property
    def tunnels(self) -> Path:
        """Where its tunnels' directories are, or were: a server that has nothing left removes the place."""
        if (link := self.directory / "state" / "tunnels").exists():
            self._tunnels = link.resolve()
        return self._tunnels

    def proxies(self) -> list[psutil.Process]:
        """Processes that run in one of its tunnels' directories or descend from it."""
        tunnels = str(self.tunnels)
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != self.process.pid and (
                    process.cwd().startswith(tunnels) or process.ppid() == self.process.pid
                ):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def listening(self) -> list[int]:
        """Ports of its range that somebody listens on or holds bound in this process tree."""
        ports = range(self.first_port + 1, self.first_port + self.ports)
        bound = {"LISTEN", psutil.CONN_NONE}  # of TCP, and of UDP
        found = psutil.net_connections("inet")
        return sorted({c.laddr.port for c in found if c.laddr.port in ports and c.status in bound})

    def leftovers(self) -> dict[str, object]:
        """Processes, ports and files of sessions; empty when nothing is left."""
        tunnels = self.tunnels
        found: dict[str, object] = {
            "processes": [(p.pid, p.cmdline()) for p in self.proxies()],
            "ports": self.listening(),
            "files": [str(path) for path in tunnels.rglob("*") if path.name != "lock"],
        }
        return {what: things for what, things in found.items() if things}

    def clear(self) -> None:
        """Take away what one leaves that was killed: its proxies live on, and memory keeps keys for the next server."""
        place = self.tunnels
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if Path(process.cwd()).is_relative_to(place):
                    process.kill()
        shutil.rmtree(place, ignore_errors=True)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        arguments = ["serve", "--config", str(self.config)]
        environ = {**_TIDY, **self.environ}
        with (self.directory / "serve.log").open("ab") as log, Path(os.devnull).open("r+b", buffering=0) as null:
            if self.wrapper:
                command = [*self.wrapper, *_S2CS, *arguments]
                self.process = subprocess.Popen(command, stdin=null, stdout=null, stderr=log, env=os.environ | environ)
            else:
                self.process = Started(["s2cs", *arguments], environ, [null.fileno(), null.fileno(), log.fileno()])
        _wait_until_serving(self)
        assert self.tunnels.is_dir() or "SCISTREAM_SERVER__RUNTIME_DIR" in self.environ

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(30)


class Client:
    """A bare client, for what a well-behaved one would not send."""

    def __init__(self, channel: grpc.Channel, token: str) -> None:
        self.stub = ControlStub(channel)
        self.token = token

    def __getattr__(self, method: str) -> object:
        def call(request: object, timeout: float = 30, token: str | None = None) -> object:
            bearer = self.token if token is None else token
            metadata = [("authorization", f"Bearer {bearer}")] if bearer else []
            return getattr(self.stub, method)(request, timeout=timeout, metadata=metadata)

        return call


@contextmanager
def gateway(
    directory: Path, *options: str, blocks: int = 1, wrapper: tuple[str, ...] = (), **environ: str
) -> Iterator[GatewayProcess]:
    """Run a gateway on loopback; options are those of `s2cs init`, environ overrides settings.

    It is forked, as `programs` says, but for one with a wrapper, a command that runs another one.
    """
    with port_blocks(blocks) as first:
        ports = ["--port", str(first), "--port-range", f"{first + 1}-{first + blocks * BLOCK - 1}"]
        arguments = ["init", str(directory), *ports, "--metrics-port", "0", *options]
        if wrapper:
            subprocess.run([*wrapper, *_S2CS, *arguments], check=True, capture_output=True)
        else:
            run("s2cs", *arguments).check_returncode()
        lan = options[options.index("--lan") + 1] if "--lan" in options else "127.0.0.1"
        address = f"[{lan}]:{first}" if ":" in lan else f"{lan}:{first}"
        running = GatewayProcess(directory, address, first, blocks * BLOCK, environ, list(wrapper))
        try:
            with _served(running):
                yield running
        finally:
            running.clear()


@contextmanager
def restarted(stopped: GatewayProcess) -> Iterator[GatewayProcess]:
    """Run a stopped gateway again; it leaves nothing behind this time."""
    with _served(replace(stopped, environ={})) as running:
        yield running


@contextmanager
def _served(running: GatewayProcess) -> Iterator[GatewayProcess]:
    try:
        running.start()
        yield running
    finally:
        running.stop()


def _wait_until_serving(running: GatewayProcess) -> None:
    with running.client() as client:
        deadline = time.monotonic() + 30
        while True:
            try:
                client.describe(pb.DescribeRequest(), timeout=1)
                return
            except grpc.RpcError:
                if running.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the gateway does not serve:\n{running.log}") from None
                time.sleep(0.05)
