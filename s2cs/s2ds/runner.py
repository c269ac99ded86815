"""How the proxies of a tunnel are run: on its sockets, with its files in force, known by handles in its directory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

from s2cs.s2ds.backends.base import Backend, Found, Plan
from s2cs.s2ds.buffers import send_buffer
from s2cs.s2ds.config import LocalConfig
from s2cs.s2ds.confinement import Confinement
from s2cs.s2ds.contract import Bridge
from s2cs.s2ds.credentials import credential_files
from s2cs.s2ds.generations import Generations
from s2cs.s2ds.launchers.base import Job, Launcher, Running
from s2cs.s2ds.logs import Book, SessionLog, last_words
from s2cs.s2ds.meter import Ledger
from s2cs.s2ds.ports import Listeners
from s2cs.s2ds.proxy import Proxy, clear, handles, log_of, until_serving
from s2cs.s2ds.record import Record
from scistream.errors import Unavailable
from scistream.vocabulary import Role, Transport


@dataclass(frozen=True, slots=True)
class Means:
    """What a data server runs proxies with."""

    config: LocalConfig
    launcher: Launcher
    confinement: Confinement


class Runner:
    """Run one tunnel's proxies. When they are started, and what becomes of them, is the tunnel's to decide."""

    def __init__(
        self, means: Means, record: Record, backend: Backend, found: Found, listeners: Listeners, ledger: Ledger
    ) -> None:
        self.book = Book()  # what its proxies print
        self.directory = means.config.directory / record.spec.id
        self.files = Generations(self.directory, backend.config, means.confinement)
        self._means = means
        self._record = record
        self._backend = backend
        self._found = found
        self._listeners = listeners
        self._ledger = ledger
        self._launched = 0

    def write(self, bridge: Bridge) -> int:
        """Write a generation of files beside the one in force; give its number."""
        record, means = self._record, self._means
        as_root = means.confinement.as_root
        plan = Plan.of(record.spec, bridge, self._listeners.bound, means.config, self.files.next, as_root)
        configuration = self._backend.configuration(plan, self._found)
        return self.files.write(configuration, credential_files(bridge, record.key))

    async def check(self, generation: int) -> None:
        """Let the proxy itself judge new files, where it has a way to.

        Raises:
            Unavailable: it refuses them.
        """
        command = self._backend.check_command(self._found.program, self.files.stage(generation))
        if command is None:
            return
        check = await self._run(command, f"check-{generation}")
        try:
            await check.process.wait(self._means.config.start_timeout_s)
            if check.process.ended != "exited with status 0":
                raise Unavailable(f"{self._backend.name} refuses the new configuration{last_words(check.log.since())}")
        finally:
            await _finished(check.process.stop(Signals.SIGKILL, 0))
            check.forget()

    def admit(self) -> None:
        """Let UDP in from where the files in force have it: the WAN side from the other gateway alone.

        Raises:
            Unavailable: another program has one of the ports, or the files cannot be read.
        """
        spec = self._record.spec
        if spec.protocol is Transport.UDP:
            self._listeners.receive(self.files.peers() if spec.role is Role.PROD else None)

    async def launch(self) -> Proxy:
        """Start the proxy on the sockets, with the files in force; return when it serves, or leave nothing.

        Raises:
            Unavailable: it does not come up; the message ends with its last words.
        """
        config, spec = self._means.config, self._record.spec
        self.admit()
        to_the_wan = spec.role is Role.PROD and not self._record.wan_port  # data comes from the producer
        self._listeners.listen(spec.pace, send_buffer(config.in_flight) if to_the_wan else 0)
        self._launched += 1
        command = self._backend.command(self._found.program, self.files.config)
        proxy = await self._run(command, f"proxy-{self._launched}")
        try:
            await until_serving(proxy, self._backend, self._listeners.inodes, config.start_timeout_s)
        except BaseException:
            await _finished(proxy.process.stop(Signals.SIGKILL, 0))
            proxy.forget()
            raise
        return proxy

    async def regain(self) -> list[Proxy]:
        """Find what an earlier server left, and clear away what has ended; give the proxies that live, oldest first."""
        means = self._means
        self.files = Generations.regain(self.directory, self._backend.config, means.confinement)
        self._launched = max((number for number, _ in handles(self.directory)), default=0)
        for handle in list(self.directory.glob("check-*.handle")):
            if (check := means.launcher.adopt(handle)) is not None:
                await check.stop(Signals.SIGKILL, 0)
            clear(handle)
        return list(self._left()) if self.files.in_force else []

    def _left(self) -> Iterator[Proxy]:
        for _, handle in handles(self.directory):
            if (process := self._means.launcher.adopt(handle)) is not None:
                proxy = self._proxy_of(process, handle)
                proxy.log.recall()
                yield proxy
            else:
                self._log_of(handle, None).end()
                clear(handle)

    async def _run(self, command: tuple[str, ...], name: str) -> Proxy:
        sockets, handle = self._listeners.sockets, Path(f"{name}.handle")
        environment, confinement = self._backend.environment(len(sockets)), self._means.confinement
        uid, limits = self._record.spec.uid, self._means.config.limits
        logs = len(sockets) if self._backend.log_for_each else 0
        job = Job(command, self.directory, confinement, sockets, environment, log_of(handle), handle, uid, limits, logs)
        return self._proxy_of(await self._means.launcher.launch(job), self.directory / handle)

    def _proxy_of(self, process: Running, handle: Path) -> Proxy:
        return Proxy(process, self._log_of(handle, process), handle)

    def _log_of(self, handle: Path, process: Running | None) -> SessionLog:
        spec, backend = self._record.spec, self._backend
        pass_on = self._means.launcher.passing_on(spec.uid, backend.name, process)
        return SessionLog(log_of(handle), backend, spec.role, self._ledger, self.book, pass_on)


async def _finished(work: Awaitable[None]) -> None:
    """Await something to its end even when cancelled meanwhile; the cancellation is passed on after it."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        with suppress(asyncio.CancelledError):
            await task
        raise
