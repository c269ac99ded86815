"""Calls on one session that meet: each caller hears what became of its own, and nobody is told more than is true.

The data server here is simulated, because a real one cannot be made to be slow or to refuse at will.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from s2cs.auth import Caller
from s2cs.gateway import Gateway
from s2cs.metrics import Metrics
from s2cs.s2ds.contract import (
    BackendInfo,
    Bridge,
    Change,
    LegCheck,
    Printed,
    Reservation,
    Traffic,
    TunnelEvent,
    TunnelSpec,
    TunnelState,
    TunnelStatus,
)
from s2cs.settings import Settings
from s2cs.store import SqliteStore
from s2cs.users import Token, User
from scistream.errors import DeadlineExceeded, FailedPrecondition, NotFound, ScistreamError, Unavailable
from scistream.machine import Request, Session, State
from scistream.vocabulary import Endpoint, Role, Uid
from scistream.x509 import PrivateKey, SessionCA

_ALICE = Caller("alice", "local:1")
_UID = Uid("scan-7")
_GOOD, _OTHER, _BAD = "127.0.0.1:9001", "127.0.0.1:9002", "127.0.0.1:9666"


class _DataServer:
    """Does everything as soon as its gate is open, and refuses to lead to `_BAD`."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.tunnels: dict[str, tuple[Endpoint, ...]] = {}
        self.news: asyncio.Queue[TunnelEvent] = asyncio.Queue()
        self.tried = 0

    async def reserve(self, spec: TunnelSpec) -> Reservation:
        await self.gate.wait()
        self.tunnels[spec.id] = ()
        return Reservation("nginx", (Endpoint("127.0.0.1", 20000),), PrivateKey.generate().csr(spec.uid, spec.role))

    async def start(self, id: str, bridge: Bridge) -> None:
        await self.gate.wait()
        self.tunnels[id] = bridge.targets

    async def update(self, id: str, bridge: Bridge) -> None:
        await self.gate.wait()
        if str(bridge.targets[0]) == _BAD:
            raise Unavailable("the proxy refuses")
        self.tunnels[id] = bridge.targets

    async def stop(self, id: str, cut: bool = False) -> None:
        await asyncio.sleep(0)
        self.tunnels.pop(id, None)

    async def list(self, *ids: str) -> tuple[TunnelStatus, ...]:
        return ()

    async def watch(self) -> AsyncIterator[TunnelEvent]:
        while True:
            yield await self.news.get()

    async def logs(self, id: str, lines: int) -> Printed:
        return Printed()

    async def verify(self, id: str, bridge: Bridge, passive: bool = False) -> tuple[LegCheck, ...]:
        await self.gate.wait()
        self.tried += 1
        return ()

    def backends(self) -> tuple[BackendInfo, ...]:
        return ()

    def most_ports(self) -> int:
        return 1

    def free_ports(self, role: Role) -> int:
        return 1

    @property
    def targets(self) -> list[str]:
        """Where the only tunnel leads."""
        ((target,),) = self.tunnels.values()
        return [str(target)]


class _Facility:
    """A gateway on such a data server, and a user of it."""

    def __init__(self, gateway: Gateway, server: _DataServer) -> None:
        self.gateway, self.server = gateway, server
        self.ca = SessionCA.create(_UID, datetime.now(UTC) + timedelta(hours=1))
        self.csr = b""

    async def request(self) -> Session:
        session = await self.gateway.request(_ALICE, Request(_UID, Role.PROD, 1))
        self.csr = session.csr
        return session

    async def update(self, target: str) -> Session:
        leaf = self.ca.issue(self.csr, Role.PROD)
        return await self.gateway.update(_ALICE, _UID, Role.PROD, [target], leaf.certificate.der, leaf.trust_anchor.der)

    async def renew(self) -> Session:
        anchor = SessionCA.create(_UID, datetime.now(UTC) + timedelta(hours=1)).certificate
        return await self.gateway.renew(_ALICE, _UID, 3600, anchor.der)

    async def open(self) -> None:
        await self.request()
        await self.gateway.hello(_ALICE, _UID, Role.PROD, [_GOOD])
        assert (await self.update(_GOOD)).state is State.ACTIVE

    async def session(self) -> Session:
        (listed,) = await self.gateway.list(_ALICE, _UID)
        return listed.session


@pytest.fixture
async def facility(tmp_path: Path) -> AsyncIterator[_Facility]:
    async with _running(tmp_path) as made:
        yield made


