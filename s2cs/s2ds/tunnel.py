"""One tunnel: its sockets, its files, its proxy, from reservation to the end."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from signal import Signals

from s2cs.background import Background
from s2cs.s2ds import procfs
from s2cs.s2ds.backends.base import Backend, Found, Reload
from s2cs.s2ds.contract import (
    NO_PSK_AT_ONE_PORT,
    Bridge,
    Capability,
    Change,
    Leg,
    LegCheck,
    PreSharedKey,
    Printed,
    Reservation,
    Traffic,
    TrustedPeers,
    TunnelEvent,
    TunnelSpec,
    TunnelState,
    TunnelStatus,
)
from s2cs.s2ds.flows import tend_flows
from s2cs.s2ds.logs import last_words
from s2cs.s2ds.meter import Group, Ledger, Live, Look, Meter
from s2cs.s2ds.pacing import pace_opened
from s2cs.s2ds.ports import Listeners
from s2cs.s2ds.proxy import Proxy, until_released, until_serving
from s2cs.s2ds.record import Record
from s2cs.s2ds.runner import Means, Runner
from s2cs.s2ds.trial import Trial
from scistream.errors import FailedPrecondition, ScistreamError, Unavailable
from scistream.vocabulary import Transport
from scistream.x509 import way_name

_LAST_LOOKS_S = 0.2  # between looks at the kernel's counters while a tunnel is stopped


def with_children(leader: int) -> tuple[int, ...]:
    """Give a proxy's processes."""
    return leader, *sorted(procfs.children(leader))


