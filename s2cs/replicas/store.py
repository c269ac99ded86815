"""The store that several S2CS share."""

from __future__ import annotations

import json
from collections.abc import Mapping

from s2cs.replicas.etcd import Change, Entry, changed_at, delete, made_at, put
from s2cs.replicas.mirror import Mirror
from s2cs.replicas.users import EtcdUsers
from s2cs.settings import StoreSettings
from s2cs.store import dump_session, load_session
from scistream.errors import FailedPrecondition, TryAgain
from scistream.machine import Session

LEADER = "leader"  # the key of the S2CS that leads; made anew by each that begins to
_SCHEMA, _VERSION = "schema", 1
_ATTEMPTS = 5  # somebody else may change the same


class Deposed(TryAgain):
    """Another S2CS leads now, so that what this one wants to write is not true any more."""


class EtcdStore:
    """Users, sessions and facts of a facility in etcd. See `s2cs.store.Store`.

    Once it is told which term it is to write for, it writes nothing when another S2CS has begun to lead.

    Raises:
        TryAgain: etcd cannot be reached.
        FailedPrecondition: it refuses, or what it has is of a newer version.
    """

    def __init__(self, settings: StoreSettings) -> None:
        self.mirror = Mirror(settings)
        self.term = 0  # the revision that made the leader's key; 0: it writes whoever leads, as operators do
        self.users = EtcdUsers(self.mirror.get, self.mirror.under, self.write)
        found = self.mirror.get(_SCHEMA)
        if found is None:
            self.write({_SCHEMA: str(_VERSION).encode()})
        elif int(found.value) > _VERSION:
            self.close()
            raise FailedPrecondition(
                f"the shared store was written by a newer s2cs (schema {found.value.decode()}, this one knows "
                f"{_VERSION}); install that version again"
            )

    def close(self) -> None:
        """Let go of it."""
        self.mirror.close()

    def write(
        self, values: Mapping[str, bytes | None], so_far: Mapping[str, int] | None = None, lease: int = 0
    ) -> bool:
        """Write or delete keys, all or none; False when one was changed by somebody else.

        Args:
            values: by key; None deletes.
            so_far: the revisions that keys have to have been changed last at; 0: not there.
            lease: under which to write; 0: for good.

        Raises:
            Deposed: another S2CS leads.
            TryAgain: etcd cannot be reached.
        """
        name = self.mirror.prefix + LEADER
        guard = [made_at(name, self.term)] if self.term else []
        compare = [changed_at(self.mirror.prefix + key, revision) for key, revision in (so_far or {}).items()]
        keys = {self.mirror.prefix + key: value for key, value in values.items()}
        asked = [delete(key) if value is None else put(key, value, lease) for key, value in keys.items()]
        after = [Change(key, None if value is None else Entry(value, 0, 0), 0) for key, value in keys.items()]
        if self.mirror.change([*guard, *compare], asked, after):
            return True
        self.mirror.refresh()
        leader = self.mirror.get(LEADER)
        if self.term and (leader is None or leader.created != self.term):
            raise Deposed("another S2CS of this facility leads now; ask again")
        return False

    def save(self, session: Session) -> None:
        """Write a session down as it is now."""
        self._put(f"sessions/{session.id}", dump_session(session).encode())

    def delete(self, id: str) -> None:
        """Forget a session."""
        self._delete(f"sessions/{id}")

    def sessions(self) -> list[Session]:
        """All sessions, oldest first."""
        found = (load_session(entry.value.decode()) for entry in self.mirror.under("sessions").values())
        return sorted(found, key=lambda session: session.created_at)

    def revoke(self, id: str, reason: str) -> None:
        """Order the gateway to end a session at once."""
        self.write({f"revocations/{id}": reason.encode()})

    def revocations(self) -> dict[str, str]:
        """The orders that are not carried out yet."""
        return {id: entry.value.decode() for id, entry in self.mirror.under("revocations").items()}

    def revoked(self, id: str) -> None:
        """Forget an order."""
        self._delete(f"revocations/{id}")

    def version(self) -> int:
        """A number that is another one when somebody else has changed the store."""
        return self.mirror.foreign

    def fact(self, name: str) -> str:
        """What was noted under a name."""
        if self.mirror.away:  # what depends on it is not begun while nothing can be kept
            raise TryAgain(self.mirror.away)
        entry = self.mirror.get(f"facts/{name}")
        return entry.value.decode() if entry else ""

    def note(self, name: str, value: str) -> None:
        """Note a fact."""
        self._put(f"facts/{name}", value.encode())

    def leader(self) -> dict[str, str]:
        """What the S2CS that leads says of itself; empty while none does."""
        entry = self.mirror.get(LEADER)
        found: dict[str, str] = json.loads(entry.value) if entry else {}
        return found

    def _put(self, key: str, value: bytes) -> None:
        """Write a key whatever it has, in place of what is known of it.

        A write that was given up, and asked for again at another node of etcd, may come to pass at the first one later:
        then it is in place of something else, and is refused.
        """
        for _ in range(_ATTEMPTS):
            known = self.mirror.get(key)
            if self.write({key: value}, {key: known.changed if known else 0}):
                return
            if (now := self.mirror.get(key)) is not None and now.value == value:
                return
        raise TryAgain(f"{key} in the shared store is being changed by somebody else; ask again")

    def _delete(self, key: str) -> None:
        if self.mirror.get(key) is not None:
            self.write({key: None})