@asynccontextmanager
async def _running(tmp_path: Path) -> AsyncIterator[_Facility]:
    store, server = SqliteStore(tmp_path / "s2cs.db"), _DataServer()
    store.users.add(User(_ALICE.id, _ALICE.name), Token.new(b""))
    policy = {"targets": ["127.0.0.0/8"]}
    settings = Settings.model_validate({"policy": policy, "server": {"on_shutdown": "release"}})
    gateway = Gateway(settings, store, server)
    await gateway.open()
    try:
        yield _Facility(gateway, server)
    finally:
        server.gate.set()
        await gateway.close()
        store.close()
    assert server.tunnels == {}


async def _turns(count: int = 20) -> None:
    """Let everybody go as far as they get."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("targets", [(_BAD, _OTHER), (_OTHER, _BAD), (_BAD, _BAD), (_OTHER, _GOOD, _BAD, _OTHER)])
async def test_updates_at_once_of_which_some_fail(facility: _Facility, targets: tuple[str, ...]) -> None:
    await facility.open()
    facility.server.gate.clear()
    updates = [asyncio.create_task(facility.update(target)) for target in targets]
    await _turns()
    facility.server.gate.set()
    outcomes = await asyncio.gather(*updates, return_exceptions=True)
    assert [isinstance(outcome, Unavailable) for outcome in outcomes] == [target == _BAD for target in targets]
    last = [_GOOD, *(target for target in targets if target != _BAD)][-1]
    assert facility.server.targets == [str(x) for x in (await facility.session()).targets] == [last]


@pytest.mark.parametrize("gone", [0, 1])
async def test_a_caller_that_goes_takes_no_other_down(facility: _Facility, gone: int) -> None:
    await facility.open()
    facility.server.gate.clear()
    updates = [asyncio.create_task(facility.update(target)) for target in (_BAD, _OTHER)]
    await _turns()
    updates[gone].cancel()
    await _turns()
    facility.server.gate.set()
    first, second = await asyncio.gather(*updates, return_exceptions=True)
    assert isinstance((first, second)[gone], asyncio.CancelledError)
    assert isinstance(first, Unavailable) if gone else isinstance(second, Session)


@pytest.mark.parametrize("call", ["update", "renew"])
async def test_a_release_overtakes(facility: _Facility, call: str) -> None:
    """What is no longer there is not said to be renewed or led elsewhere."""
    await facility.open()
    facility.server.gate.clear()
    under_way = asyncio.create_task(facility.renew() if call == "renew" else facility.update(_OTHER))
    await _turns()
    released = await facility.gateway.release(_ALICE, _UID)
    assert released.state is State.RELEASED
    with pytest.raises(FailedPrecondition, match="released by its user"):
        await under_way
    assert facility.server.tunnels == {}


async def test_a_release_overtakes_the_start(facility: _Facility) -> None:
    await facility.request()
    await facility.gateway.hello(_ALICE, _UID, Role.PROD, [_GOOD])
    facility.server.gate.clear()
    starting = asyncio.create_task(facility.update(_GOOD))
    await _turns()
    await facility.gateway.release(_ALICE, _UID)
    with pytest.raises(FailedPrecondition, match="released by its user"):
        await starting


async def test_a_release_overtakes_the_reservation(facility: _Facility) -> None:
    facility.server.gate.clear()
    asking = [asyncio.create_task(facility.request()) for _ in range(3)]
    await _turns()
    await facility.gateway.release(_ALICE, _UID)
    for outcome in await asyncio.gather(*asking, return_exceptions=True):
        assert isinstance(outcome, FailedPrecondition)
        assert "released by its user" in str(outcome)
    facility.server.gate.set()
    assert (await facility.request()).state is State.RESERVED  # the uid is free


@pytest.mark.parametrize("target", [_OTHER, _BAD])
async def test_an_update_while_the_proxy_dies_is_answered_when_it_is_done(facility: _Facility, target: str) -> None:
    await facility.open()
    facility.server.gate.clear()
    under_way = asyncio.create_task(facility.update(target))
    await _turns()
    (listed,) = await facility.gateway.list(_ALICE)
    facility.server.news.put_nowait(TunnelEvent(listed.session.id, Change.EXITED, "it died"))
    await _turns()
    assert (await facility.session()).state is State.RECOVERING
    assert not under_way.done()
    facility.server.gate.set()
    outcome = (await asyncio.gather(under_way, return_exceptions=True))[0]
    assert isinstance(outcome, Unavailable if target == _BAD else Session)
    assert [str(x) for x in (await facility.session()).targets] == facility.server.targets


async def test_everything_at_once_is_answered(facility: _Facility) -> None:
    """Whatever meets whatever: each call returns or is refused, and in the end nothing is left."""
    for _ in range(20):
        await facility.open()
        facility.server.gate.clear()
        calls = [facility.update(_OTHER), facility.renew(), facility.update(_BAD), facility.request(), facility.renew()]
        tasks = [asyncio.create_task(call) for call in calls]
        await _turns(3)
        tasks.append(asyncio.create_task(facility.gateway.release(_ALICE, _UID)))
        facility.server.gate.set()
        async with asyncio.timeout(10):
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in outcomes:
            assert isinstance(outcome, (Session, FailedPrecondition, Unavailable, NotFound, DeadlineExceeded)), outcome
        try:
            await facility.gateway.release(_ALICE, _UID)
        except ScistreamError as error:
            assert isinstance(error, NotFound)
        assert facility.server.tunnels == {}


class _WithAnOrphan(_DataServer):
    """Has a session's tunnel, which is given up while an orphan is stopped; only who watches by then is told."""

    def __init__(self, id: str) -> None:
        super().__init__()
        self._id = id
        self._watches: list[asyncio.Queue[TunnelEvent]] = []

    async def list(self, *ids: str) -> tuple[TunnelStatus, ...]:
        return tuple(TunnelStatus(id, TunnelState.RUNNING, "nginx", "1.26", ()) for id in (self._id, "orphan"))

    async def stop(self, id: str, cut: bool = False) -> None:
        if id == "orphan":
            for watch in self._watches:
                watch.put_nowait(TunnelEvent(self._id, Change.FATAL, "it dies again and again"))

    def watch(self) -> AsyncIterator[TunnelEvent]:
        self._watches.append(queue := asyncio.Queue[TunnelEvent]())

        async def follow() -> AsyncIterator[TunnelEvent]:
            while True:
                yield await queue.get()

        return follow()


