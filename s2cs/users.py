"""The users of a gateway and their tokens, in its store.

A user has a name, which people and the policy use, and an id, which is never used again: what is owned is owned by the
id, so that a name that was removed and added again is somebody else.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from enum import IntEnum
from math import inf
from typing import Any, Protocol

from scistream.errors import AlreadyExists, NotFound, PermissionDenied

_LOCAL = "local:"
SCOPES = ("sessions", "read", "admin")  # what a token may be for


class Rank(IntEnum):
    """What a user may do to others' sessions."""

    USER = 0  # nothing
    OPERATOR = 1  # list, watch, release
    ADMIN = 2  # everything

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who may ask this gateway for something."""

    id: str
    name: str
    rank: Rank = Rank.USER
    groups: frozenset[str] = frozenset()
    disabled: bool = False
    created_at: float = 0.0  # wall clock
    used_at: float = 0.0  # wall clock, about; 0 is never

    @property
    def outsider(self) -> bool:
        """True for who is vouched for by others: known here since the first call."""
        return not self.id.startswith(_LOCAL)

    @classmethod
    def new(cls, name: str, rank: Rank = Rank.USER, groups: Iterable[str] = ()) -> User:
        """Make a user of this gateway's own."""
        return cls(f"{_LOCAL}{secrets.token_hex(8)}", name, rank, frozenset(groups), created_at=time.time())


@dataclass(frozen=True, slots=True)
class Token:
    """A token of this gateway, of which only the hash is known."""

    id: str
    sha256: bytes
    scopes: frozenset[str] = frozenset(SCOPES)
    created_at: float = 0.0  # wall clock
    expires_at: float = inf  # wall clock
    used_at: float = 0.0  # wall clock, about; 0 is never

    @classmethod
    def new(cls, sha256: bytes, scopes: Iterable[str] = SCOPES, expires_at: float = inf) -> Token:
        """Make the record of a new token."""
        return cls(secrets.token_hex(4), sha256, frozenset(scopes), time.time(), expires_at)


class Users(Protocol):
    """Keep users and tokens. Methods raise what those of the store raise, and what they say themselves."""

    def add(self, user: User, token: Token) -> None:
        """Add a user with a first token.

        Raises:
            AlreadyExists: there is one of that name.
        """

    def remove(self, name: str) -> None:
        """Remove a user and its tokens.

        Raises:
            NotFound: there is none of that name.
        """

    def change(self, user: User) -> None:
        """Give the user of an id another rank, groups, or switch.

        Raises:
            NotFound: there is none.
        """

    def meet(self, user: User) -> User:
        """Note somebody from outside as it is now; what is known of it.

        Raises:
            PermissionDenied: its name is another one's already.
        """
        ...

    def by_name(self, name: str) -> User:
        """The user of that name.

        Raises:
            NotFound: there is none.
        """
        ...

    def all(self) -> list[User]:
        """All users, by name."""
        ...

    def by_id(self, id: str) -> User | None:
        """The user of that id."""
        ...

    def by_token(self, sha256: bytes) -> tuple[User, Token] | None:
        """The user whose token has this SHA-256, and the token."""
        ...

    def tokens(self, user_id: str) -> list[Token]:
        """A user's tokens, oldest first."""
        ...

    def add_token(self, user_id: str, token: Token) -> None:
        """Give a user another token."""

    def end_token(self, token_id: str, at: float = 0.0) -> None:
        """End a token: now, or at a time, if it does not end earlier anyhow."""

    def note_uses(self, used: Mapping[str, float]) -> None:
        """Note when tokens and users, by their ids, were last used."""


_USER = "users.id, users.name, users.rank, users.groups, users.disabled, users.created_at, users.used_at"
_TOKEN = "tokens.id, tokens.sha256, tokens.scopes, tokens.created_at, tokens.expires_at, tokens.used_at"  # noqa: S105