class Tunnel:
    """Carry one side of one session. What is not asked for here happens to its proxy: see `_recover`."""

    def __init__(
        self,
        means: Means,
        record: Record,
        backend: Backend,
        found: Found,
        listeners: Listeners,
        report: Callable[[TunnelEvent], None],
        look: Callable[[Tunnel], Awaitable[None]],
    ) -> None:
        self.spec = record.spec
        self.listeners = listeners
        self.backend = backend
        self._record = record
        self._config = means.config
        self._found = found
        self._report = report
        self._look = look  # lets `measured` know what the kernel counts
        self._directory = means.config.directory / record.spec.id
        self._state = TunnelState.RESERVED
        self._reason = ""
        self._restarts = 0
        self._deaths: deque[float] = deque()
        self._proxy: Proxy | None = None
        self._draining: list[Proxy] = []
        self._ledger = Ledger(self._directory / "traffic.json")
        self._meter = Meter(self._ledger, rates=record.spec.protocol is Transport.TCP)
        self._runner = Runner(means, record, backend, found, listeners, self._ledger)
        self._lock = asyncio.Lock()  # one change of the process at a time
        self._work = Background()  # all that stop() has to interrupt
        self._stopping: asyncio.Task[None] | None = None

    @property
    def reservation(self) -> Reservation:
        """What was reserved."""
        spec = self.spec
        csr = self._record.key.csr(spec.uid, spec.role)
        wan_host = self._config.wan.advertise if spec.protocol is Transport.UDP else ""
        return Reservation(self.backend.name, self.listeners.advertised, csr, wan_host=wan_host)

    def waits_as(self, spec: TunnelSpec) -> bool:
        """Tell whether it was reserved as this asks for, and not started."""
        wanted = replace(spec, backend=self.spec.backend)  # which may have been left to the data server
        same_backend = spec.backend in ("auto", self.backend.name)
        return self._state is TunnelState.RESERVED and self.spec == wanted and same_backend

    def status(self, glance: bool = False) -> TunnelStatus:
        """Give the tunnel as `list` shows it; at a glance, as it was last looked at, and without its workers."""
        if not glance:
            self._read_logs()
        running = [p.process.pid for p in self._proxies if not p.process.ended]
        return TunnelStatus(
            id=self.spec.id,
            state=self._state,
            backend=self.backend.name,
            backend_version=self._found.version,
            listeners=self.listeners.advertised,
            pids=tuple(pid for leader in running for pid in ((leader,) if glance else with_children(leader))),
            restarts=self._restarts,
            reason=self._reason,
            tls_version=self._ledger.tls[0],
            tls_cipher=self._ledger.tls[1],
            traffic=self._traffic,
        )

    def ways(self, bridge: Bridge | None = None) -> dict[str, int]:
        """Say by which names the relay of one WAN port leads here: with a bridge to come, or that in force."""
        files = self._runner.files
        if not self._record.wan_port or self._stopping or not (bridge or files.in_force):
            return {}
        credentials = bridge.credentials if bridge else None
        if isinstance(credentials, (PreSharedKey, TrustedPeers)):
            return {}  # it names no session, and is refused
        anchors = credentials.anchors if credentials else files.anchors()
        numbered = list(enumerate(self.listeners.ports))
        return {way_name(anchor, self.spec.uid, number): port for anchor in anchors for number, port in numbered}

    def look(self) -> Look:
        """Begin a look at the kernel's counters: of these proxies; give `measured` what it says."""
        self._read_logs()
        ports = frozenset(self.listeners.ports)
        udp = self.spec.protocol is Transport.UDP
        groups = [Group(p.process.pid, self.spec.role, ports, udp) for p in self._proxies if not p.process.ended]
        return Look(time.monotonic(), self._ledger.closed, tuple(groups))

    def measured(self, look: Look, live: Mapping[int, Live]) -> None:
        """Take what the kernel says of open connections."""
        self._meter.take(look, live)

    @property
    def looked_at(self) -> float:
        """When the kernel's counters were read last, on the monotonic clock."""
        return self._meter.looked_at

    def logs(self, lines: int) -> Printed:
        """Give what its proxies printed last; once it has ended, too."""
        self._read_logs()
        return self._runner.book.last(lines)

    async def verify(self, bridge: Bridge, passive: bool) -> tuple[LegCheck, ...]:
        """Try each leg, in bounded time."""
        self._refuse_at_the_end()
        leaf, anchors = self._runner.files.credentials
        pids = tuple(pid for p in self._proxies if not p.process.ended for pid in with_children(p.process.pid))
        listeners = tuple(zip(self.listeners.advertised, self.listeners.ports, strict=True))
        trial = Trial(self.spec, listeners, pids, bridge, leaf, anchors, passive)
        checks = await asyncio.to_thread(trial.run)
        self._refuse_at_the_end()  # what was found of a proxy that ends is no fault
        return checks

    def _read_logs(self) -> None:
        for proxy in self._proxies:
            proxy.log.read()

    def bound_logs(self) -> None:
        """Keep the proxies' logs from filling the disk."""
        for proxy in self._proxies:
            proxy.log.bound()
        self._ledger.save()

    @property
    def _proxies(self) -> list[Proxy]:
        return [*([self._proxy] if self._proxy else []), *self._draining]

    @property
    def ended(self) -> bool:
        """True when everything is given back."""
        end = self._stopping
        return end is not None and end.done() and not end.cancelled() and not end.exception()

    async def adopt(self) -> None:
        """Take up what an earlier server left: keep the proxy that lives, start it again if it died."""
        left = await self._runner.regain()
        if not self._runner.files.in_force:
            return  # it was reserved, and not started
        for proxy in left:
            if self._proxy is not None:
                self._draining.append(self._proxy)
                self._proxy.process.signal(self.backend.drain)
            self._proxy = proxy
        for proxy in self._proxies:
            self._attend(proxy)
        if self._proxy is None:
            async with self._lock:
                await self._recover(f"{self.backend.name} died while nobody watched it")
        else:
            self._state = TunnelState.RUNNING

    def release_hold(self) -> None:
        """Let go of everything without ending anything: another server will take it up."""
        self._work.cancel()
        if self._stopping is not None:
            self._stopping.cancel()  # the other server is asked for it
        self._read_logs()
        self._ledger.save()
        for proxy in self._proxies:
            proxy.process.let_go()
        self.listeners.close()

    async def start(self, bridge: Bridge) -> None:
        """Open the way, once."""
        self._refuse_at_the_end()
        if self._state is not TunnelState.RESERVED:
            raise FailedPrecondition(f"tunnel {self.spec.id} was started before; it is {self._state}: use update")
        self._check(bridge)
        self._state = TunnelState.STARTING
        try:
            await self._interruptible(self._start(bridge))
        except BaseException as error:
            if self._state is TunnelState.STARTING:  # it may be done, or being stopped
                self._state = TunnelState.FATAL
                self._reason = str(error) or "its start was given up"
            raise

    async def update(self, bridge: Bridge) -> None:
        """Lead new connections elsewhere; the old ones stay."""
        self._refuse_at_the_end()
        if self._state is not TunnelState.RUNNING:
            raise FailedPrecondition(f"tunnel {self.spec.id} is {self._state}, not running; update it when it is")
        self._check(bridge)
        await self._interruptible(self._update(bridge))

    def _refuse_at_the_end(self) -> None:
        """Tell who comes after `stop` the same as whom it interrupts."""
        if self._stopping is not None:
            raise Unavailable(f"tunnel {self.spec.id} was stopped meanwhile; request a new session")

    def _check(self, bridge: Bridge) -> None:
        """See that a bridge is for this tunnel, and that its proxy can do it."""
        self._record.check(bridge)
        if not isinstance(bridge.credentials, PreSharedKey):
            return
        if Capability.PSK not in self.backend.capabilities:
            raise FailedPrecondition(f"backend {self.backend.name} cannot do pre-shared keys; use stunnel")
        if self._record.wan_port:  # a node's own setting, or one that waits for a restart: nobody would ever get in
            raise FailedPrecondition(NO_PSK_AT_ONE_PORT)

    async def stop(self, cut: bool = False) -> Traffic:
        """End everything and give it back; say what was moved. Goes on to its end whoever stops waiting for it."""
        if self._stopping is None or (self._stopping.done() and not self.ended):
            self._stopping = asyncio.create_task(self._end(cut))
        elif cut:
            for proxy in self._proxies:
                proxy.process.signal(Signals.SIGKILL)
        await asyncio.shield(self._stopping)
        return self._traffic

    @property
    def _traffic(self) -> Traffic:
        traffic = self._meter.traffic
        # Behind the relay the other leg of a connection is loopback, which says nothing of the WAN.
        return replace(traffic, wan=Leg()) if self._record.wan_port else traffic

    async def _interruptible(self, work: Coroutine[None, None, None]) -> None:
        """Do what `stop` may interrupt; whoever waits then hears of it."""
        try:
            await self._work.begin(work)
        except asyncio.CancelledError:
            waiting = asyncio.current_task()
            if waiting is None or not waiting.cancelling():
                self._refuse_at_the_end()
            raise

    async def _start(self, bridge: Bridge) -> None:
        async with self._lock:
            self._runner.files.switch(self._runner.write(bridge))
            self._meter.begin()
            self._proxy = await self._launch()
        self._state = TunnelState.RUNNING

    async def _update(self, bridge: Bridge) -> None:
        async with self._lock:
            if (proxy := self._proxy) is None or (process := proxy.process).ended:
                raise FailedPrecondition(f"tunnel {self.spec.id} is being restarted; update it again in a moment")
            files, inodes, timeout_s = self._runner.files, self.listeners.inodes, self._config.start_timeout_s
            old, new = files.in_force, self._runner.write(bridge)
            if self.spec.protocol is Transport.UDP and files.alike(new):
                files.discard(new)  # to reload would end all flows
                return
            by_signal, told = self.backend.reload is Reload.SIGNAL, False
            try:
                await self._runner.check(new)
                files.switch(new)
                if by_signal:
                    before, offset, told = procfs.children(process.pid), proxy.log.size(), True
                    process.signal(Signals.SIGHUP)
                    await until_serving(proxy, self.backend, inodes, timeout_s, offset, before)
                else:
                    self._proxy = await self._launch()
            except BaseException:
                files.switch(old)
                files.discard(new)
                if told:
                    process.signal(Signals.SIGHUP)  # it may have taken the new ones, but too late
                raise
            self._runner.admit()
            files.settle()
            if not by_signal:
                self._draining.append(proxy)
                process.signal(self.backend.drain)
                await until_released(proxy, inodes, timeout_s)

    async def _end(self, cut: bool) -> None:
        self._state = TunnelState.STOPPING
        self._work.cancel()
        await self._work.ended()
        await self._look(self)
        looking = asyncio.create_task(self._look_to_the_end())
        polite, grace_s = (Signals.SIGKILL, 0.0) if cut else (self.backend.drain, self._config.grace_s)
        try:
            await asyncio.gather(*(p.process.stop(polite, grace_s) for p in self._proxies))
        finally:
            looking.cancel()
        self._read_logs()
        for proxy in self._proxies:
            self._meter.lose(proxy.process.pid)
        self.listeners.close()
        shutil.rmtree(self._directory, ignore_errors=True)
        if self._directory.exists():  # without descriptors a directory cannot be read; it holds the key
            raise Unavailable(f"{self._directory} cannot be removed now; it is tried again")

    async def _look_to_the_end(self) -> None:
        """Count what is still moved while the proxies may end their streams: of those that are killed nobody tells."""
        while True:
            await asyncio.sleep(_LAST_LOOKS_S)
            await self._look(self)

    async def _launch(self) -> Proxy:
        proxy = await self._runner.launch()
        self._attend(proxy)
        return proxy

    def _attend(self, proxy: Proxy) -> None:
        """Keep an eye on a proxy that serves."""
        self._work.begin(self._watch(proxy))
        if self.spec.pace and not self.backend.paces:
            self._work.begin(pace_opened(proxy.process, self.spec.pace))
        if self.spec.protocol is Transport.UDP:
            self._work.begin(tend_flows(proxy))

    async def _watch(self, proxy: Proxy) -> None:
        """Wait for a proxy's end, and mend it unless it was drained."""
        await proxy.process.wait()
        await proxy.process.stop(Signals.SIGKILL, 0)  # the last of its group have let go of the sockets then
        async with self._lock:
            if proxy in self._draining:
                self._draining.remove(proxy)
                proxy.forget()
                self._meter.forget(proxy.process.pid)
            elif proxy is self._proxy:
                reason = f"{self.backend.name} {proxy.process.ended}{last_words(proxy.log.since())}"
                proxy.forget()
                self._meter.lose(proxy.process.pid)
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
            except ScistreamError as error:
                reason = str(error)
                continue
            self._state = TunnelState.RUNNING
            self._report(TunnelEvent(self.spec.id, Change.RUNNING))
            return
        self._state = TunnelState.FATAL
        self.listeners.close()  # to refuse connections is kinder than to let them wait for nobody
        self._report(TunnelEvent(self.spec.id, Change.FATAL, self._reason))
