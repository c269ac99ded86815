"""A list says what is so now, although most of it is kept from the list before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bench.nullplane import NullDataServer
from s2cs.audit.calls import Call, current
from s2cs.audit.log import Audit
from s2cs.auth import Caller
from s2cs.door import calling
from s2cs.gateway import Gateway
from s2cs.s2ds.contract import Traffic, TunnelStatus
from s2cs.servicer import Servicer
from s2cs.settings import Settings
from s2cs.store import SqliteStore
from s2cs.users import Rank
from scistream.machine import Request
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Role, Uid

_ALICE, _BOB = Caller("alice", "local:1"), Caller("bob", "local:2")
_OPERATOR = Caller("olga", "local:3", Rank.OPERATOR)


class _Facility:
    def __init__(self, directory: Path) -> None:
        self.store = SqliteStore(directory / "s2cs.db")
        self.server = NullDataServer()
        self.gateway = Gateway(Settings(), self.store, self.server)
        self.servicer = Servicer(self.gateway)

    async def open(self, caller: Caller, uid: str) -> None:
        await self.gateway.request(caller, Request(Uid(uid), Role.CONS, 1))

    async def list(self, caller: Caller, uid: str = "") -> list[pb.SessionInfo]:
        calling.set(caller)
        current.set(Call(Audit(), "list", "ipv4:127.0.0.1:1"))
        answer = await self.servicer.list(pb.ListRequest(uid=uid), None)
        return list(answer.sessions)

    def tunnel(self, **changes: object) -> None:
        """Let the data server see something of the only tunnel."""
        ((id, status),) = self.server._tunnels.items()
        self.server._tunnels[id] = TunnelStatus(**{name: getattr(status, name) for name in status.__slots__} | changes)


@pytest.fixture
async def facility(tmp_path: Path) -> AsyncIterator[_Facility]:
    made = _Facility(tmp_path)
    await made.gateway.open()
    yield made
    await made.gateway.close()
    made.store.close()


async def test_every_change_is_in_the_next_list(facility: _Facility, monkeypatch: pytest.MonkeyPatch) -> None:
    await facility.open(_ALICE, "scan")
    first = (await facility.list(_ALICE))[0]
    assert (await facility.list(_ALICE))[0] == first
    assert (first.state, first.tls_version, first.traffic.bytes_from_producer) == ("RESERVED", "", 0)
    facility.tunnel(tls_version="TLSv1.3", traffic=Traffic(from_producer=7))
    second = (await facility.list(_ALICE))[0]
    assert (second.tls_version, second.traffic.bytes_from_producer) == ("TLSv1.3", 7)
    facility.tunnel(traffic=Traffic(from_producer=8))
    assert (await facility.list(_ALICE, "scan"))[0].traffic.bytes_from_producer == 8
    await facility.gateway.hello(_ALICE, Uid("scan"), Role.CONS, [])
    assert (await facility.list(_ALICE))[0].state == "ANNOUNCED"
    wall = facility.gateway.clock.wall
    monkeypatch.setattr(facility.gateway.clock, "wall", lambda steady: wall(steady) + 3600)  # somebody sets the clock
    assert (await facility.list(_ALICE))[0].expires_at.seconds == pytest.approx(first.expires_at.seconds + 3600, 1)
    monkeypatch.undo()
    await facility.gateway.release(_ALICE, Uid("scan"))
    ended = (await facility.list(_ALICE))[0]
    assert (ended.state, ended.tls_version, ended.HasField("traffic")) == ("RELEASED", "", True)
    await facility.open(_ALICE, "scan")  # the uid is used again
    assert (await facility.list(_ALICE))[0].state == "RESERVED"


async def test_what_is_kept_for_one_is_not_told_to_another(facility: _Facility) -> None:
    await facility.open(_ALICE, "scan")
    await facility.open(_BOB, "scan")
    assert {info.owner for info in await facility.list(_OPERATOR)} == {"alice", "bob"}
    for caller in (_ALICE, _BOB):
        assert [info.owner for info in await facility.list(caller)] == [caller.name]
