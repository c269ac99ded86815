"""Users and tokens in etcd: a user by its id, its name so that it is one user's only, tokens by their hash."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from math import inf
from typing import Any, Protocol

from s2cs.replicas.etcd import Entry
from s2cs.users import Rank, Token, User
from scistream.errors import AlreadyExists, NotFound, PermissionDenied, TryAgain

_AT_ONCE = 50  # keys in one change; etcd takes 128 by default
_ATTEMPTS = 5  # somebody else may change the same


class Write(Protocol):
    """Write keys if others are as they were; False when they are not."""

    def __call__(self, values: Mapping[str, bytes | None], so_far: Mapping[str, int] | None = None) -> bool: ...


class EtcdUsers:
    """Keep users in the shared store. See `s2cs.users.Users`.

    Args:
        get: gives what a key has.
        under: gives what a folder has.
        write: writes keys, all or none.
    """

    def __init__(
        self, get: Callable[[str], Entry | None], under: Callable[[str], dict[str, Entry]], write: Write
    ) -> None:
        self._get = get
        self._under = under
        self._write = write

    def add(self, user: User, token: Token) -> None:
        """Add a user with a first token."""
        keys = {**_user_keys(user), _token_key(token.sha256): _dump_token(user.id, token)}
        if not self._write(keys, dict.fromkeys(keys, 0)):
            found = self._named(user.name)
            if found is None or found.id != user.id:  # or an earlier attempt's answer was lost
                raise AlreadyExists(
                    f"there is a user {user.name} already; for one more token: s2cs user token add {user.name}; "
                    f"for another role or groups: s2cs user change {user.name}"
                )

    def meet(self, user: User) -> User:
        """Note somebody from outside."""
        for _ in range(_ATTEMPTS):
            if (holder := self._get(f"names/{user.name}")) is not None and holder.value.decode() != user.id:
                raise PermissionDenied(
                    f"the name {user.name} is another identity's at this gateway; its operator frees it with: "
                    f"s2cs user remove {user.name}"
                )
            entry = self._get(f"users/{user.id}")
            if entry is None:
                met = replace(user, created_at=time.time())
            else:
                known = _load_user(user.id, entry)
                met = replace(known, name=user.name, rank=user.rank, groups=user.groups)
            if self._replace(met, entry, holder):
                return met
        raise _busy(user.name)

    def change(self, user: User) -> None:
        """Give a user another rank, groups, or switch."""
        for _ in range(_ATTEMPTS):
            if (entry := self._get(f"users/{user.id}")) is None:
                raise _unknown(user.name)
            known = _load_user(user.id, entry)
            changed = replace(known, name=user.name, rank=user.rank, groups=user.groups, disabled=user.disabled)
            if self._replace(changed, entry, self._get(f"names/{user.name}")):
                return
        raise _busy(user.name)

    def _replace(self, user: User, entry: Entry | None, holder: Entry | None) -> bool:
        """Write a user in place of what was known, and give its former name free."""
        values = _user_keys(user)
        so_far = {f"users/{user.id}": entry.changed if entry else 0, f"names/{user.name}": _changed(holder)}
        if entry is not None and (before := _load_user(user.id, entry).name) != user.name:
            values[f"names/{before}"] = None
        return self._write(values, so_far)

    def remove(self, name: str) -> None:
        """Remove a user and its tokens."""
        user = self.by_name(name)
        tokens = [key for key, found in self._tokens() if found["user"] == user.id]
        for some in _parts(tokens):  # before its user: what is left of them if this is interrupted is nobody's
            self._write(dict.fromkeys(some))
        self._write(dict.fromkeys([f"users/{user.id}", f"names/{name}"]))

    def all(self) -> list[User]:
        """All users, by name."""
        found = (_load_user(id, entry) for id, entry in self._under("users").items())
        return sorted(found, key=lambda user: user.name)

    def by_name(self, name: str) -> User:
        """The user of that name."""
        if (user := self._named(name)) is None:
            raise _unknown(name)
        return user

    def _named(self, name: str) -> User | None:
        holder = self._get(f"names/{name}")
        return self.by_id(holder.value.decode()) if holder else None

    def by_id(self, id: str) -> User | None:
        """The user of that id."""
        entry = self._get(f"users/{id}")
        return _load_user(id, entry) if entry else None

    def by_token(self, sha256: bytes) -> tuple[User, Token] | None:
        """The user whose token has this SHA-256, and the token."""
        if (entry := self._get(_token_key(sha256))) is None:
            return None
        found = json.loads(entry.value)
        user = self.by_id(found["user"])
        return (user, _load_token(sha256, found)) if user else None

    def tokens(self, user_id: str) -> list[Token]:
        """A user's tokens, oldest first."""
        mine = [_load_token(_sha256(key), found) for key, found in self._tokens() if found["user"] == user_id]
        return sorted(mine, key=lambda token: token.created_at)

    def add_token(self, user_id: str, token: Token) -> None:
        """Give a user another token."""
        key = _token_key(token.sha256)
        self._write({key: _dump_token(user_id, token)}, {key: 0})  # it is there: an earlier attempt's answer was lost

    def end_token(self, token_id: str, at: float = 0.0) -> None:
        """End a token; one that has ended is forgotten."""
        for key, found in self._tokens():
            if found["id"] == token_id:
                ended = found | {"expires_at": min(_number(found["expires_at"]), at)}
                self._write({key: _json(ended) if at else None})

    def note_uses(self, used: Mapping[str, float]) -> None:
        """Note when tokens and users were last used; what others change at this moment is noted another time."""
        keys = {f"users/{id}": at for id, at in used.items()}
        keys |= {key: used[found["id"]] for key, found in self._tokens() if found["id"] in used}
        for some in _parts(list(keys)):
            values: dict[str, bytes | None] = {}
            so_far = {}
            for key in some:
                if (entry := self._get(key)) is not None and (found := json.loads(entry.value))["used_at"] < keys[key]:
                    values[key], so_far[key] = _json(found | {"used_at": keys[key]}), entry.changed
            if values:
                self._write(values, so_far)

    def _tokens(self) -> Iterable[tuple[str, dict[str, Any]]]:
        return [(f"tokens/{name}", json.loads(entry.value)) for name, entry in self._under("tokens").items()]