async def test_a_proxy_that_dies_while_the_gateway_begins(facility: _Facility, tmp_path: Path) -> None:
    await facility.open()
    store, server = SqliteStore(tmp_path / "s2cs.db"), _WithAnOrphan((await facility.session()).id)
    again = Gateway(facility.gateway.settings, store, server)
    await again.open()
    await _turns()
    (listed,) = await again.list(_ALICE, _UID)
    await again.close()
    store.close()
    assert (listed.session.state, listed.session.reason) == (State.FAILED, "it dies again and again")


async def test_leases_end_while_the_store_cannot_say_what_is_revoked(facility: _Facility, tmp_path: Path) -> None:
    session = await facility.gateway.request(_ALICE, Request(_UID, Role.PROD, 1, lease_s=1))
    with sqlite3.connect(tmp_path / "s2cs.db") as other:
        other.execute("DROP TABLE revocations")
    async with asyncio.timeout(20):
        while not (session := await facility.session()).state.ended:
            await asyncio.sleep(0.05)
    assert session.state is State.EXPIRED


async def test_metrics_are_told_while_the_store_cannot_be_read(facility: _Facility, tmp_path: Path) -> None:
    metrics = Metrics(facility.gateway)
    with sqlite3.connect(tmp_path / "s2cs.db") as other:
        other.execute("DROP TABLE facts")
    told = (await metrics.text()).decode()
    assert "scistream_sessions_limit 1000.0" in told
    assert "scistream_draining" not in told


async def test_what_a_session_moved_is_counted_once_when_it_ends_during_a_look(
    facility: _Facility, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics(facility.gateway)
    await facility.open()
    id, traffic = (await facility.session()).id, Traffic(from_producer=1000, total=1)

    async def stop(id: str, cut: bool = False) -> Traffic:
        facility.server.tunnels.pop(id)
        return traffic

    async def listed(*ids: str) -> tuple[TunnelStatus, ...]:
        found = TunnelStatus(id, TunnelState.RUNNING, "nginx", "1.26", (), traffic=traffic)
        await facility.gateway.release(_ALICE, _UID)
        return (found,)

    monkeypatch.setattr(facility.server, "stop", stop)
    monkeypatch.setattr(facility.server, "list", listed)
    counted = 'direction="from_producer",role="PROD"} 1000.0'
    assert counted in (await metrics.text()).decode()
