"""Who is calling: a user, or an application by the key of its session."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from math import inf

from s2cs.users import SCOPES, Rank
from scistream.errors import InvalidArgument, PermissionDenied, Unauthenticated
from scistream.machine import Owner
from scistream.vocabulary import shown

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,62}")
WITHOUT_TOKEN = "none"  # noqa: S105 - the method of a caller without credentials
_NO_TOKEN = "INVALID_TOKEN"  # noqa: S105 - what old clients send that have none
TOKEN_PREFIX = "s2t_"  # noqa: S105 - by which a token of a gateway is known


@dataclass(frozen=True, slots=True)
class Caller:
    """A user, of this gateway or from outside, and what its credentials are good for."""

    name: str  # what is shown, and what the policy names
    id: str  # what owns sessions; a name that is removed and added again has another
    role: Rank = Rank.USER  # towards others' sessions, with these credentials
    groups: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset(SCOPES)
    method: str = "token"
    expires_at: float = inf  # wall clock

    @property
    def admin(self) -> bool:
        """True when everything is allowed."""
        return self.role is Rank.ADMIN

    @property
    def operator(self) -> bool:
        """True when others' sessions may be listed, watched and released."""
        return self.role >= Rank.OPERATOR

    @property
    def owner(self) -> Owner:
        """The caller as the owner of a session."""
        return Owner(self.id, self.name, self.groups)

    def needs(self, scope: str) -> Caller:
        """Give the caller back if its credentials are for this.

        Raises:
            PermissionDenied: they are not.
        """
        if scope and scope not in self.scopes and not (scope == "read" and "sessions" in self.scopes):
            raise PermissionDenied(f"this needs credentials with the scope {scope}; yours have {_listed(self.scopes)}")
        return self


@dataclass(frozen=True, slots=True)
class KeyHolder:
    """Somebody with credentials that are no user's: perhaps the key of one session, known by its SHA-256."""

    key_sha256: bytes


class KeptOut(PermissionDenied):
    """A user that is known, and disabled."""

    def __init__(self, caller: Caller) -> None:
        """Say so; the record of the refusal names the caller."""
        super().__init__(f"{caller.name} is disabled at this gateway; ask its operator why")
        self.caller = caller


def user_only(caller: Caller | KeyHolder) -> Caller:
    """Give the caller back if it is a user.

    Raises:
        Unauthenticated: it has a key, or a token that is nobody's.
    """
    if isinstance(caller, KeyHolder):
        raise Unauthenticated("the token is not a user's at this gateway; ask its operator for one")
    return caller


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def digest(token: str) -> bytes:
    """Hash a token for keeping. Tokens have 256 random bits, so no salt and no slow hash are needed."""
    return hashlib.sha256(token.encode()).digest()


def new_token() -> str:
    """Make a token of 256 random bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def check_name(name: str, what: str = "user") -> str:
    """Give the name back when it can be a user's, or a group's.

    Raises:
        InvalidArgument: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise InvalidArgument(f"{what} name {shown(name)} is not 1 to 63 letters, digits and . _ @ + -")
    return name


def bearer(authorization: str) -> str:
    """Give the token of the metadata `authorization`: `Bearer TOKEN`, or the bare token; empty when it is none."""
    token = authorization.strip()
    if not is_bare(token):
        token = token.partition(" ")[2].strip()
    return "" if token == _NO_TOKEN else token


def is_bare(authorization: str) -> bool:
    """Tell whether a token has no scheme before it."""
    return authorization.strip().partition(" ")[0].lower() != "bearer"
