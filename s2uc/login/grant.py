"""What a login is about, and what came of it."""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

from scistream.errors import InvalidArgument
from scistream.vocabulary import printable, shown

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_OF_NOBODY = {"openid", "offline_access", "profile", "email"}  # scopes that no gateway goes by
_TOKEN = re.compile(r"[\x21-\x7e]{1,12288}")  # a gateway takes 16 kB of metadata
_LATEST = 2.0**35  # seconds: the year 3058
_MARGIN_S = 60.0  # a token is renewed so long before its end, or at four fifths of a short life


def check_url(url: str, what: str, http: bool = True) -> str:
    """Give a URL back that secrets may be sent to: https, or http on this computer where `http` allows it.

    Raises:
        InvalidArgument: it is none.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host = ""
    safe = host and (parts.scheme == "https" or (http and parts.scheme == "http" and host in _LOOPBACK))
    if not safe or parts.username is not None or parts.fragment or not printable(url) == url:
        raise InvalidArgument(f"{what} {shown(url)} is not an https address (http only for this computer itself)")
    return url


@dataclass(frozen=True, slots=True)
class Terms:
    """What is asked for at an issuer.

    Args:
        issuer: its URL, https unless on this computer.
        client_id: what the issuer calls `s2uc`.
        scopes: what the token is to allow.
        audience: who the token is for; empty leaves that to the issuer.
        device_flow: whether a login may be finished on another device.
    """

    issuer: str
    client_id: str
    scopes: tuple[str, ...] = ()
    audience: str = ""
    device_flow: bool = True

    def __post_init__(self) -> None:
        if urlsplit(check_url(self.issuer, "issuer")).query:
            raise InvalidArgument(f"issuer {shown(self.issuer)} has a query; leave it out")
        if not self.client_id:
            raise InvalidArgument(f"the client id at issuer {self.issuer} is not known; give it with --client-id")
        for text in (self.client_id, self.audience, *self.scopes):
            if not text.isprintable():
                raise InvalidArgument(f"{shown(text)} has characters that cannot be printed; leave them out")

    @property
    def power(self) -> tuple[str, object]:
        """What tells whether two gateways would take the same tokens."""
        return self.issuer.rstrip("/"), self.audience or frozenset(self.scopes) - _OF_NOBODY

    def form(self) -> dict[str, str]:
        """Give what every request of a token says; `resource` is RFC 8707, `audience` what others take."""
        found = {"client_id": self.client_id}
        if self.audience:
            found["audience"] = self.audience
            if urlsplit(self.audience).scheme and "#" not in self.audience:
                found["resource"] = self.audience
        return found


@dataclass(frozen=True, slots=True)
class Grant:
    """The tokens of a login; one that somebody gave by hand has no issuer.

    `obtained_at` and `expires_at` are seconds of the wall clock; None does not end.
    """

    access_token: str = field(repr=False)
    refresh_token: str = field(default="", repr=False)
    obtained_at: float = 0.0
    expires_at: float | None = None
    issuer: str = ""
    client_id: str = ""
    scopes: tuple[str, ...] = ()
    audience: str = ""

    def __post_init__(self) -> None:
        if not _TOKEN.fullmatch(self.access_token) or (self.refresh_token and not _TOKEN.fullmatch(self.refresh_token)):
            raise InvalidArgument("a token is not one line of printable characters, or is too long for a gateway")
        if not all(0 <= at <= _LATEST for at in (self.obtained_at, self.expires_at or 0.0)):
            raise InvalidArgument("a token is good until a time that no clock shows")

    @property
    def terms(self) -> Terms:
        """What was asked for."""
        return Terms(self.issuer, self.client_id, self.scopes, self.audience)

    def good(self, now: float | None = None) -> bool:
        """True when it has not ended."""
        return self.expires_at is None or (now or time.time()) < self.expires_at

    def fresh(self, now: float | None = None) -> bool:
        """True when it is good and will be for a while."""
        if self.expires_at is None:
            return True
        margin = min(_MARGIN_S, (self.expires_at - self.obtained_at) / 5)
        return (now or time.time()) < self.expires_at - margin

    def as_dict(self) -> dict[str, Any]:
        """Give what is kept."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Read what was kept.

        Raises:
            InvalidArgument: it is something else.
        """
        try:
            ends = content["expires_at"]
            return cls(
                str(content["access_token"]),
                str(content["refresh_token"]),
                float(content["obtained_at"]),
                None if ends is None else float(ends),
                str(content["issuer"]),
                str(content["client_id"]),
                tuple(str(scope) for scope in content["scopes"]),
                str(content["audience"]),
            )
        except (KeyError, TypeError, ValueError):
            raise InvalidArgument("what is kept of the login is damaged") from None
