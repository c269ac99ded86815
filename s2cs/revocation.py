"""What ends sessions from outside of the protocol: an operator's order, a user who is removed or disabled.

Both are in the store, where a command of another process has put them. The gateway looks there when the store says
that somebody else has changed it, so that idle costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from s2cs.store import Store
from scistream.machine import Owner, Session


class Revocations:
    """Find the sessions that are to be ended."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: int | None = None  # the store's version when it was last looked at
        self._done: set[str] = set()  # orders that have been carried out, by the sessions' ids

    def look_again(self) -> None:
        """Look next time whatever the store says: a session is new, and its user may have gone in that moment."""
        self._seen = None

    def due(self, running: Iterable[Session]) -> list[tuple[Session, str]]:
        """Give the sessions that are to be ended, each with a sentence that says by whom and why.

        Raises:
            Unavailable: the store cannot tell.
        """
        version = self._store.version()
        if version == self._seen:
            return []
        sessions, ordered = list(running), self._store.revocations()
        owners = {session.owner.id: session.owner for session in sessions}
        gone = {id: self._gone(owner) for id, owner in owners.items()}
        if not ordered and not any(gone.values()):
            self._seen = version
            return []
        reasons = [(session, ordered.get(session.id) or gone[session.owner.id]) for session in sessions]
        self._seen = version
        self._done |= ordered.keys()  # now, or by a session that has ended by itself
        return [(session, reason) for session, reason in reasons if reason]

    def tidy(self) -> None:
        """Forget the orders that were given by `due` and have been carried out.

        Raises:
            ResourceExhausted, Unavailable: the store cannot take it; to be tried again.
        """
        for id in list(self._done):
            self._store.revoked(id)
            self._done.discard(id)

    def _gone(self, owner: Owner) -> str:
        user = self._store.users.by_id(owner.id)
        if user is None:
            return f"its user {owner.name} was removed"
        return f"its user {owner.name} was disabled" if user.disabled else ""
