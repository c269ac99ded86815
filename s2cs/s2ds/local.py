"""The data server in S2CS's own process: proxies of this node on inherited sockets."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from signal import Signals

from s2cs.background import Background
from s2cs.s2ds.backends import BACKENDS
from s2cs.s2ds.backends.base import Backend, Found
from s2cs.s2ds.config import Interface, LocalConfig
from s2cs.s2ds.confinement import Confinement, choose
from s2cs.s2ds.contract import (
    NO_UDP_AT_ONE_PORT,
    BackendInfo,
    Bridge,
    LegCheck,
    Printed,
    Reservation,
    Traffic,
    TunnelSpec,
    TunnelStatus,
)
from s2cs.s2ds.counting import Counting
from s2cs.s2ds.events import Events, Watch
from s2cs.s2ds.files import room
from s2cs.s2ds.generations import entrust
from s2cs.s2ds.launchers import LAUNCHERS
from s2cs.s2ds.logs import KEPT_LINES
from s2cs.s2ds.place import hold
from s2cs.s2ds.ports import Listeners, too_few
from s2cs.s2ds.proxy import handles
from s2cs.s2ds.record import Record
from s2cs.s2ds.router import DIRECTORY, Router
from s2cs.s2ds.runner import Means
from s2cs.s2ds.tunnel import Tunnel
from scistream.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ScistreamError,
)
from scistream.vocabulary import Role, Transport, shown
from scistream.x509 import PrivateKey

log = logging.getLogger(__name__)

__all__ = ["Interface", "LocalConfig", "LocalDataServer"]

_FRESH_S = 0.5  # so old may be what `list` tells ...
_FRESH_MOST = 64  # ... of so many tunnels; of more it tells what was counted last: a look at all takes too long to wait
_TRIALS, _TRIAL_WAIT_S = 3, 3.0  # verifications at once: each holds a thread, and other work needs some, too
_PRINTED_MOST = 256  # tunnels that have ended, whose proxies' words are kept: 25 MB at most
TIDY_S = 10.0  # between looks at the proxies' logs
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class LocalDataServer:
    """Carry sessions with proxies of this node. See `s2cs.s2ds.contract.DataServer` for the verbs.

    Nothing happens before `open`; `close` ends all tunnels.
    """

    def __init__(self, config: LocalConfig) -> None:
        self._config = config
        self._launcher = LAUNCHERS[config.launcher].using(config.containers)
        self._tunnels: dict[str, Tunnel] = {}
        self._events = Events()
        self._counting = Counting()
        self._trials = asyncio.Semaphore(_TRIALS)
        self._printed: dict[str, Printed] = {}  # what the proxies of tunnels printed that have ended
        self._lock: int | None = None
        self._background: list[asyncio.Task[None]] = []
        self._ends = Background()  # of tunnels: they go on whoever stops waiting
        self._confinement: Confinement | None = None
        self._router: Router | None = None  # where there is one WAN port for all

    async def open(self) -> None:
        """Make the directory, and take up the tunnels that an earlier server left there.

        Raises:
            FailedPrecondition: the directory or the launcher cannot be used, another server uses the directory, or
                there is no such user to run proxies as.
        """
        if lacking := await asyncio.to_thread(self._launcher.lacks):
            raise FailedPrecondition(f'[s2ds] launcher "{self._config.launcher}" cannot be used: {lacking}')
        self._confinement = choose(self._config.user)
        if self._confinement.caution:
            log.warning("%s", self._confinement.caution)
        self._lock = hold(self._config.directory, self._confined)
        await asyncio.to_thread(self.backends)  # looks at the proxies once, before anyone waits for it
        left = [path for path in self._config.directory.iterdir() if path.is_dir() and path.name != DIRECTORY]
        await asyncio.gather(*(self._adopt(path) for path in left))
        if self._config.wan_port:
            self._router = Router(Means(self._config, self._launcher, self._confined))
            await self._router.open({tunnel.spec.id: tunnel.ways() for tunnel in self._tunnels.values()})
        elif (self._config.directory / DIRECTORY).exists():
            await self._clear(self._config.directory / DIRECTORY)
        await self._launcher.tidy(self._config.directory)
        self._background = [asyncio.create_task(self._tidy()), asyncio.create_task(self._count())]

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(TIDY_S)
            for tunnel in list(self._tunnels.values()):
                tunnel.bound_logs()
            if self._router is not None:
                await self._router.tidy()
            await self._launcher.tidy(self._config.directory)

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(self._config.count_s)
            await self._counting.look(list(self._tunnels.values()))

    def configure(self, config: LocalConfig) -> None:
        """Take other settings for the tunnels to come; what belongs to this server as a whole stays as it is."""
        names = ("directory", "lan", "wan", "wan_port", "ports", "launcher", "user", "containers")
        fixed = {name: getattr(self._config, name) for name in names}
        self._config = replace(config, **fixed)

    async def close(self) -> None:
        """End all tunnels, and whatever watches them. Closing twice is harmless.

        Raises:
            Unavailable: a tunnel could not be ended; the server that opens the directory next has it.
        """
        ends = await asyncio.gather(*(self.stop(id) for id in list(self._tunnels)), return_exceptions=True)
        if self._router is not None:
            await self._router.close()
        self.let_go()
        for fault in ends:
            if isinstance(fault, BaseException):
                raise fault

    async def leave(self) -> None:
        """Close, and leave all tunnels running."""
        self.let_go()

    def let_go(self) -> None:
        """Close, and leave all tunnels running for the server that opens the directory next."""
        for task in self._background:
            task.cancel()
        self._ends.cancel()
        for tunnel in self._tunnels.values():
            tunnel.release_hold()
        self._tunnels.clear()
        if self._router is not None:
            self._router.let_go()
        self._events.end()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def reserve(self, spec: TunnelSpec) -> Reservation:
        """Bind `num_conn` listeners and make the tunnel's key."""
        if self._lock is None:
            raise FailedPrecondition("this data server is not open; open it first")
        if not _ID.fullmatch(spec.id):
            raise InvalidArgument(f"tunnel id {shown(spec.id)} is not 1 to 128 letters, digits, dots and dashes")
        if spec.id in self._tunnels:
            raise AlreadyExists(f"tunnel {spec.id} exists; stop it first, or use another id")
        if spec.num_conn < 1:
            raise InvalidArgument(f"num_conn {spec.num_conn} is not a number of connections; use 1 or more")
        backend, found = self._choose(spec)
        wan_port = self._config.wan_port if spec.role is Role.PROD else 0
        if wan_port and spec.protocol is Transport.UDP:
            raise FailedPrecondition(NO_UDP_AT_ONE_PORT)
        interface, free = self._config.interface(spec.role, wan_port), self.free_ports(spec.role)
        if spec.num_conn > free:
            raise too_few(spec.num_conn, free, self._config.ports, interface)
        listeners = Listeners.bind(interface, self._config.ports, spec.num_conn, spec.protocol)
        record = Record(spec, backend.name, listeners.ports, PrivateKey.generate(), wan_port)
        directory = self._config.directory / spec.id
        try:
            with room(directory):
                record.save(directory, self._confined)
        except BaseException:
            listeners.close()
            shutil.rmtree(directory, ignore_errors=True)
            raise
        tunnel = self._tunnels[spec.id] = self._tunnel_of(record, backend, found, listeners)
        return tunnel.reservation

    def reserved(self, spec: TunnelSpec) -> Reservation | None:
        """Give the answer to `reserve` once more, where a tunnel of that spec is still as it was then."""
        tunnel = self._tunnels.get(spec.id)
        return tunnel.reservation if tunnel is not None and tunnel.waits_as(spec) else None

    async def start(self, id: str, bridge: Bridge) -> None:
        """Open the way; return when connections are served."""
        tunnel = self._tunnel(id)
        await tunnel.start(bridge)
        await self._lead(tunnel, tunnel.ways(bridge))

    async def update(self, id: str, bridge: Bridge) -> None:
        """Lead new connections elsewhere or with new credentials; running streams go on untouched."""
        tunnel = self._tunnel(id)
        await self._lead(tunnel, {**tunnel.ways(), **tunnel.ways(bridge)})  # nobody is refused meanwhile
        try:
            await tunnel.update(bridge)
        finally:
            await self._lead(tunnel)

    async def stop(self, id: str, cut: bool = False) -> Traffic | None:
        """End the tunnel and give everything back; say what it has moved. Unknown ids are no error."""
        if (tunnel := self._tunnels.get(id)) is None:
            return None
        return await asyncio.shield(self._ends.begin(self._stop(tunnel, cut)))

    async def _stop(self, tunnel: Tunnel, cut: bool) -> Traffic:
        id = tunnel.spec.id
        try:
            return await tunnel.stop(cut)
        finally:
            if tunnel.ended and self._tunnels.pop(id, None) is not None:
                self._printed[id] = tunnel.logs(KEPT_LINES)
                if len(self._printed) > _PRINTED_MOST:
                    self._printed.pop(next(iter(self._printed)))
                await self._lead(tunnel, {})

    async def list(self, *ids: str) -> tuple[TunnelStatus, ...]:
        """All tunnels there are, or those there are of these ids."""
        wanted = [self._tunnels[id] for id in ids or self._tunnels if id in self._tunnels]
        stale = [tunnel for tunnel in wanted if time.monotonic() - tunnel.looked_at > _FRESH_S]
        if stale and len(stale) <= _FRESH_MOST:
            await self._counting.look(stale)
        return tuple(tunnel.status(glance=len(wanted) > _FRESH_MOST) for tunnel in wanted)

    def watch(self) -> Watch:
        """Follow what happens to tunnels, from this call on."""
        return self._events.watch()

    async def logs(self, id: str, lines: int) -> Printed:
        """What a tunnel's proxies printed last."""
        if (tunnel := self._tunnels.get(id)) is not None:
            return tunnel.logs(lines)
        kept = self._printed.get(id, Printed())
        return Printed(kept.count, kept.lines[-lines:] if lines > 0 else ())

    async def verify(self, id: str, bridge: Bridge, passive: bool = False) -> tuple[LegCheck, ...]:
        """Try each leg of a tunnel that is open."""
        tunnel = self._tunnel(id)
        try:
            await asyncio.wait_for(self._trials.acquire(), _TRIAL_WAIT_S)
        except TimeoutError:
            raise ResourceExhausted(
                "other sessions are being verified, and some take long; verify again in a moment"
            ) from None
        trying = asyncio.create_task(tunnel.verify(bridge, passive))
        trying.add_done_callback(lambda _: self._trials.release())  # its thread goes on whoever stops waiting for it
        return await asyncio.shield(trying)

    def backends(self) -> tuple[BackendInfo, ...]:
        """The backends of this node, usable or not."""
        return tuple(
            BackendInfo(backend.name, backend.capabilities, found.version, found.reason, found.caution)
            for backend, found in ((backend, self._find(backend)) for backend in BACKENDS.values())
        )

    def most_ports(self) -> int:
        """How many ports there are for each role."""
        return len(self._config.ports)

    @property
    def wan_port(self) -> int:
        """The one for all sessions that come in; 0: each has ports of its own."""
        return self._config.wan_port

    def free_ports(self, role: Role) -> int:
        """How many listeners could still be reserved for a role, if no other program uses the range."""
        own = {each: self._config.interface(each, self._config.wan_port).bind for each in Role}
        roles = [each for each in Role if own[each] == own[role]]
        held = sum(tunnel.spec.num_conn for tunnel in self._tunnels.values() if tunnel.spec.role in roles)
        return max(0, len(self._config.ports) - held)

    async def _lead(self, tunnel: Tunnel, ways: Mapping[str, int] | None = None) -> None:
        """Let the relay of one WAN port, where there is one, know the names of a tunnel: those that are in force."""
        if self._router is not None:
            await self._router.lead(tunnel.spec.id, tunnel.ways() if ways is None else ways)

    @property
    def _confined(self) -> Confinement:
        assert self._confinement is not None, "open() decides it"
        return self._confinement

    def _tunnel_of(self, record: Record, backend: Backend, found: Found, listeners: Listeners) -> Tunnel:
        means = Means(self._config, self._launcher, self._confined)
        events, counting = self._events, self._counting
        return Tunnel(means, record, backend, found, listeners, events.publish, counting.look_soon)

    def _tunnel(self, id: str) -> Tunnel:
        try:
            return self._tunnels[id]
        except KeyError:
            raise NotFound(f"there is no tunnel {shown(id)}; reserve it first") from None

    def _find(self, backend: Backend) -> Found:
        return self._launcher.find(backend, self._config.programs.get(backend.name), self._confinement)

    def _choose(self, spec: TunnelSpec) -> tuple[Backend, Found]:
        """Take the backend that was named, or the first that can do what is asked."""
        name = spec.backend if spec.backend != "auto" else self._config.backend
        if name != "auto" and name not in BACKENDS:
            raise InvalidArgument(f"backend {shown(name)} is unknown; use auto, {', '.join(BACKENDS)}")
        reasons = []
        for backend in BACKENDS.values() if name == "auto" else (BACKENDS[name],):
            found = self._find(backend)
            reason = found.reason or backend.lacks(spec)
            if not reason:
                return backend, found
            reasons.append(reason)
        raise FailedPrecondition("; ".join(reasons))

    async def _adopt(self, directory: Path) -> None:
        """Take up one tunnel, or end what is left of one that cannot be."""
        try:
            record = Record.load(directory)
            backend = BACKENDS[record.backend]
            holders = self._holders(directory)
            if record.wan_port not in (0, self._config.wan_port):
                raise FailedPrecondition(
                    f"it was reached by WAN port {record.wan_port}, which [network] wan_port is not now; "
                    "its user requests another session"
                )
            interface = self._config.interface(record.spec.role, record.wan_port)
            listeners = Listeners.regain(interface, record.ports, holders, record.spec.protocol)
        except (ScistreamError, KeyError) as error:
            log.warning("%s is cleared away: %s", directory, error)
            await self._clear(directory)
            return
        tunnel = self._tunnel_of(record, backend, self._find(backend), listeners)
        self._tunnels[record.spec.id] = tunnel
        entrust(directory, self._confined)
        await tunnel.adopt()

    def _holders(self, directory: Path) -> tuple[int, ...]:
        """Find the living proxies of a tunnel: their process ids, the newest first."""
        found = []
        for _, handle in reversed(handles(directory)):
            if (process := self._launcher.adopt(handle)) is not None:
                process.let_go()
                found.append(process.pid)
        return tuple(found)

    async def _clear(self, directory: Path) -> None:
        """End the processes that a directory's handles name, and remove it."""
        found = await asyncio.to_thread(lambda: list(directory.glob("*.handle")))
        left = [self._launcher.adopt(handle) for handle in found]
        await asyncio.gather(*(p.stop(Signals.SIGTERM, self._config.grace_s) for p in left if p is not None))
        shutil.rmtree(directory, ignore_errors=True)
