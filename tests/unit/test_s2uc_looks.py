"""Tables of sessions: what is shown where there is little room."""

from __future__ import annotations

import pytest

from s2uc.commands.sessions import tabulated
from scistream.proto import scistream_pb2 as pb

_LONG = ("2f1c8a52-9d0e-4c1b-8a55-0f2f8f7f3b1a", "77ab1c52-9d0e-4c1b-8a55-0f2f8f7f3b1b")


def info(uid: str, role: str, began: int, reason: str = "") -> pb.SessionInfo:
    found = pb.SessionInfo(uid=uid, role=role, state="ACTIVE", reason=reason, backend="nginx")
    found.created_at.seconds = found.since.seconds = began
    found.traffic.SetInParent()
    return found


def pairs(*uids: str) -> list[tuple[str, pb.SessionInfo]]:
    """Sessions one after another, whose two sides do not begin in the same second."""
    return [
        (gateway, info(uid, role, 1000 + i + later))
        for gateway, role, later in (("alcf", "CONS", 1), ("aps", "PROD", 0))
        for i, uid in enumerate(uids)
    ]


def test_a_long_uid_is_above_its_session_where_it_would_cost_columns() -> None:
    lines = tabulated(pairs(*_LONG), 80)
    assert max(map(len, lines)) <= 80
    assert {"GATEWAY", "SIDE", "STATE", "UNTIL", "OPEN", "RATE"} <= set(lines[0].split())
    assert "UID" not in lines[0]
    assert [line.split()[0] for line in lines[1:]] == [_LONG[0], "aps", "alcf", _LONG[1], "aps", "alcf"]


@pytest.mark.parametrize(("uids", "room"), [(_LONG, 160), (_LONG, 0), (("scan-12", "scan-13"), 80)])
def test_elsewhere_each_line_has_its_uid_and_a_sessions_sides_are_together(uids: tuple[str, ...], room: int) -> None:
    lines = tabulated(pairs(*uids), room)
    assert lines[0].startswith("UID")
    assert [line.split()[:2] for line in lines[1:]] == [[uid, name] for uid in uids for name in ("aps", "alcf")]
