"""One tunnel: its sockets, its files, its proxy, from reservation to the end."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from signal import Signals

from s2cs.s2ds import procfs
from s2cs.s2ds.backends.base import Backend, Found, Leg, Plan, Reload, View
from s2cs.s2ds.config import LocalConfig
from s2cs.s2ds.contract import Bridge, Change, TunnelEvent, TunnelState, TunnelStatus
from s2cs.s2ds.files import room, write
from s2cs.s2ds.launchers.base import Job, Launcher, Running
from s2cs.s2ds.logs import Negotiated, SessionLog, last_words
from s2cs.s2ds.ports import Listeners
from s2cs.s2ds.record import Record
from s2cs.s2ds.render import Word
from scistream.errors import FailedPrecondition, InvalidArgument, Unavailable
from scistream.x509 import peer_name

_NEXT = "next"  # a configuration that is being judged
_POLL_S = 0.001, 0.02  # between looks at a starting proxy: first, and most


@dataclass(frozen=True, slots=True)
class _Proxy:
    """A process of the tunnel with the files that are its own.

    Each writes a log of its own: HAProxy clears O_APPEND, so two in one file would write over each other.
    """

    process: Running
    log: SessionLog
    handle: Path

    def forget(self) -> None:
        """Remove its files when it has ended."""
        self.clear(self.log, self.handle)

    @staticmethod
    def clear(log: SessionLog, handle: Path) -> None:
        """Remove the files of a process."""
        log.path.unlink(missing_ok=True)
        handle.unlink(missing_ok=True)


def handles(directory: Path) -> list[tuple[int, Path]]:
    """Find the handle files of a tunnel's proxies, the oldest first."""
    found = ((path.stem.removeprefix("proxy-"), path) for path in directory.glob("proxy-*.handle"))
    return sorted((int(number), path) for number, path in found if number.isdigit())


