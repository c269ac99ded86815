"""Users and tokens in SQLite."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from s2cs.users import Rank, Token, User
from scistream.errors import AlreadyExists, NotFound, PermissionDenied

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
            with self._faults(), Transaction(self._db):
                self._insert(user)
                self._insert_token(user.id, token)
        except sqlite3.IntegrityError:
            raise AlreadyExists(
                f"there is a user {user.name} already; for one more token: s2cs user token add {user.name}; "
                f"for another role or groups: s2cs user change {user.name}"
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
            with self._faults(), Transaction(self._db):
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
        with self._faults(), Transaction(self._db):
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
        with self._faults(), Transaction(self._db):
            self._db.executemany("UPDATE tokens SET used_at = max(used_at, ?) WHERE id = ?", rows)
            self._db.executemany("UPDATE users SET used_at = max(used_at, ?) WHERE id = ?", rows)


class Transaction:
    """All of the statements inside, or none."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:  # SQLite ends some by itself, as on a full disk
                self._db.execute("ROLLBACK")


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
