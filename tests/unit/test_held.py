"""What running sessions hold, added up as they come and go, is what one finds by looking at each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2cs.auth import KeyHolder
from s2cs.held import Held
from s2cs.live import Live
from s2cs.policy.decision import Use, used
from s2cs.sessions import Sessions
from s2cs.store import SqliteStore
from scistream.errors import Unauthenticated
from scistream.machine import Owner, Request, Session, State, Waits, open_session
from scistream.vocabulary import Endpoint, Rate, Role, Uid

_OWNERS = ("local:1", "local:2")


def _session(id: str, owner: str, role: Role, num_conn: int, rate: int, key: bytes = b"") -> Session:
    request = Request(Uid(f"u-{id}"), role, num_conn, Rate(rate), hello_key_sha256=key)
    return open_session(id, Owner(owner, owner), request, 0.0, 60.0, Waits())


_SESSIONS = st.builds(
    _session, st.just("1"), st.sampled_from(_OWNERS), st.sampled_from(Role), st.integers(1, 9), st.integers(0, 10**12)
)
_PORTS = st.lists(st.integers(1, 4), max_size=3, unique=True)
_STEPS = st.lists(st.tuples(st.integers(0, 9), _SESSIONS, _PORTS, st.sampled_from(State)), max_size=40)


@given(_STEPS)
@settings(max_examples=60, deadline=None)
def test_the_sums_are_those_of_the_sessions_there_are(steps: list[tuple[int, Session, list[int], State]]) -> None:
    held, there = Held(), dict[int, Session]()
    for which, new, ports, state in steps:
        before = there.get(which)
        if before is not None and state is State.REQUESTED:
            held.change(before, None)
            del there[which]
            continue
        listeners = tuple(Endpoint("127.0.0.1", port) for port in ports)
        after = replace(new if before is None else before, listeners=listeners, state=state)
        held.change(before, after)
        there[which] = after
    running = [session for session in there.values() if not session.state.ended]
    assert held.all == used(running)
    for owner in (*_OWNERS, "nobody"):
        assert held.of(owner) == used(session for session in running if session.owner.id == owner)
        others = [s for s in running if s.role is Role.CONS and s.owner.id != owner]
        ports_of_others = held.ports_of_others(owner)
        assert {port for port in range(1, 5) if port in ports_of_others} == {
            x.port for s in others for x in s.listeners
        }
    for session in there.values():
        held.change(session, None)
    assert held.all == Use()
    assert [len(each) for each in (held._of, held._ports, held._ports_of)] == [0, 0, 0]  # nothing stays of who is gone


def test_sessions_that_end_hold_nothing_and_are_found_by_their_key_until_they_are_forgotten(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s2cs.db")
    sessions, key = Sessions(store), KeyHolder(b"k" * 32)
    one, two = (Live(_session(id, "local:1", Role.PROD, 2, 5, key.key_sha256)) for id in "12")
    without = Live(_session("3", "local:1", Role.PROD, 2, 5))
    for live in (one, two, without):
        sessions.keep(live)
    assert sessions.held.all == Use(3, 6, Rate(15))
    assert sessions.has_key(key.key_sha256)
    assert not sessions.has_key(b"")  # a session without a key is nobody's who has none
    assert sessions.find(key, Uid("u-2")) is two
    with pytest.raises(Unauthenticated):
        sessions.find(key, Uid("u-3"))
    with pytest.raises(Unauthenticated):
        sessions.find(KeyHolder(b""), Uid("u-3"))
    sessions.become(one, replace(one.session, state=State.RELEASED))
    assert sessions.running == [two, without]
    assert sessions.held.of("local:1") == Use(2, 4, Rate(10))
    assert sessions.find(key, Uid("u-1")) is one
    for _ in range(2):  # twice does no harm
        for live in (one, two, without):
            sessions.forget(live)
    assert sessions.held.all == Use()
    assert (sessions.running, sessions.has_key(key.key_sha256), list(sessions)) == ([], False, [])
    store.close()
