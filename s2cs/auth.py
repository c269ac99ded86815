"""Who is calling: a user by token, or an application by the key of its session."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from s2cs.store import Store
from scistream.errors import InvalidArgument, Unauthenticated
from scistream.vocabulary import shown

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,62}")
_NOBODY = ("", "INVALID_TOKEN")  # what clients send that have none


@dataclass(frozen=True, slots=True)
class Caller:
    """A user of this gateway."""

    name: str
    admin: bool = False


@dataclass(frozen=True, slots=True)
class KeyHolder:
    """Somebody with credentials that are no user's: perhaps the key of one session, known by its SHA-256."""

    key_sha256: bytes

    def opens(self, hello_key_sha256: bytes) -> bool:
        """True when this is the key of a session whose REQ brought that hash."""
        return bool(hello_key_sha256) and hmac.compare_digest(self.key_sha256, hello_key_sha256)


def user_only(caller: Caller | KeyHolder) -> Caller:
    """Give the caller back if it is a user.

    Raises:
        Unauthenticated: it has a key, or a token that is nobody's.
    """
    if isinstance(caller, KeyHolder):
        raise Unauthenticated("the token is not a user's at this gateway; ask its operator for one")
    return caller


def digest(token: str) -> bytes:
    """Hash a token for keeping. Tokens have 256 random bits, so no salt and no slow hash are needed."""
    return hashlib.sha256(token.encode()).digest()


def new_token() -> str:
    """Make a token of 256 random bits."""
    return "s2t_" + secrets.token_urlsafe(32)


def check_user_name(name: str) -> str:
    """Give the name back when it can be a user's.

    Raises:
        InvalidArgument: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise InvalidArgument(f"user name {shown(name)} is not 1 to 63 letters, digits and . _ @ + -")
    return name


def identify(store: Store, authorization: str) -> Caller | KeyHolder:
    """Find out who calls, from the metadata `authorization`: `Bearer TOKEN`, or the bare token.

    Raises:
        Unauthenticated: there are no credentials.
    """
    token = authorization.removeprefix("Bearer ").strip()
    if token in _NOBODY:
        raise Unauthenticated("this gateway wants a token; add one with: s2uc login GATEWAY --token-file FILE")
    user = store.user_by_token(digest(token))
    return Caller(user.name, user.admin) if user else KeyHolder(digest(token))
