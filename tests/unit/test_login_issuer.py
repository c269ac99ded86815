"""Issuers that mean ill, or are none: what they say is not followed, kept or shown as it is."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from s2uc.login.browser import by_browser
from s2uc.login.device import by_device
from s2uc.login.grant import Grant, Terms
from s2uc.login.issuer import Issuer, refusal
from scistream.errors import FailedPrecondition, InvalidArgument, ScistreamError, Unavailable

Answer = tuple[int, dict[str, str], bytes]
WELL_KNOWN = "/.well-known/openid-configuration"


@contextmanager
def server(answer: Callable[[str, str], Answer]) -> Iterator[tuple[str, list[str]]]:
    """Run a web server that answers as it is told (own address, path); its address, and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            asked.append(self.path)
            status, headers, body = answer(url, self.path)
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = _serve

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{running.server_port}"
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield url, asked
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


def says(**metadata: Any) -> Callable[[str, str], Answer]:
    """An issuer that says so of itself, where `URL` is its address, and `says` of its endpoints."""
    answers = metadata.pop("answers", {})

    def answer(url: str, path: str) -> Answer:
        content: Any = answers.get(path, {})
        if path == WELL_KNOWN:
            whole = {"issuer": "URL", "token_endpoint": "URL/token", "device_authorization_endpoint": "URL/device"}
            content = json.loads(json.dumps(whole | metadata).replace("URL", url))
        return 200, {"content-type": "application/json"}, json.dumps(content).encode()

    return answer


async def discovered(answer: Callable[[str, str], Answer]) -> list[str]:
    """Ask what an issuer says of itself; what it was asked for."""
    with server(answer) as (url, asked):
        async with Issuer(url, timeout=5):
            pass
        return asked


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ((200, {}, b"<html>"), "no JSON object"),
        ((200, {}, b"[1]"), "no JSON object"),
        ((200, {}, b"[" * 100_000), "no JSON object"),
        ((200, {}, b"{}" + b" " * 2**20), "too much"),
        ((200, {}, b"{}"), "says that it is"),
        ((200, {}, b'{"issuer": "https://other.example"}'), "its answers are not used"),
        ((404, {}, b""), "HTTP status 404"),
        ((302, {"location": "http://169.254.169.254/"}, b""), "HTTP status 302"),
        ((500, {}, b"\x1b[2J"), "HTTP status 500"),
    ],
)
async def test_what_is_no_issuer(answer: Answer, sentence: str) -> None:
    with pytest.raises(Unavailable, match=sentence) as caught:
        await discovered(lambda url, path: answer)
    assert str(caught.value).isprintable()


async def test_the_second_place_is_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    def answer(url: str, path: str) -> Answer:
        found = path == "/.well-known/oauth-authorization-server"
        return (200 if found else 404), {}, json.dumps({"issuer": url}).encode()

    assert len(await discovered(answer)) == 2


@pytest.mark.parametrize("place", ["http://evil.example/token", "file:///etc/passwd", "https://u:p@evil.example/", "x"])
async def test_secrets_are_not_sent_anywhere(place: str) -> None:
    with server(says(token_endpoint=place)) as (url, asked):
        async with Issuer(url) as issuer:
            with pytest.raises(InvalidArgument, match="token endpoint of issuer"):
                await issuer.token(Terms(url, "s2uc"), {"grant_type": "refresh_token", "refresh_token": "secret"})
        assert asked == [WELL_KNOWN]


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"access_token": "", "token_type": "Bearer"},
        {"access_token": 7, "token_type": "Bearer"},
        {"access_token": "a", "token_type": "DPoP"},
        {"access_token": "a\r\nb", "token_type": "Bearer"},
        {"access_token": "a" * 20_000, "token_type": "Bearer"},
        {"access_token": "a", "token_type": "Bearer", "refresh_token": "\x1b[2J"},
        {"access_token": "a", "token_type": "Bearer", "expires_in": "1e300"},
    ],
)
async def test_tokens_that_are_none(said: dict[str, Any]) -> None:
    with server(says(answers={"/token": said})) as (url, _):
        async with Issuer(url) as issuer:
            with pytest.raises(Unavailable, match="issuer http://127"):
                await issuer.token(Terms(url, "s2uc"), {"grant_type": "refresh_token"})


async def test_a_plain_answer_of_tokens() -> None:
    said = {"access_token": "a", "token_type": "bearer", "expires_in": "x", "refresh_token": None}
    with server(says(answers={"/token": said})) as (url, _):
        async with Issuer(url) as issuer:
            answer = await issuer.token(Terms(url, "s2uc"), {"grant_type": "refresh_token"})
            assert answer.grant
            assert (answer.grant.access_token, answer.grant.refresh_token, answer.grant.expires_at) == ("a", "", None)
            assert not await issuer.revoke(answer.grant)  # it has no endpoint for that


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"device_code": "d", "user_code": "U", "verification_uri": "javascript:x", "expires_in": 60},
        {"device_code": "d", "user_code": "U", "verification_uri": "https://a.example/", "expires_in": "soon"},
        {"device_code": "d", "verification_uri": "https://a.example/", "expires_in": 60},
    ],
)
async def test_device_codes_that_are_none(said: dict[str, Any]) -> None:
    with server(says(answers={"/device": said})) as (url, _):
        async with Issuer(url) as issuer:
            with pytest.raises(Unavailable, match="no code as RFC 8628 has it"):
                await by_device(issuer, Terms(url, "s2uc"), lambda prompt: pytest.fail("nothing is to be shown"), 5)


async def test_an_issuer_without_what_a_browser_needs() -> None:
    with server(says(code_challenge_methods_supported=["plain"])) as (url, _):
        async with Issuer(url) as issuer:
            with pytest.raises(FailedPrecondition, match="no PKCE"):
                await by_browser(issuer, Terms(url, "s2uc"), lambda prompt: None, 5, start=False)
    with server(says()) as (url, _):
        async with Issuer(url) as issuer:
            with pytest.raises(FailedPrecondition, match="no authorization endpoint"):
                await by_browser(issuer, Terms(url, "s2uc"), lambda prompt: None, 5, start=False)


@pytest.mark.parametrize("code", ["access_denied", "invalid_grant", "invalid_client", "server_error", "x\x1b[2J", ""])
def test_refusals_are_sentences(code: str) -> None:
    error = refusal("https://a.example", {"error": code, "error_description": "\x07" * 1000})
    assert isinstance(error, ScistreamError)
    assert str(error).isprintable()
    assert len(str(error)) < 500


def test_a_token_of_a_short_life_is_renewed_late_and_of_a_long_one_a_minute_before() -> None:
    short = Grant("a", "r", 1000.0, 1010.0)
    assert (short.fresh(1007.9), short.fresh(1008.1), short.good(1009.9), short.good(1010.1)) == (
        True,
        False,
        True,
        False,
    )
    long = Grant("a", "r", 1000.0, 4600.0)
    assert (long.fresh(4539.0), long.fresh(4541.0)) == (True, False)
    assert Grant("a").fresh(1e9)
