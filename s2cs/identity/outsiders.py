"""What somebody from outside of this gateway is called here, and what they may."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import inf
from typing import Any

from s2cs.auth import Caller
from s2cs.identity.settings import Issuer, Names
from s2cs.users import Rank
from scistream.errors import PermissionDenied, Unauthenticated
from scistream.vocabulary import shown

_WHO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+|/:=~-]{0,127}")
_MOST_GROUPS = 256


def called(method: Names, who: object, where: str) -> str:
    """Give the name that somebody has here: `NAME:WHO`.

    Raises:
        Unauthenticated: WHO is no name that can be shown and written down.
    """
    if not isinstance(who, str) or not _WHO.fullmatch(who):
        found = shown(who) if isinstance(who, str) else "nothing" if who is None else "no text"
        raise Unauthenticated(
            f"{where} has {found} for a name, and names here are 1 to 128 letters, digits and . _ @ + | / : = ~ -"
        )
    return f"{method.name}:{who}"


def rank(method: Names, who: str) -> Rank:
    """Give the rank of WHO by name."""
    return Rank.ADMIN if who in method.admins else Rank.OPERATOR if who in method.operators else Rank.USER


def caller_of(method: Issuer, claims: Mapping[str, Any], leeway: float = 0) -> Caller:
    """Make the caller that a token's claims speak of, when the token itself is good.

    Args:
        method: whose token it is.
        claims: what it says.
        leeway: seconds that it is good for after its end.

    Raises:
        Unauthenticated: a claim is missing, or cannot be used.
        PermissionDenied: the token is not for this.
    """
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 1 <= len(subject) <= 255 or not subject.isprintable():
        raise Unauthenticated(f"the token of {method.name} does not say whose it is: it has no usable claim sub")
    who = claims.get(method.username_claim)
    name = called(method, who, f"claim {method.username_claim} of the token of {method.name}")
    granted = words(claims.get("scope", claims.get("scp")))
    if missing := [scope for scope in method.required_scopes if scope not in granted]:
        raise PermissionDenied(
            f"the token of {method.name} lacks the scope {', '.join(missing)}; log in again and ask for it"
        )
    groups = words(claims.get(method.groups_claim)) if method.groups_claim else frozenset()
    role = max(rank(method, str(who)), _rank_of_groups(method, groups))
    scopes = _scopes(method, granted, role)
    return Caller(
        name,
        f"{method.kind}:{method.name}:{subject}",
        role if "admin" in scopes else Rank.USER,
        frozenset(f"{method.name}:{group}" for group in sorted(groups)[:_MOST_GROUPS] if _WHO.fullmatch(group)),
        scopes,
        method.kind,
        _end(claims.get("exp"), leeway),
    )


def words(claim: object) -> frozenset[str]:
    """Read a claim that is a list of texts, or a text of words."""
    if isinstance(claim, str):
        return frozenset(claim.split())
    return frozenset(each for each in claim if isinstance(each, str)) if isinstance(claim, list) else frozenset()


def _rank_of_groups(method: Issuer, groups: frozenset[str]) -> Rank:
    if groups & frozenset(method.admin_groups):
        return Rank.ADMIN
    return Rank.OPERATOR if groups & frozenset(method.operator_groups) else Rank.USER


def _scopes(method: Issuer, granted: frozenset[str], role: Rank) -> frozenset[str]:
    if not method.grants:
        return frozenset(["sessions", "read", *(["admin"] if role > Rank.USER else [])])
    scopes = frozenset(ours for theirs, some in method.grants.items() if theirs in granted for ours in some)
    if not scopes:
        raise PermissionDenied(
            f"the token of {method.name} has none of the scopes that are for something here; log in again and ask "
            f"for one of {', '.join(method.grants)}"
        )
    return scopes


def _end(claim: Any, leeway: float) -> float:
    try:
        return float(claim) + leeway
    except (TypeError, ValueError, OverflowError):
        return inf  # none, or later than can be told
