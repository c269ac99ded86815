"""A login in a browser here: authorization code with PKCE and a loopback redirect (RFC 7636, 8252, 9207)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode, urlsplit

from s2uc.login.grant import Grant, Terms
from s2uc.login.idtoken import check_id_token
from s2uc.login.issuer import Issuer, refusal
from s2uc.login.prompt import Prompt, Show
from scistream.errors import DeadlineExceeded, FailedPrecondition, PermissionDenied, Unavailable
from scistream.vocabulary import shown

_PATH = "/callback"
_MAX_REQUEST_BYTES = 16 * 1024
_REQUEST_S = 5.0
_PAGE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>SciStream</title>'
    '<body style="font-family:sans-serif;margin:4em auto;max-width:32em"><h1>SciStream</h1><p>{}</p></body></html>'
)


class Landing:
    """The page here that the issuer sends the browser back to. It takes one answer, with the right state."""

    def __init__(self, state: str) -> None:
        self._state = state
        self._answer: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Self:
        try:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_MAX_REQUEST_BYTES)
        except OSError as error:
            raise FailedPrecondition(f"no port can be opened for the browser's answer: {error}; use --device") from None
        self._host = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()  # a browser may hold connections that it opened just in case: they are not waited for

    @property
    def redirect_uri(self) -> str:
        """Where the browser comes back to."""
        return f"http://{self._host}{_PATH}"

    async def answer(self) -> dict[str, str]:
        """Wait for the issuer's answer."""
        return await self._answer

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_S):
                status, text = self._judge((await reader.readuntil(b"\r\n\r\n")).decode("latin-1"))
                body = _PAGE.format(text).encode()
                head = (
                    f"HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
                    "Cache-Control: no-store\r\nReferrer-Policy: no-referrer\r\nConnection: close\r\n"
                    "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n\r\n"
                )
                writer.write(head.encode() + body)
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever that was, the browser can come again
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def _judge(self, request: str) -> tuple[str, str]:
        first, *headers = request.split("\r\n")
        method, _, rest = first.partition(" ")
        target = urlsplit(rest.rpartition(" ")[0])
        hosts = [
            value.strip() for name, _, value in (line.partition(":") for line in headers) if name.lower() == "host"
        ]
        if method != "GET" or target.path != _PATH or hosts != [self._host]:
            return "404 Not Found", "There is nothing here."
        found = parse_qsl(target.query, keep_blank_values=True)
        said = dict(found)
        if len(said) != len(found) or not hmac.compare_digest(said.get("state", "").encode(), self._state.encode()):
            return "400 Bad Request", "This answer is not to the login that waits here. Start again in the terminal."
        if not self._answer.done():
            self._answer.set_result(said)
        return "200 OK", "The answer has arrived. Go back to the terminal; this page can be closed."


async def by_browser(issuer: Issuer, terms: Terms, show: Show, timeout: float, *, start: bool = True) -> Grant:
    """Log in on the issuer's page.

    Args:
        issuer: where.
        terms: what for.
        show: is called once, with the page.
        timeout: seconds that the person has.
        start: start a browser on the page; else the person opens it, on this computer.

    Raises:
        PermissionDenied: the person refused, or the issuer.
        DeadlineExceeded: nobody came.
        Unavailable: the answer is not this issuer's.
    """
    if not issuer.supports("code_challenge_methods", "S256", assumed=True):
        raise FailedPrecondition(f"issuer {issuer.url} has no PKCE with S256; without it a login here is not safe")
    verifier, state, nonce = (secrets.token_urlsafe(48) for _ in range(3))
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    async with Landing(state) as landing:
        query = {
            **terms.form(),
            "response_type": "code",
            "redirect_uri": landing.redirect_uri,
            "scope": " ".join(terms.scopes),
            "state": state,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        if "openid" in terms.scopes:
            query["nonce"] = nonce
        if "offline_access" in terms.scopes:
            query["prompt"] = "consent"  # OpenID Connect gives no refresh token without
        page = issuer.needs("authorization")
        page += ("&" if urlsplit(page).query else "?") + urlencode(query)
        show(Prompt(page, seconds=timeout, opened=start))
        if start:
            threading.Thread(target=_start, args=(page,), name="browser", daemon=True).start()
        try:
            async with asyncio.timeout(timeout):
                said = await landing.answer()
        except TimeoutError:
            raise DeadlineExceeded(
                f"issuer {issuer.url}: nobody logged in within {timeout:g} s; run the login again, or use --device"
            ) from None
        code = _code(issuer, said)
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": landing.redirect_uri}
    answer = await issuer.token(terms, {**form, "code_verifier": verifier})
    if answer.grant is None:
        raise refusal(issuer.url, answer.said)
    if answer.said.get("id_token"):
        await check_id_token(issuer, terms, str(answer.said["id_token"]), nonce)
    return answer.grant


def _code(issuer: Issuer, said: Mapping[str, str]) -> str:
    """Take the code out of an answer, if it is this issuer's: else a code for one would go to another (RFC 9207)."""
    named = said.get("iss")
    expected = issuer.metadata.get("authorization_response_iss_parameter_supported") is True
    if (named is None and expected) or (named is not None and named != issuer.url):
        raise Unavailable(f"issuer {issuer.url}: the answer is signed as {shown(named or 'nobody')}; it is not used")
    if "error" in said:
        raise refusal(issuer.url, said)
    if not said.get("code"):
        raise PermissionDenied(f"issuer {issuer.url}: its answer has no code; log in again")
    return said["code"]


def _start(page: str) -> None:
    # In a process of its own: browsers print what is nobody's business, and some return when they are closed.
    quiet: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    with suppress(OSError):
        subprocess.run([sys.executable, "-m", "webbrowser", page], check=False, start_new_session=True, **quiet)