class SqliteUsers:
    """Keep users in a database.

    Args:
        db: the connection, without transactions of its own.
        faults: turns SQLite's errors into ours.
    """

    def __init__(self, db: sqlite3.Connection, faults: Callable[[], AbstractContextManager[None]]) -> None:
        self._db = db
        self._faults = faults

    def add(self, user: User, token: Token) -> None:
        """Add a user with a first token."""
        try:
            with self._faults(), _Transaction(self._db):
                self._insert(user)
                self._insert_token(user.id, token)
        except sqlite3.IntegrityError:
            raise AlreadyExists(
                f"there is a user {user.name} already; remove it first: s2cs user remove {user.name}"
            ) from None

    def _insert(self, user: User) -> None:
        row = (user.id, user.name, user.rank, _joined(user.groups), user.disabled, user.created_at, user.used_at)
        self._db.execute("INSERT INTO users VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def _insert_token(self, user_id: str, token: Token) -> None:
        row = (
            token.id,
            user_id,
            token.sha256,
            _joined(token.scopes),
            token.created_at,
            token.expires_at,
            token.used_at,
        )
        self._db.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def meet(self, user: User) -> User:
        """Note somebody from outside."""
        try:
            with self._faults(), _Transaction(self._db):
                if (known := self.by_id(user.id)) is None:
                    self._insert(replace(user, created_at=time.time()))
                else:
                    self._update(replace(known, name=user.name, rank=user.rank, groups=user.groups))
                return self.by_id(user.id) or user
        except sqlite3.IntegrityError:
            raise PermissionDenied(
                f"the name {user.name} is another identity's at this gateway; its operator frees it with: "
                f"s2cs user remove {user.name}"
            ) from None

    def change(self, user: User) -> None:
        """Give a user another rank, groups, or switch."""
        with self._faults():
            self._update(user)

    def _update(self, user: User) -> None:
        row = (user.name, user.rank, _joined(user.groups), user.disabled, user.id)
        query = "UPDATE users SET name = ?, rank = ?, groups = ?, disabled = ? WHERE id = ?"
        if not self._db.execute(query, row).rowcount:
            raise _unknown(user.name)

    def remove(self, name: str) -> None:
        """Remove a user and its tokens."""
        with self._faults(), _Transaction(self._db):
            row = self._db.execute("SELECT id FROM users WHERE name = ?", (name,)).fetchone()
            if row is None:
                raise _unknown(name)
            self._db.execute("DELETE FROM tokens WHERE user_id = ?", row)
            self._db.execute("DELETE FROM users WHERE id = ?", row)

    def all(self) -> list[User]:
        """All users, by name."""
        with self._faults():
            rows = self._db.execute(f"SELECT {_USER} FROM users ORDER BY name").fetchall()  # noqa: S608
        return [_user(row) for row in rows]

    def by_name(self, name: str) -> User:
        """The user of that name."""
        with self._faults():
            row = self._db.execute(f"SELECT {_USER} FROM users WHERE name = ?", (name,)).fetchone()  # noqa: S608
        if row is None:
            raise _unknown(name)
        return _user(row)

    def by_id(self, id: str) -> User | None:
        """The user of that id."""
        with self._faults():
            row = self._db.execute(f"SELECT {_USER} FROM users WHERE id = ?", (id,)).fetchone()  # noqa: S608
        return _user(row) if row else None

    def by_token(self, sha256: bytes) -> tuple[User, Token] | None:
        """The user whose token has this SHA-256, and the token."""
        query = f"SELECT {_USER}, {_TOKEN} FROM tokens JOIN users ON users.id = user_id WHERE sha256 = ?"  # noqa: S608
        with self._faults():
            row = self._db.execute(query, (sha256,)).fetchone()
        return (_user(row[:7]), _token(row[7:])) if row else None

    def tokens(self, user_id: str) -> list[Token]:
        """A user's tokens, oldest first."""
        query = f"SELECT {_TOKEN} FROM tokens WHERE user_id = ? ORDER BY created_at"  # noqa: S608
        with self._faults():
            return [_token(row) for row in self._db.execute(query, (user_id,)).fetchall()]

    def add_token(self, user_id: str, token: Token) -> None:
        """Give a user another token."""
        with self._faults():
            self._insert_token(user_id, token)

    def end_token(self, token_id: str, at: float = 0.0) -> None:
        """End a token; one that has ended is forgotten."""
        with self._faults():
            if at:
                self._db.execute("UPDATE tokens SET expires_at = min(expires_at, ?) WHERE id = ?", (at, token_id))
            else:
                self._db.execute("DELETE FROM tokens WHERE id = ?", (token_id,))

    def note_uses(self, used: Mapping[str, float]) -> None:
        """Note when tokens and users were last used."""
        rows = [(at, id) for id, at in used.items()]
        with self._faults(), _Transaction(self._db):
            self._db.executemany("UPDATE tokens SET used_at = max(used_at, ?) WHERE id = ?", rows)
            self._db.executemany("UPDATE users SET used_at = max(used_at, ?) WHERE id = ?", rows)


class _Transaction:
    """All of the statements inside, or none."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")


def _joined(words: Iterable[str]) -> str:
    return " ".join(sorted(words))


def _unknown(name: str) -> NotFound:
    return NotFound(f"there is no user {name}; s2cs user list shows who there is")


def _user(row: tuple[Any, ...]) -> User:
    id, name, rank, groups, disabled, created_at, used_at = row
    return User(id, name, Rank(rank), frozenset(groups.split()), bool(disabled), created_at, used_at)


def _token(row: tuple[Any, ...]) -> Token:
    id, sha256, scopes, created_at, expires_at, used_at = row
    return Token(id, sha256, frozenset(scopes.split()), created_at, expires_at, used_at)