def _parts(keys: list[str]) -> Iterable[list[str]]:
    """Give as many at a time as etcd takes at once."""
    return (keys[begin : begin + _AT_ONCE] for begin in range(0, len(keys), _AT_ONCE))


def _changed(entry: Entry | None) -> int:
    return entry.changed if entry else 0


def _user_keys(user: User) -> dict[str, bytes | None]:
    body = {
        "name": user.name,
        "rank": int(user.rank),
        "groups": sorted(user.groups),
        "disabled": user.disabled,
        "created_at": user.created_at,
        "used_at": user.used_at,
    }
    return {f"users/{user.id}": _json(body), f"names/{user.name}": user.id.encode()}


def _load_user(id: str, entry: Entry) -> User:
    found = json.loads(entry.value)
    groups = frozenset(found["groups"])
    return User(
        id, found["name"], Rank(found["rank"]), groups, found["disabled"], found["created_at"], found["used_at"]
    )


def _token_key(sha256: bytes) -> str:
    return f"tokens/{sha256.hex()}"


def _sha256(key: str) -> bytes:
    return bytes.fromhex(key.removeprefix("tokens/"))


def _dump_token(user_id: str, token: Token) -> bytes:
    return _json(
        {
            "id": token.id,
            "user": user_id,
            "scopes": sorted(token.scopes),
            "created_at": token.created_at,
            "expires_at": token.expires_at,
            "used_at": token.used_at,
        }
    )


def _load_token(sha256: bytes, found: Mapping[str, Any]) -> Token:
    scopes, expires_at = frozenset(found["scopes"]), _number(found["expires_at"])
    return Token(found["id"], sha256, scopes, found["created_at"], expires_at, found["used_at"])


def _json(found: Mapping[str, Any]) -> bytes:
    """Write values; never is no number of JSON."""
    plain = {name: None if value == inf else value for name, value in found.items()}
    return json.dumps(plain, allow_nan=False).encode()


def _number(found: float | None) -> float:
    return inf if found is None else found


def _unknown(name: str) -> NotFound:
    return NotFound(f"there is no user {name}; s2cs user list shows who there is")


def _busy(name: str) -> TryAgain:
    return TryAgain(f"user {name} is being changed by somebody else; ask again")
