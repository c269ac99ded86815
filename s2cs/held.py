"""What running sessions hold of a gateway, added up as they come and go: one more costs the same however many run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container
from dataclasses import dataclass
from typing import TypeVar

from s2cs.policy.decision import Use
from scistream.machine import Request, Session
from scistream.vocabulary import Rate, Role

_K = TypeVar("_K")


@dataclass(slots=True)
class _Sum:
    sessions: int = 0
    connections: int = 0
    bytes_per_s: int = 0

    def add(self, request: Request, sign: int) -> None:
        self.sessions += sign
        self.connections += sign * request.num_conn
        self.bytes_per_s += sign * request.rate.bytes_per_s

    @property
    def use(self) -> Use:
        return Use(self.sessions, self.connections, Rate(self.bytes_per_s))


class Held:
    """Count what sessions hold: of all users together, and of each."""

    def __init__(self) -> None:
        self._all = _Sum()
        self._of: defaultdict[str, _Sum] = defaultdict(_Sum)  # by the owner's id
        self._ports: Counter[int] = Counter()  # in the LAN, that lead into sessions
        self._ports_of: Counter[tuple[str, int]] = Counter()

    @property
    def all(self) -> Use:
        """What all users have together."""
        return self._all.use

    def of(self, owner_id: str) -> Use:
        """What one user has."""
        return self._of[owner_id].use if owner_id in self._of else Use()

    def ports_of_others(self, owner_id: str) -> Container[int]:
        """Give the ports in the LAN that lead into other users' sessions, as they are when they are asked for."""
        return _OthersPorts(self._ports, self._ports_of, owner_id)

    def change(self, before: Session | None, after: Session | None) -> None:
        """Take note of a session that is new, is another now, or is forgotten."""
        for session, sign in ((before, -1), (after, 1)):
            if session is not None and not session.state.ended:
                self._count(session, sign)

    def _count(self, session: Session, sign: int) -> None:
        owner = session.owner.id
        self._all.add(session.request, sign)
        self._of[owner].add(session.request, sign)
        if not self._of[owner].sessions:
            del self._of[owner]
        if session.role is Role.CONS:
            for listener in session.listeners:
                _add(self._ports, listener.port, sign)
                _add(self._ports_of, (owner, listener.port), sign)


def _add(counts: Counter[_K], key: _K, number: int) -> None:
    counts[key] += number
    if not counts[key]:
        del counts[key]


@dataclass(frozen=True, slots=True)
class _OthersPorts:
    all: Counter[int]
    by_owner: Counter[tuple[str, int]]
    owner_id: str

    def __contains__(self, port: object) -> bool:
        return isinstance(port, int) and self.all[port] > self.by_owner[self.owner_id, port]
