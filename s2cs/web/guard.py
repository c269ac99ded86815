"""What every request to the page has to pass, whoever it is from, and what every answer carries.

The page of another site may make a browser send anything here. So a Host that is not this gateway's is refused (a name
of somebody else's that leads here: DNS rebinding), and what changes something has to come from the page itself.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Collection
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scistream.errors import InvalidArgument

OWN_HEADER = "x-scistream"  # no form and no link can send it
MOST_BODY = 16 * 1024  # bytes; a token is the longest thing that is ever sent
_MOST_HEAD = 16 * 1024  # bytes; the listener bounds only what comes in pieces
_HOST = re.compile(r"(?:([A-Za-z0-9._-]+?)\.?|\[([0-9A-Fa-f:.]+)\])(?::[0-9]{1,5})?")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Guard:
    """Refuse what no page of this gateway sends.

    Args:
        app: what is behind.
        names: gives the hosts that this gateway is called by, beside loopback.
    """

    def __init__(self, app: ASGIApp, names: Callable[[], Collection[str]]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        if refusal := self._refusal(scope, Headers(scope=scope)):
            await refused(*refusal)(scope, receive, sealed)
        else:
            await self._app(scope, receive, sealed)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        head = (
            len(scope["raw_path"])
            + len(scope["query_string"])
            + sum(len(name) + len(value) for name, value in headers.raw)
        )
        if head > _MOST_HEAD:
            return 431, f"what is before the body is too long; send at most {_MOST_HEAD} bytes"
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_ours(_host_of(hosts[0])):
            return 421, "this gateway is not called that; use an address of it, or a name of its certificate"
        if scope["query_string"]:
            return 400, "nothing goes after a ? here, and a token never: addresses are written down in many places"
        if headers.get("authorization"):
            return 400, "the page takes no authorization of its own; programs use the control port"
        if scope["method"] in ("GET", "HEAD"):
            return None
        if headers.get("origin") != f"{scope['scheme']}://{hosts[0]}" or OWN_HEADER not in headers:
            return 403, "only the page of this gateway may ask for that"
        if headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return 403, "only the page of this gateway may ask for that"
        if int(headers.get("content-length", "0")) > MOST_BODY:
            return 413, f"that is too long; send at most {MOST_BODY} bytes"
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            if ipaddress.ip_address(host).is_loopback:  # an address, which no name can lead to
                return True
        except ValueError:
            pass
        names = self._names()
        return host == "localhost" or host in names or f"*.{host.partition('.')[2]}" in names


def _host_of(header: str) -> str:
    """Give the host of a Host header in lower case, without port and brackets; empty where it is none."""
    found = _HOST.fullmatch(header)
    return (found[1] or found[2]).lower() if found else ""


def refused(status: int, words: str) -> JSONResponse:
    """Answer that something was not done, and why."""
    return JSONResponse({"error": words}, status)


async def sent(request: Request) -> dict[str, Any]:
    """Read what the page sends.

    Raises:
        InvalidArgument: it is too long, or no JSON object of texts and switches.
    """
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > MOST_BODY:
                raise InvalidArgument(f"that is too long; send at most {MOST_BODY} bytes")
    except ClientDisconnect:
        raise InvalidArgument("the end of what was sent is missing; send it again") from None
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str | bool) for value in found.values()):
        raise InvalidArgument("what was sent is no JSON object of texts and switches; send one")
    return found
