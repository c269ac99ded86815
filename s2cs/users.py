"""The users of a gateway and their tokens, in its store.

A user has a name, which people and the policy use, and an id, which is never used again: what is owned is owned by the
id, so that a name that was removed and added again is somebody else.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import IntEnum
from math import inf
from typing import Any, Protocol

from scistream.errors import AlreadyExists, NotFound

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

    @classmethod
    def new(cls, name: str, rank: Rank = Rank.USER, groups: Iterable[str] = ()) -> User:
        """Make a user of this gateway's own."""
        return cls(f"local:{secrets.token_hex(8)}", name, rank, frozenset(groups), created_at=time.time())


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

    def all(self) -> list[User]:
        """All users, by name."""
        ...

    def by_id(self, id: str) -> User | None:
        """The user of that id."""
        ...

    def by_token(self, sha256: bytes) -> tuple[User, Token] | None:
        """The user whose token has this SHA-256, and the token."""
        ...


_USER = "users.id, users.name, users.rank, users.groups, users.disabled, users.created_at"
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
        row = (user.id, user.name, user.rank, " ".join(sorted(user.groups)), user.disabled, user.created_at)
        try:
            with self._faults(), _Transaction(self._db):
                self._db.execute("INSERT INTO users VALUES (?, ?, ?, ?, ?, ?)", row)
                self._add_token(user.id, token)
        except sqlite3.IntegrityError:
            raise AlreadyExists(
                f"there is a user {user.name} already; remove it first: s2cs user remove {user.name}"
            ) from None

    def _add_token(self, user_id: str, token: Token) -> None:
        scopes = " ".join(sorted(token.scopes))
        row = (token.id, user_id, token.sha256, scopes, token.created_at, token.expires_at, token.used_at)
        self._db.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def remove(self, name: str) -> None:
        """Remove a user and its tokens."""
        with self._faults(), _Transaction(self._db):
            row = self._db.execute("SELECT id FROM users WHERE name = ?", (name,)).fetchone()
            if row is None:
                raise NotFound(f"there is no user {name}; s2cs user list shows who there is")
            self._db.execute("DELETE FROM tokens WHERE user_id = ?", row)
            self._db.execute("DELETE FROM users WHERE id = ?", row)

    def all(self) -> list[User]:
        """All users, by name."""
        with self._faults():
            rows = self._db.execute(f"SELECT {_USER} FROM users ORDER BY name").fetchall()  # noqa: S608
        return [_user(row) for row in rows]

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
        return (_user(row[:6]), _token(row[6:])) if row else None


class _Transaction:
    """All of the statements inside, or none."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")


def _user(row: tuple[Any, ...]) -> User:
    id, name, rank, groups, disabled, created_at = row
    return User(id, name, Rank(rank), frozenset(groups.split()), bool(disabled), created_at)


def _token(row: tuple[Any, ...]) -> Token:
    id, sha256, scopes, created_at, expires_at, used_at = row
    return Token(id, sha256, frozenset(scopes.split()), created_at, expires_at, used_at)
