"""What a gateway makes of the sessions of its life before."""

from __future__ import annotations

import pytest

from s2cs.effects import reconciled
from scistream.machine import Broke, Owner, Request, Session, State
from scistream.vocabulary import Role, Uid


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (State.REQUESTED, "the control server was interrupted while it was being made"),
        (State.STARTING, "its data server was gone when the control server started again"),
        (State.ACTIVE, "its data server was gone when the control server started again"),
    ],
)
def test_a_session_without_its_tunnel_says_why_it_failed(state: State, reason: str) -> None:
    request = Request(uid=Uid("u"), role=Role.PROD, num_conn=1, lease_s=60)
    owner = Owner("local:1", "alice", frozenset())
    session = Session(id="a", owner=owner, request=request, created_at=0, expires_at=60, state=state)
    assert reconciled(session, None) == [Broke(reason)]
