"""What an admin orders through the gateway itself: the end of a session, and that no new ones are taken."""

from __future__ import annotations

from s2cs.audit.calls import current
from s2cs.auth import Caller
from s2cs.lifecycle import Lifecycle
from s2cs.sessions import Sessions
from s2cs.store import Store
from scistream.errors import InvalidArgument, NotFound, PermissionDenied
from scistream.machine import Revoke, Session
from scistream.vocabulary import Uid, shown

DRAINING = "draining"  # the fact in the store
_REASON = 200  # characters


class Orders:
    """Carry out what admins order."""

    def __init__(self, sessions: Sessions, lifecycle: Lifecycle, store: Store) -> None:
        self._sessions = sessions
        self._lifecycle = lifecycle
        self._store = store

    @property
    def draining(self) -> bool:
        """True while new sessions are refused; noted in the store, so that it outlives this process."""
        return self._store.fact(DRAINING) == "yes"

    def drain(self, caller: Caller, on: bool) -> None:
        """Take no new sessions, or take them again; those there are go on.

        Raises:
            PermissionDenied: not an admin.
            ResourceExhausted, Unavailable: it cannot be noted; nothing is different.
        """
        _admin(caller, "drain this gateway")
        self._store.note(DRAINING, "yes" if on else "no")

    async def kill(self, caller: Caller, uid: Uid, owner: str, reason: str) -> Session:
        """End a session at once, and return when it has ended: its streams are cut, its user is told why.

        Args:
            caller: an admin; to others every session is alike, whether there is one or not.
            uid: which.
            owner: whose it is, by name.
            reason: why; may be empty.

        Raises:
            PermissionDenied: not an admin.
            NotFound: no such session runs.
            InvalidArgument: a reason that cannot be shown.
        """
        _admin(caller, "kill sessions")
        if len(reason) > _REASON or not reason.isprintable():
            raise InvalidArgument(f"reason {shown(reason)} is not a printable text of at most {_REASON} characters")
        found = (x for x in self._sessions.running if (x.session.uid, x.session.owner.name) == (uid, owner))
        live = next(found, None)
        if live is None:
            raise NotFound(f"there is no running session {uid} of {shown(owner)} here; the page shows what there is")
        current.get().session = live.session
        words = f"killed by {caller.name} at the gateway's page" + (f": {reason}" if reason else "")
        self._lifecycle.report(live, Revoke(words))
        return await live.until(lambda session: session.state.ended)


def _admin(caller: Caller, what: str) -> None:
    if not caller.admin:
        raise PermissionDenied(f"only an admin of this gateway, with credentials for that, may {what}; ask one")
