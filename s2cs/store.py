"""What outlives the process: users, sessions and a few facts, in SQLite.

WAL mode with `synchronous=NORMAL`: a commit survives the death of this process at once. A loss of power
may take the last commits, but it takes all proxies with it, so there is nothing left to lose track of.
"""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from s2cs.sqlite_users import SqliteUsers, Transaction
from s2cs.users import Users
from scistream.errors import FailedPrecondition, ResourceExhausted, Unavailable
from scistream.machine import Change, Owner, Proof, Request, Route, Session, State, Waits
from scistream.vocabulary import Rate, Role, Transport, Uid, parse_endpoints

# What each schema version adds to the one before; a file of an earlier version is brought forward at start.
MIGRATIONS = (
    """
    CREATE TABLE users (
        name TEXT PRIMARY KEY, admin INTEGER NOT NULL, token_sha256 BLOB NOT NULL UNIQUE, created_at REAL NOT NULL
    ) STRICT;
    CREATE TABLE sessions (id TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
    """,
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;",
    # Users get an id that outlives the name, and several tokens; sessions belong to the id.
    """
    ALTER TABLE users RENAME TO old_users;
    CREATE TABLE users (
        id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, rank INTEGER NOT NULL, groups TEXT NOT NULL,
        disabled INTEGER NOT NULL, created_at REAL NOT NULL
    ) STRICT;
    CREATE TABLE tokens (
        id TEXT PRIMARY KEY, user_id TEXT NOT NULL, sha256 BLOB NOT NULL UNIQUE, scopes TEXT NOT NULL,
        created_at REAL NOT NULL, expires_at REAL NOT NULL, used_at REAL NOT NULL
    ) STRICT;
    INSERT INTO users
        SELECT 'local:' || lower(hex(randomblob(8))), name, CASE admin WHEN 0 THEN 0 ELSE 2 END, '', 0, created_at
        FROM old_users;
    INSERT INTO tokens
        SELECT lower(hex(randomblob(4))), users.id, token_sha256, 'admin read sessions', users.created_at, 9e999, 0
        FROM old_users JOIN users USING (name);
    DROP TABLE old_users;
    UPDATE sessions SET body = json_set(body, '$.owner', json_object(
        'id', coalesce((SELECT id FROM users WHERE name = json_extract(body, '$.owner')), ''),
        'name', json_extract(body, '$.owner'), 'groups', json_array()
    ));
    """,
    "ALTER TABLE users ADD COLUMN used_at REAL NOT NULL DEFAULT 0;",
    # What an operator has ended: the running gateway carries it out.
    "CREATE TABLE revocations (session_id TEXT PRIMARY KEY, reason TEXT NOT NULL) STRICT;",
    # Sessions are on one of several nodes; those there are, on this host.
    "UPDATE sessions SET body = json_set(body, '$.node', '');",
)


class Store(Protocol):
    """Keep users, sessions and facts. What a method changed is kept when it returns; others see it within a moment.

    All methods raise Unavailable when the store cannot be used now, and ResourceExhausted when it is full;
    nothing is changed then.
    """

    @property
    def users(self) -> Users:
        """The users and their tokens."""
        ...

    def close(self) -> None:
        """Let go of it."""

    def save(self, session: Session) -> None:
        """Write a session down as it is now."""

    def delete(self, id: str) -> None:
        """Forget a session; unknown ids are no error."""

    def sessions(self) -> list[Session]:
        """All sessions, oldest first."""
        ...

    def revoke(self, id: str, reason: str) -> None:
        """Order the gateway that runs on this store to end a session at once."""

    def revocations(self) -> dict[str, str]:
        """The orders that are not carried out yet: session ids, each with a reason."""
        ...

    def revoked(self, id: str) -> None:
        """Forget an order, which has been carried out."""

    def version(self) -> int:
        """A number that is another one when somebody else has changed the store. Asking costs next to nothing."""
        ...

    def fact(self, name: str) -> str:
        """What was noted under a name; empty when nothing was."""
        ...

    def note(self, name: str, value: str) -> None:
        """Note a fact, in place of what was noted under that name."""


