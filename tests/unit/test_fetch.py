"""Issuers that answer too much, too slowly, or something else: what is asked is bounded."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from s2cs.identity import fetch
from s2cs.identity.authenticator import Authenticator, Methods
from s2cs.identity.fetch import Fetcher
from s2cs.identity.introspection import OpaqueMethod
from s2cs.identity.settings import Auth, Introspection
from s2cs.store import SqliteStore
from scistream.errors import FailedPrecondition, Unauthenticated, Unavailable

Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


def whole(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@asynccontextmanager
async def issuer(answer: bytes | Answer) -> AsyncIterator[str]:
    """Somebody who answers every request; the address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = await reader.readuntil(b"\r\n\r\n")
            if callable(answer):
                await answer(asked, writer)
            else:
                writer.write(answer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"


async def got(answer: bytes | Answer) -> object:
    fetcher = Fetcher()
    try:
        async with issuer(answer) as url:
            return await fetcher.get(url)
    finally:
        await fetcher.close()


async def drip(asked: bytes, writer: asyncio.StreamWriter) -> None:
    """One byte now and then, for ever."""
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.05)


async def flood(asked: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b" " * 65536)
        await writer.drain()


async def say_nothing(asked: bytes, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(5)


async def test_a_good_answer() -> None:
    assert await got(whole(b'{"a": 1}')) == {"a": 1}


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (drip, "does not answer within 0.4 s"),
        (say_nothing, "does not answer within 0.4 s"),
        (flood, "more than 262144 bytes"),
        (whole(b"x" * 300_000), "more than 262144 bytes"),
        (whole(gzip.compress(b'{"a": 1}'), "200 OK", "Content-Encoding: gzip"), "does not answer with JSON"),
        (whole(b"", "302 Found", "Location: http://127.0.0.1:1/"), "answers 302"),
        (whole(b"{}", "500 Oh"), "answers 500"),
        (whole(b"[1]"), "JSON object"),
        (whole(b"hello"), "does not answer with JSON"),
        (whole(b"[" * 100_000), "does not answer with JSON"),
        (whole(b"\xff\xfe"), "does not answer with JSON"),
        (b"garbage\r\n\r\n", "cannot be reached"),
        (b"", "cannot be reached"),
    ],
)
async def test_a_bad_answer(monkeypatch: pytest.MonkeyPatch, answer: bytes | Answer, says: str) -> None:
    monkeypatch.setattr(fetch, "_WHOLE_S", 0.4 if callable(answer) and answer is not flood else 10.0)
    with pytest.raises(Unavailable, match=says):
        await got(answer)


@pytest.mark.parametrize("url", ["http://192.0.2.1/", "ftp://127.0.0.1/", "file:///etc/passwd", "None", "", "http://["])
async def test_what_is_not_asked(url: str) -> None:
    fetcher = Fetcher()
    with pytest.raises(Unavailable, match="neither https nor on loopback"):
        await fetcher.get(url)
    await fetcher.close()


async def test_nobody_there() -> None:
    fetcher = Fetcher()
    with pytest.raises(Unavailable, match="cannot be reached"):
        await fetcher.get("http://127.0.0.1:1/")
    await fetcher.close()


@pytest.mark.parametrize("content", [None, "nothing"])
def test_a_ca_that_cannot_be_used(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "ca.crt"
    if content is not None:
        file.write_text(content)
    with pytest.raises(FailedPrecondition, match=r"ca\.crt cannot be used"):
        Fetcher(file)


SHOP = {"name": "shop", "client_id": "g:w", "secret_env": "PATH", "audience": "gw"}


def method(url: str, **changes: object) -> OpaqueMethod:
    settings = {**SHOP, "endpoint": url, **changes}
    return OpaqueMethod(Introspection.model_validate(settings))


async def test_all_who_wait_for_one_answer_ask_once() -> None:
    asked: list[bytes] = []

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        asked.append(request)
        await asyncio.sleep(0.1)
        writer.write(whole(b'{"active": true, "sub": "ada", "username": "ada", "aud": "gw", "exp": 99999999999}'))

    async with issuer(answer) as url:
        shop = method(url)
        first = asyncio.create_task(shop.identify("t"))
        await asyncio.sleep(0.05)
        first.cancel()  # who asked goes away, and the others get the answer
        callers = await asyncio.gather(*(shop.identify("t") for _ in range(50)))
        assert {caller.name for caller in callers} == {"shop:ada"}
        assert len(asked) == 1
        await shop.close()


async def test_a_token_is_checked_to_the_end_while_the_settings_are_read_again(
    tmp_path: Path,
) -> None:
    asked = asyncio.Event()

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await asyncio.sleep(0.1)
        writer.write(whole(b'{"active": true, "sub": "ada", "username": "ada", "aud": "gw", "exp": 99999999999}'))

    async with issuer(answer) as url:
        auth = Auth.model_validate({"introspection": [SHOP | {"endpoint": url}]})
        store = SqliteStore(tmp_path / "s2cs.db")
        authenticator = Authenticator(Methods(auth), store, lambda sha256: False)
        calls = [asyncio.create_task(authenticator.identify(f"Bearer {token}")) for token in "tu"]
        await asked.wait()
        authenticator.adopt(Methods(auth))
        callers = await asyncio.gather(*calls, return_exceptions=True)
        await authenticator.close()
        store.close()
    assert [getattr(caller, "name", caller) for caller in callers] == ["shop:ada", "shop:ada"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"active": false}', "is not good"),
        (b'{"active": "true", "sub": "ada", "aud": "gw", "username": "ada"}', "is not good"),
        (b"{}", "is not good"),
        (b'{"active": true, "sub": "ada", "username": "ada", "exp": 5}', "has expired"),
        (b'{"active": true, "sub": "ada", "username": "ada", "exp": "5"}', "has expired"),
        (b'{"active": true, "sub": "ada", "username": "ada", "exp": NaN}', "has expired"),
        (b'{"active": true, "sub": "ada", "username": "ada", "nbf": 99999999999}', "has expired"),
        (b'{"active": true, "aud": "gw", "username": "ada"}', "does not say whose it is"),
        (
            b'{"active": true, "aud": ["gw"], "sub": "ada"}',
            "claim username of the token of shop has nothing",
        ),
        (b'{"active": true, "sub": "ada", "aud": "gw", "username": ["ada"]}', "has no text for a name"),
        (b'{"active": true, "sub": "ada", "username": "ada", "iss": "https://evil"}', "is of another issuer"),
        (b'{"active": true, "sub": "ada", "username": "ada"}', "is not for this gateway"),
        (b'{"active": true, "sub": "ada", "username": "ada", "aud": ["gw2"]}', "is not for this gateway"),
    ],
)
async def test_an_answer_that_is_not_good_enough(body: bytes, says: str) -> None:
    async with issuer(whole(body)) as url:
        shop = method(url, issuer="https://shop")
        with pytest.raises(Unauthenticated, match=says):
            await shop.identify("t")
        await shop.close()


def test_secrets(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    for mode, content, says in ((0o644, "s", "chmod 600"), (0o600, " \n", "is empty"), (0o600, None, "cannot be read")):
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_text(content)
            file.chmod(mode)
        with pytest.raises(FailedPrecondition, match=says):
            method("https://x", secret_env="", secret_file=file)
    with pytest.raises(FailedPrecondition, match="the environment has no NO_SUCH_VARIABLE"):
        method("https://x", secret_env="NO_SUCH_VARIABLE")
