"""The sessions of a gateway: in memory, and in the store."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from s2cs.auth import Caller, KeyHolder
from s2cs.held import Held
from s2cs.live import Live
from s2cs.store import Store
from s2cs.users import Rank
from scistream.errors import NotFound, PermissionDenied, ResourceExhausted, Unauthenticated, Unavailable
from scistream.machine import Session
from scistream.vocabulary import Uid

log = logging.getLogger(__name__)


class Sessions:
    """Keep sessions and find them; an owner's latest of a uid takes the place of the one before."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._by_id: dict[str, Live] = {}
        self._running: dict[str, Live] = {}  # those of them that have not ended
        self._by_key: dict[bytes, dict[str, Live]] = {}  # by the SHA-256 of the key that applications say Hello with
        self._latest: dict[tuple[str, Uid], Live] = {}  # by the owner's id and uid
        self._unsaved: set[str] = set()  # those whose last change the store could not take
        self.held = Held()

    def __iter__(self) -> Iterator[Live]:
        return iter(list(self._by_id.values()))

    @property
    def running(self) -> list[Live]:
        """Those that have not ended."""
        return list(self._running.values())

    @property
    def unsaved(self) -> int:
        """How many wait to be saved."""
        return len(self._unsaved)

    def stored(self) -> list[Session]:
        """All that the store has, oldest first."""
        return self._store.sessions()

    def has_key(self, sha256: bytes) -> bool:
        """Tell whether a key is that of a session here, by its SHA-256."""
        return sha256 in self._by_key

    def get(self, id: str) -> Live | None:
        """Look a session up by the gateway's own name for it."""
        return self._by_id.get(id)

    def latest(self, owner_id: str, uid: Uid) -> Live | None:
        """Look an owner's session up."""
        return self._latest.get((owner_id, uid))

    def find(self, caller: Caller | KeyHolder, uid: Uid, others: Rank = Rank.OPERATOR) -> Live:
        """Find a session that the caller may touch; to a user, another's looks as if it did not exist.

        Args:
            caller: who.
            uid: which.
            others: the rank that it takes to do this with somebody else's.

        Raises:
            NotFound: no such session of this user.
            PermissionDenied: an operator sees it, but may not do this with it.
            Unauthenticated: neither a user's token nor the key of that session.
        """
        # What runs does not depend on whether the uid is taken: not even the time of an answer tells a stranger that.
        if isinstance(caller, KeyHolder):
            for live in self._by_key.get(caller.key_sha256, {}).values():
                if live.session.uid == uid:
                    return live
            raise Unauthenticated(f"the credentials are neither a user's token nor the key of session {uid}")
        found = self.latest(caller.id, uid)
        if found is None and caller.operator:
            same = [live for live in self._by_id.values() if live.session.uid == uid]
            found = max(same, key=lambda live: (not live.session.state.ended, live.session.created_at), default=None)
        if found is None:
            raise NotFound(f"there is no session {uid} of yours at this gateway; s2uc list shows what there is")
        if found.session.owner.id != caller.id and caller.role < others:
            raise PermissionDenied(
                f"session {uid} is {found.session.owner.name}'s; an operator may list, watch and release it"
            )
        return found

    def keep(self, live: Live) -> None:
        """Know a session from now on, and forget the one that it takes the place of."""
        session = live.session
        earlier = self.latest(session.owner.id, session.uid)
        if earlier is not None:
            self.forget(earlier)
        self._by_id[session.id] = live
        self._latest[session.owner.id, session.uid] = live
        if key := session.request.hello_key_sha256:
            self._by_key.setdefault(key, {})[session.id] = live
        if not session.state.ended:
            self._running[session.id] = live
        self.held.change(None, session)

    def become(self, live: Live, session: Session) -> None:
        """Let a session that is known be what it is after a step."""
        before = live.session
        live.become(session)
        if session.state.ended:
            self._running.pop(session.id, None)
        self.held.change(before, session)

    def forget(self, live: Live) -> None:
        """Know a session no longer."""
        session = live.session
        if self._by_id.pop(session.id, None) is None:
            return
        self._running.pop(session.id, None)
        self.held.change(session, None)
        if key := session.request.hello_key_sha256:
            del self._by_key[key][session.id]
            if not self._by_key[key]:
                del self._by_key[key]
        if self.latest(session.owner.id, session.uid) is live:
            del self._latest[session.owner.id, session.uid]
        try:
            self._store.delete(session.id)
        except (ResourceExhausted, Unavailable):
            self._unsaved.add(session.id)

    def save(self, session: Session) -> None:
        """Save a change that somebody asked for.

        Raises:
            ResourceExhausted, Unavailable: the store cannot take it; then it must not happen.
        """
        self._store.save(session)

    def save_sometime(self, session: Session) -> None:
        """Save a change that has happened already: now, or as soon as the store can be used again."""
        try:
            self._store.save(session)
        except (ResourceExhausted, Unavailable) as error:
            if not self._unsaved:
                log.error("%s; sessions go on, and are saved when it can be used again", error)
            self._unsaved.add(session.id)

    def save_again(self) -> None:
        """Save what could not be saved when it happened."""
        for id in list(self._unsaved):
            live = self.get(id)
            try:
                if live is None:
                    self._store.delete(id)
                else:
                    self._store.save(live.session)
            except (ResourceExhausted, Unavailable):
                return
            self._unsaved.discard(id)
            if not self._unsaved:
                log.info("all sessions are saved again")