class SqliteStore:
    """The store of one gateway: one SQLite file.

    Raises:
        FailedPrecondition: the file is damaged, or of a newer schema; it is left as it is.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self._db = sqlite3.connect(file, isolation_level=None, timeout=10)
            self.users = SqliteUsers(self._db, self._faults)
            try:
                self._open()
            except BaseException:
                self._db.close()
                raise
        except sqlite3.Error as error:
            raise FailedPrecondition(
                f"{file} cannot be used: {error}; mend the disk, or move the file away to begin anew"
            ) from None

    def _open(self) -> None:
        self.file.chmod(0o600)
        if (version := self._version()) > len(MIGRATIONS):
            raise FailedPrecondition(
                f"{self.file} was written by a newer s2cs (schema {version}, this one knows {len(MIGRATIONS)}); "
                "install that version again"
            )
        (sound,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if sound != "ok":
            raise sqlite3.DatabaseError(sound)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        if version < len(MIGRATIONS):
            with Transaction(self._db):
                for migration in MIGRATIONS[self._version() :]:  # another process may have done some meanwhile
                    for statement in migration.split(";"):
                        self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={len(MIGRATIONS)}")

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise ResourceExhausted(f"there is no room to write {self.file}; make room on its disk") from None
            raise Unavailable(f"{self.file} cannot be used now: {error}; the operator mends the disk") from None

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def save(self, session: Session) -> None:
        """Write a session down as it is now."""
        with self._faults():
            self._db.execute("INSERT OR REPLACE INTO sessions VALUES (?, ?)", (session.id, dump_session(session)))

    def delete(self, id: str) -> None:
        """Forget a session."""
        with self._faults():
            self._db.execute("DELETE FROM sessions WHERE id = ?", (id,))

    def sessions(self) -> list[Session]:
        """All sessions, oldest first."""
        with self._faults():
            rows = self._db.execute("SELECT body FROM sessions").fetchall()
        return sorted((load_session(body) for (body,) in rows), key=lambda session: session.created_at)

    def revoke(self, id: str, reason: str) -> None:
        """Order the gateway to end a session at once."""
        with self._faults():
            self._db.execute("INSERT OR REPLACE INTO revocations VALUES (?, ?)", (id, reason))

    def revocations(self) -> dict[str, str]:
        """The orders that are not carried out yet."""
        with self._faults():
            return dict(self._db.execute("SELECT session_id, reason FROM revocations").fetchall())

    def revoked(self, id: str) -> None:
        """Forget an order."""
        with self._faults():
            self._db.execute("DELETE FROM revocations WHERE session_id = ?", (id,))

    def version(self) -> int:
        """A number that is another one when another process has changed the file."""
        with self._faults():
            return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def fact(self, name: str) -> str:
        """What was noted under a name."""
        with self._faults():
            row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else ""

    def note(self, name: str, value: str) -> None:
        """Note a fact."""
        with self._faults():
            self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))


def dump_session(session: Session) -> str:
    """Write a session as text."""
    request, owner = session.request, session.owner
    body: dict[str, Any] = {
        "id": session.id,
        "owner": {"id": owner.id, "name": owner.name, "groups": sorted(owner.groups)},
        "request": {
            "uid": request.uid,
            "role": request.role,
            "num_conn": request.num_conn,
            "rate": request.rate.bytes_per_s,
            "protocol": request.protocol,
            "producer": request.producer,
            "consumer": request.consumer,
            "lease_s": request.lease_s,
            "backend": request.backend,
            "labels": dict(request.labels),
            "hello_key_sha256": request.hello_key_sha256.hex(),
            "old": request.old,
        },
        "created_at": session.created_at,
        "expires_at": session.expires_at,
        "waits": [getattr(session.waits, name) for name in Waits.__slots__],
        "state": session.state,
        "deadline": None if session.state.ended else session.deadline,
        "backend": session.backend,
        "node": session.node,
        "wan_host": session.wan_host,
        "listeners": [str(x) for x in session.listeners],
        "csr": base64.b64encode(session.csr).decode(),
        "prod_listeners": [str(x) for x in session.prod_listeners],
        "targets": [str(x) for x in session.targets],
        "proof": _dump_proof(session.proof),
        "before_update": session.before_update and _dump_route(session.before_update),
        "outcome": session.outcome,
        "reason": session.reason,
        "since": session.since,
        "changes": [[change.state, change.at, change.reason] for change in session.changes],
    }
    return json.dumps(body)


def load_session(text: str) -> Session:
    """Read a session that was written as text."""
    body = json.loads(text)
    request, owner = body["request"], body["owner"]
    return Session(
        id=body["id"],
        owner=Owner(owner["id"], owner["name"], frozenset(owner["groups"])),
        request=Request(
            uid=Uid(request["uid"]),
            role=Role(request["role"]),
            num_conn=request["num_conn"],
            rate=Rate(request["rate"]),
            protocol=Transport(request["protocol"]),
            producer=request["producer"],
            consumer=request["consumer"],
            lease_s=request["lease_s"],
            backend=request["backend"],
            labels=MappingProxyType(request["labels"]),
            hello_key_sha256=bytes.fromhex(request["hello_key_sha256"]),
            old=request.get("old", False),
        ),
        created_at=body["created_at"],
        expires_at=body["expires_at"],
        waits=Waits(*body["waits"]),
        state=State(body["state"]),
        deadline=float("inf") if body["deadline"] is None else body["deadline"],
        backend=body["backend"],
        node=body["node"],
        wan_host=body.get("wan_host", ""),
        listeners=parse_endpoints(body["listeners"]),
        csr=base64.b64decode(body["csr"]),
        prod_listeners=parse_endpoints(body["prod_listeners"]),
        targets=parse_endpoints(body["targets"]),
        proof=_load_proof(body["proof"]),
        before_update=_load_route(body["before_update"]),
        outcome=State(body["outcome"]) if body["outcome"] else None,
        reason=body["reason"],
        since=body.get("since", 0.0),
        changes=tuple(Change(State(state), at, reason) for state, at, reason in body.get("changes", ())),
    )


def _dump_route(route: Route) -> list[Any]:
    targets, proof, expires_at = route
    return [[str(x) for x in targets], _dump_proof(proof), expires_at]


def _load_route(found: Any) -> Route | None:
    return (parse_endpoints(found[0]), _load_proof(found[1]), found[2]) if found else None


def _dump_proof(proof: Proof) -> list[str]:
    return [base64.b64encode(getattr(proof, name)).decode() for name in Proof.__slots__]


def _load_proof(found: list[str]) -> Proof:
    return Proof(*map(base64.b64decode, found))