class Tunnel:
    """Carry one side of one session. What is not asked for here happens to its proxy: see `_recover`."""

    def __init__(
        self,
        config: LocalConfig,
        launcher: Launcher,
        record: Record,
        backend: Backend,
        found: Found,
        listeners: Listeners,
        report: Callable[[TunnelEvent], None],
    ) -> None:
        self.spec = spec = record.spec
        self.listeners = listeners
        self.backend = backend
        self.key = record.key
        self._config = config
        self._launcher = launcher
        self._found = found
        self._report = report
        self._directory = config.directory / spec.id
        self._state = TunnelState.RESERVED
        self._reason = ""
        self._restarts = 0
        self._deaths: deque[float] = deque()
        self._proxy: _Proxy | None = None
        self._draining: list[_Proxy] = []
        self._negotiated = Negotiated()
        self._written = 0  # generations of files so far
        self._in_force = 0  # the one that the proxy has
        self._launched = 0
        self._lock = asyncio.Lock()  # one change of the process at a time
        self._work: set[asyncio.Task[None]] = set()  # all that stop() has to interrupt
        self._stopping: asyncio.Task[None] | None = None

    @property
    def status(self) -> TunnelStatus:
        """The tunnel as `list` shows it."""
        if self._proxy is not None and (negotiated := self._proxy.log.last()).version:
            self._negotiated = negotiated
        running = [p.process.pid for p in self._proxies if not p.process.ended]
        return TunnelStatus(
            id=self.spec.id,
            state=self._state,
            backend=self.backend.name,
            backend_version=self._found.version,
            listeners=self.listeners.advertised,
            pids=tuple(pid for leader in running for pid in (leader, *sorted(procfs.children(leader)))),
            restarts=self._restarts,
            reason=self._reason,
            tls_version=self._negotiated.version,
            tls_cipher=self._negotiated.cipher,
        )

    @property
    def _proxies(self) -> list[_Proxy]:
        return [*([self._proxy] if self._proxy else []), *self._draining]

    @property
    def ended(self) -> bool:
        """True when everything is given back."""
        return self._stopping is not None and self._stopping.done()

    async def adopt(self) -> None:
        """Take up what an earlier server left: keep the proxy that lives, start it again if it died."""
        generations = sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdigit())
        config = self._directory / self.backend.config
        self._written = max(generations, default=0)
        self._launched = max((number for number, _ in handles(self._directory)), default=0)
        for generation in generations:
            if config.exists() and config.samefile(self._directory / str(generation) / self.backend.config):
                self._in_force = generation
            else:
                shutil.rmtree(self._directory / str(generation), ignore_errors=True)
        for handle in list(self._directory.glob("check-*.handle")):
            if (check := self._launcher.adopt(handle)) is not None:
                await check.stop(Signals.SIGKILL, 0)
            _Proxy.clear(SessionLog(handle.with_suffix(".log"), self.backend.session_line), handle)
        if not self._in_force:
            return  # it was reserved, and not started
        for proxy in self._left():
            if self._proxy is not None:
                self._draining.append(self._proxy)
                self._proxy.process.signal(self.backend.drain)
            self._proxy = proxy
        for proxy in self._proxies:
            self._begin(self._watch(proxy))
        if self._proxy is None:
            await self._restart(f"{self.backend.name} died while nobody watched it")
        else:
            self._state = TunnelState.RUNNING

    def release_hold(self) -> None:
        """Let go of everything without ending anything: another server will take it up."""
        for task in self._work:
            task.cancel()
        for proxy in self._proxies:
            proxy.process.let_go()
        self.listeners.close()

    def _left(self) -> Iterator[_Proxy]:
        """Find the proxies that live, oldest first, and clear away after those that do not."""
        for _, handle in handles(self._directory):
            process = self._launcher.adopt(handle)
            log = SessionLog(handle.with_suffix(".log"), self.backend.session_line)
            if process is not None:
                yield _Proxy(process, log, handle)
            else:
                _Proxy.clear(log, handle)

    async def _restart(self, reason: str) -> None:
        async with self._lock:
            await self._recover(reason)

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        """Run something that `stop` interrupts."""
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def start(self, bridge: Bridge) -> None:
        """Open the way, once."""
        if self._state is not TunnelState.RESERVED:
            raise FailedPrecondition(f"tunnel {self.spec.id} was started before; it is {self._state}: use update")
        self._check(bridge)
        self._state = TunnelState.STARTING
        await self._interruptible(self._start(bridge))

    async def update(self, bridge: Bridge) -> None:
        """Lead new connections elsewhere; the old ones stay."""
        if self._state is not TunnelState.RUNNING:
            raise FailedPrecondition(f"tunnel {self.spec.id} is {self._state}, not running; update it when it is")
        self._check(bridge)
        await self._interruptible(self._update(bridge))

    async def stop(self) -> None:
        """End everything and give it back. Goes on to its end whoever stops waiting for it."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._end())
        await asyncio.shield(self._stopping)

    def _check(self, bridge: Bridge) -> None:
        if not bridge.targets:
            raise InvalidArgument(f"tunnel {self.spec.id} was given no target; name at least one HOST:PORT")
        for target in bridge.targets:
            if target.ip is None:
                raise InvalidArgument(f"target {target} is a name; resolve it to an IP address first")
        spec = self.spec
        bridge.credentials.check(spec.uid, spec.role, self.key.key.public_key(), datetime.now(UTC))

    async def _interruptible(self, work: Awaitable[None]) -> None:
        """Do what `stop` may interrupt; whoever waits then hears of it."""
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        try:
            await task
        except asyncio.CancelledError:
            waiting = asyncio.current_task()
            if self._stopping is None or (waiting is not None and waiting.cancelling()):
                raise
            raise Unavailable(f"tunnel {self.spec.id} was stopped meanwhile; request a new session") from None

    async def _start(self, bridge: Bridge) -> None:
        try:
            async with self._lock:
                self._switch(self._write(bridge))
                self._proxy = await self._launch()
        except BaseException as error:
            self._state = TunnelState.FATAL
            self._reason = str(error) or "its start was given up"
            raise
        self._state = TunnelState.RUNNING

    async def _update(self, bridge: Bridge) -> None:
        async with self._lock:
            if (proxy := self._proxy) is None or (process := proxy.process).ended:
                raise FailedPrecondition(f"tunnel {self.spec.id} is being restarted; update it again in a moment")
            old, new = self._in_force, self._write(bridge)
            try:
                await self._check_files(new)
                self._switch(new)
                if self.backend.reload is Reload.SIGNAL:
                    before, offset = procfs.children(process.pid), proxy.log.size()
                    process.signal(Signals.SIGHUP)
                    await self._until_serving(process, proxy.log, offset, before)
                else:
                    self._proxy = await self._launch()
                    self._draining.append(proxy)
                    process.signal(self.backend.drain)
                    await self._until_released(process)
            except BaseException:
                self._switch(old)
                shutil.rmtree(self._directory / str(new))
                raise
            shutil.rmtree(self._directory / str(old))

    async def _end(self) -> None:
        self._state = TunnelState.STOPPING
        work = list(self._work)
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        await asyncio.gather(*(p.process.stop(self.backend.drain, self._config.grace_s) for p in self._proxies))
        self.listeners.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _launch(self) -> _Proxy:
        """Start the proxy on the sockets, with the files in force; return when it serves, or leave nothing."""
        self.listeners.listen()
        self._launched += 1
        command = self.backend.command(self._found.program, self._directory / self.backend.config)
        proxy = self._run(command, f"proxy-{self._launched}")
        try:
            await self._until_serving(proxy.process, proxy.log)
        except BaseException:
            await _finished(proxy.process.stop(Signals.SIGKILL, 0))
            proxy.forget()
            raise
        self._begin(self._watch(proxy))
        return proxy

    def _run(self, command: tuple[str, ...], name: str) -> _Proxy:
        sockets, log, handle = self.listeners.sockets, Path(f"{name}.log"), Path(f"{name}.handle")
        job = Job(command, self._directory, sockets, self.backend.environment(len(sockets)), log, handle)
        process = self._launcher.launch(job)
        return _Proxy(process, SessionLog(self._directory / log, self.backend.session_line), self._directory / handle)

    async def _until_serving(
        self, process: Running, log: SessionLog, offset: int = 0, before: frozenset[int] | None = None
    ) -> None:
        """Wait until the proxy serves all listeners.

        Raises:
            Unavailable: it died, refused its new configuration, or took too long.
        """
        deadline = time.monotonic() + self._config.start_timeout_s
        pause, longest = _POLL_S
        fault = f"did not serve within {self._config.start_timeout_s:g} s"
        while time.monotonic() < deadline:
            if process.ended:
                fault = process.ended
                break
            said = log.since(offset) if before is not None else ""
            if before is not None and self.backend.refusal.search(said):
                fault = "refused its new configuration"
                break
            if self.backend.serves(View(process.pid, self._directory, self.listeners.inodes, before, said)):
                return
            await process.wait(pause)
            pause = min(pause * 1.2, longest)
        raise Unavailable(f"{self.backend.name} {fault}{last_words(log.since(offset))}")

    async def _until_released(self, process: Running) -> None:
        """Wait until a proxy that drains has closed the listeners: before, it may take a connection yet."""
        deadline = time.monotonic() + self._config.start_timeout_s
        while self.listeners.inodes & procfs.sockets(process.pid) and time.monotonic() < deadline:
            await process.wait(_POLL_S[0])

    async def _check_files(self, generation: int) -> None:
        """Let the proxy itself judge new files, where it has a way to."""
        command = self.backend.check_command(self._found.program, self._stage(generation))
        if command is None:
            return
        check = self._run(command, f"check-{generation}")
        try:
            await check.process.wait(self._config.start_timeout_s)
            if check.process.ended != "exited with status 0":
                raise Unavailable(f"{self.backend.name} refuses the new configuration{last_words(check.log.since())}")
        finally:
            await _finished(check.process.stop(Signals.SIGKILL, 0))
            check.forget()

    async def _watch(self, proxy: _Proxy) -> None:
        """Wait for a proxy's end, and mend it unless it was drained."""
        await proxy.process.wait()
        await proxy.process.stop(Signals.SIGKILL, 0)  # the last of its group have let go of the sockets then
        async with self._lock:
            if proxy in self._draining:
                self._draining.remove(proxy)
                proxy.forget()
            elif proxy is self._proxy:
                reason = f"{self.backend.name} {proxy.process.ended}{last_words(proxy.log.since())}"
                proxy.forget()
                await self._recover(reason)

    async def _recover(self, reason: str) -> None:
        """Start the proxy again on the same sockets; connections wait in their backlog meanwhile."""
        config = self._config
        while True:
            now = time.monotonic()
            self._deaths.append(now)
            while now - self._deaths[0] > config.restart_window_s:
                self._deaths.popleft()
            self._reason = reason
            if len(self._deaths) > config.max_restarts:
                break
            self._state = TunnelState.BACKOFF
            self._report(TunnelEvent(self.spec.id, Change.EXITED, self._reason))
            await asyncio.sleep(min(config.backoff_s * 2 ** (len(self._deaths) - 1), config.backoff_max_s))
            self._restarts += 1
            try:
                self._proxy = await self._launch()
            except Unavailable as error:
                reason = str(error)
                continue
            self._state = TunnelState.RUNNING
            self._report(TunnelEvent(self.spec.id, Change.RUNNING))
            return
        self._state = TunnelState.FATAL
        self.listeners.close()  # to refuse connections is kinder than to let them wait for nobody
        self._report(TunnelEvent(self.spec.id, Change.FATAL, self._reason))

    def _write(self, bridge: Bridge) -> int:
        """Write a generation of files beside the one in force, in a directory of its own."""
        self._written += 1
        directory = self._directory / str(self._written)
        credentials = bridge.credentials
        config = self.backend.configuration(self._plan(bridge), self._found)
        with room(directory):
            directory.mkdir(mode=0o700)
            write(directory / self.backend.config, config.encode())
            write(directory / "leaf.pem", credentials.certificate.pem + self.key.pem)
            write(directory / "ca.pem", credentials.trusted_pem)
        return self._written

    def _stage(self, generation: int) -> Path:
        """Put a generation's configuration where the proxy finds the files that it names."""
        staged = self._directory / _NEXT
        staged.unlink(missing_ok=True)
        staged.hardlink_to(self._directory / str(generation) / self.backend.config)
        return staged

    def _switch(self, generation: int) -> None:
        """Put a generation in force, at once and whole."""
        self._stage(generation).replace(self._directory / self.backend.config)
        self._in_force = generation

    def _plan(self, bridge: Bridge) -> Plan:
        spec, config, targets = self.spec, self._config, bridge.targets
        return Plan(
            uid=spec.uid,
            role=spec.role,
            legs=tuple(Leg(3 + i, listen, targets[i % len(targets)]) for i, listen in enumerate(self.listeners.bound)),
            peer=Word(peer_name(spec.uid, spec.role.peer)),
            suites=Word(":".join(config.suites)),
            buffer_bytes=config.buffer_bytes,
            rate=-(-spec.rate.bytes_per_s // spec.num_conn),
            workers=min(spec.num_conn, len(os.sched_getaffinity(0))),
            streams=100 + 4 * spec.num_conn,
            directory=self._directory,
            generation=self._written,
        )


async def _finished(work: Awaitable[None]) -> None:
    """Await something to its end even when cancelled meanwhile; the cancellation is passed on after it."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        with suppress(asyncio.CancelledError):
            await task
        raise
