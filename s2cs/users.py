"""The users of a gateway and their tokens, in its store.

A user has a name, which people and the policy use, and an id, which is never used again: what is owned is owned by the
id, so that a name that was removed and added again is somebody else.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from math import inf
from typing import Protocol

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
