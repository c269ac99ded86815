"""The ways to log in, each with a real provider and somebody who acts on its pages."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import httpx
import pytest

from s2uc.blocking import wait_for
from s2uc.config import KnownGateway, UserConfig
from s2uc.login.aio import Wish, log_in
from s2uc.login.browser import by_browser
from s2uc.login.device import by_device
from s2uc.login.grant import Grant, Terms
from s2uc.login.idtoken import check_id_token
from s2uc.login.issuer import Issuer
from s2uc.login.kept import Kept
from s2uc.login.prompt import Prompt, has_browser
from s2uc.login.vault import vault
from scistream.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    ScistreamError,
    Unauthenticated,
    Unavailable,
)
from scistream.vocabulary import Endpoint
from tests.support.provider import Browser, Provider, provider

OPAQUE = "urn:opaque"


@pytest.fixture(scope="module")
def issuer() -> Iterator[Provider]:
    with provider(resources={OPAQUE: {"format": "opaque"}}) as running:
        yield running


def terms(issuer: Provider, **changes: Any) -> Terms:
    asked = Terms(issuer.issuer, "s2uc", ("openid", "sessions", "offline_access"), OPAQUE)
    return replace(asked, **changes)


class Person:
    """Somebody who is shown what to do, and does it meanwhile."""

    def __init__(self, act: Callable[[Prompt], Any]) -> None:
        self._act = act
        self.prompt: Prompt | None = None

    def __call__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self._thread = threading.Thread(target=self._act, args=(prompt,))
        self._thread.start()

    def done(self) -> None:
        if self.prompt:
            self._thread.join(20)


async def in_browser(issuer: Provider, act: Callable[[str], Any], timeout: float = 20, **changes: Any) -> Grant:
    person = Person(lambda prompt: act(prompt.page))
    try:
        async with Issuer(issuer.issuer) as found:
            return await by_browser(found, terms(issuer, **changes), person, timeout, start=False)
    finally:
        await asyncio.to_thread(person.done)


async def on_device(issuer: Provider, act: Callable[[Prompt], Any], timeout: float = 20, **changes: Any) -> Grant:
    person = Person(act)
    try:
        async with Issuer(issuer.issuer) as found:
            return await by_device(found, terms(issuer, **changes), person, timeout)
    finally:
        await asyncio.to_thread(person.done)


# In a browser


async def test_a_browser_brings_tokens_for_the_audience(issuer: Provider) -> None:
    pages: list[str] = []
    grant = await in_browser(issuer, lambda page: pages.append(Browser("ada").finish(page).text))
    found = issuer.introspect(grant.access_token)
    assert (found["active"], found["sub"], found["aud"]) == (True, "ada", OPAQUE)
    assert grant.refresh_token
    assert grant.expires_at == pytest.approx(time.time() + 3600, abs=30)
    assert "can be closed" in pages[0]
    assert grant.access_token not in repr(grant)


async def test_a_login_asks_with_pkce_state_and_nonce(issuer: Provider) -> None:
    seen: list[dict[str, str]] = []

    def act(page: str) -> None:
        seen.append(dict(parse_qsl(urlsplit(page).query)))
        Browser().finish(page)

    await in_browser(issuer, act)
    await in_browser(issuer, act)
    for asked in seen:
        assert asked["code_challenge_method"] == "S256"
        assert asked["redirect_uri"].startswith("http://127.0.0.1:")
        assert asked["resource"] == OPAQUE
    for secret in ("state", "nonce", "code_challenge"):
        assert seen[0][secret] != seen[1][secret]
        assert len(seen[0][secret]) >= 43


async def test_somebody_who_refuses(issuer: Provider) -> None:
    with pytest.raises(PermissionDenied, match="refused on its page"):
        await in_browser(issuer, Browser(consents=False).finish)


def changed(url: str, **query: str | None) -> str:
    """Give a URL with other values in its query; None leaves one out."""
    parts = urlsplit(url)
    found = {key: value for key, value in (dict(parse_qsl(parts.query)) | query).items() if value is not None}
    return urlunsplit(parts._replace(query=urlencode(found)))


async def test_an_answer_that_is_none_is_passed_over(issuer: Provider) -> None:
    statuses: list[int] = []

    def get(url: str, **options: Any) -> None:
        statuses.append(httpx.get(url, trust_env=False, **options).status_code)

    def act(page: str) -> None:
        back = Browser("grace").leave(page)
        get(changed(back, state="guessed"))
        get(changed(back, state=None))
        get(back + "&state=twice")
        get(back.replace("/callback", "/favicon.ico"))
        get(back, headers={"host": "evil.example"})
        statuses.append(httpx.post(back, trust_env=False).status_code)
        get(back)

    grant = await in_browser(issuer, act)
    assert statuses == [400, 400, 400, 404, 404, 404, 200]
    assert issuer.introspect(grant.access_token)["sub"] == "grace"


@pytest.mark.parametrize("iss", ["http://127.0.0.1:1", None])
async def test_an_answer_of_another_issuer_is_not_used(issuer: Provider, iss: str | None) -> None:
    asked = issuer.counts()["/token"]
    with pytest.raises(Unavailable, match="not used"):
        await in_browser(issuer, lambda page: httpx.get(changed(Browser().leave(page), iss=iss), trust_env=False))
    assert issuer.counts()["/token"] == asked


async def test_a_code_that_is_made_up(issuer: Provider) -> None:
    with pytest.raises(Unauthenticated, match="login is over"):
        await in_browser(issuer, lambda page: httpx.get(changed(Browser().leave(page), code="x"), trust_env=False))


async def test_nobody_comes(issuer: Provider) -> None:
    with pytest.raises(DeadlineExceeded, match=r"nobody logged in within 0\.2 s"):
        await in_browser(issuer, lambda page: None, timeout=0.2)


async def test_a_client_that_the_issuer_does_not_know(issuer: Provider) -> None:
    with pytest.raises(PermissionDenied, match="check the client id"):
        await on_device(issuer, lambda prompt: None, client_id="nobody")


async def test_an_id_token_is_of_this_login_for_us_and_whole(issuer: Provider) -> None:
    token = issuer.tokens("ada")["id_token"]  # of another login, which has no nonce
    head, body, signature = token.split(".")
    async with Issuer(issuer.issuer) as found:
        for bad, who, sentence in [
            (token, "s2uc", "of another login"),
            (token, "gateway", "does not hold"),
            (f"{head}.{body}.{signature[::-1]}", "s2uc", "does not hold"),
            (f"{head}.{body}.", "s2uc", "does not hold"),
            ("x", "s2uc", "does not hold"),
        ]:
            with pytest.raises(Unavailable, match=sentence):
                await check_id_token(found, terms(issuer, client_id=who), bad, "nonce")


# On a device


async def test_a_code_is_typed_on_another_device(issuer: Provider) -> None:
    shown: list[Prompt] = []

    def act(prompt: Prompt) -> None:
        shown.append(prompt)
        Browser("grace").open(prompt.complete)

    grant = await on_device(issuer, act)
    assert issuer.introspect(grant.access_token)["sub"] == "grace"
    [prompt] = shown
    assert prompt.page == f"{issuer.issuer}/device"
    assert prompt.code in str(prompt)
    assert grant.refresh_token


async def test_somebody_who_refuses_on_a_device(issuer: Provider) -> None:
    with pytest.raises(PermissionDenied, match="refused on its page"):
        await on_device(issuer, lambda prompt: Browser(consents=False).open(prompt.complete))


async def test_a_device_code_that_ends(issuer: Provider) -> None:
    with pytest.raises(DeadlineExceeded, match="nobody logged in within 1 s"):
        await on_device(issuer, lambda prompt: None, timeout=1)
    with provider(deviceCodeTtl=2) as quick, pytest.raises(DeadlineExceeded, match="within 2 s"):
        await on_device(quick, lambda prompt: None)


# Issuers that are none


async def test_an_issuer_that_is_out_of_order() -> None:
    with provider() as broken:
        broken.set(outage="error")
        with pytest.raises(Unavailable, match="HTTP status 503"):
            await in_browser(broken, Browser().finish)
        broken.set(outage="hang")
        with pytest.raises(Unavailable, match="does not answer"):
            async with Issuer(broken.issuer, timeout=0.3):
                pass
    with pytest.raises(Unavailable, match="cannot be reached"):
        async with Issuer(broken.issuer):
            pass


async def test_an_issuer_that_says_it_is_another(issuer: Provider) -> None:
    with pytest.raises(Unavailable, match="not used"):
        async with Issuer(issuer.issuer.replace("127.0.0.1", "localhost")):
            pass


@pytest.mark.parametrize(
    "url",
    ["http://issuer.example", "ftp://127.0.0.1", "https://", "https://u:p@issuer.example", "issuer", "https://a\n", ""],
)
def test_an_issuer_has_to_be_safe(url: str) -> None:
    with pytest.raises(InvalidArgument, match="is not an https address"):
        Terms(url, "s2uc")


def test_a_terminal_without_a_browser() -> None:
    assert not has_browser({"SSH_CONNECTION": "x", "DISPLAY": ":10"})
    assert has_browser({"SSH_CONNECTION": "x", "BROWSER": "firefox"})
    if sys.platform == "linux":
        assert not has_browser({})
        assert has_browser({"DISPLAY": ":0"})


# Tokens that are renewed


@pytest.fixture
def short(tmp_path: Path) -> Iterator[tuple[Provider, Path]]:
    """A provider whose access tokens live a second, and a user who is logged in by it."""
    with provider(accessTokenTtl=1, resources={OPAQUE: {"format": "opaque"}}) as running:
        tokens = running.tokens("ada", resource=OPAQUE)
        now = time.time()
        grant = Grant(
            tokens["access_token"],
            tokens["refresh_token"],
            now,
            now + 1,
            running.issuer,
            "s2uc",
            ("openid", "sessions"),
            OPAQUE,
        )
        vault(tmp_path, "aps", "file").save(grant)
        yield running, tmp_path


def stored(directory: Path) -> Grant:
    grant = vault(directory, "aps", "file").load()
    assert grant
    return grant


async def test_a_token_is_renewed_before_it_ends(short: tuple[Provider, Path]) -> None:
    running, directory = short
    running.set(accessTokenTtl=600)
    place, now = vault(directory, "aps", "file"), time.time()
    first = replace(stored(directory), obtained_at=now, expires_at=now + 3600)
    place.save(first)
    assert await Kept(directory, "aps", "file").token() == first.access_token
    place.save(replace(first, obtained_at=now - 3550, expires_at=now + 50))
    kept = Kept(directory, "aps", "file")
    token = await kept.token()
    assert token != first.access_token
    assert running.introspect(token)["aud"] == OPAQUE
    assert await kept.token() == token
    assert stored(directory).refresh_token != first.refresh_token
    assert running.counts()["/token"] == 2


async def test_a_token_that_was_refused_is_replaced(short: tuple[Provider, Path]) -> None:
    running, directory = short
    running.set(accessTokenTtl=600)
    kept = Kept(directory, "aps", "file")
    first = await kept.token()
    second = await kept.token(rejected=first)
    assert running.introspect(second)["active"]
    assert await Kept(directory, "aps", "file").token(rejected=first) == second


_ASK = """
import asyncio, sys
from pathlib import Path
from s2uc.login.kept import Kept
async def main():
    kept = [Kept(Path(sys.argv[1]), "aps", "file") for _ in range(5)]
    sys.stdin.readline()
    print(*await asyncio.gather(*(one.token() for one in kept)))
asyncio.run(main())
"""


def test_two_processes_renew_once(short: tuple[Provider, Path]) -> None:
    running, directory = short
    running.set(accessTokenTtl=600)
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", _ASK, str(directory)], **pipes) for _ in range(3)]
    time.sleep(max(0.0, stored(directory).obtained_at + 1.1 - time.time()))
    said = []
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        said += process.communicate(timeout=60)[0].split()
        assert process.returncode == 0
    assert len(said) == 15
    assert set(said) == {stored(directory).access_token}
    assert running.introspect(said[0])["active"]
    assert running.counts()["/token"] == 2  # the login, and one renewal


async def test_an_issuer_that_is_away_is_not_missed_until_the_token_ends(short: tuple[Provider, Path]) -> None:
    running, directory = short
    first = stored(directory)
    vault(directory, "aps", "file").save(replace(first, obtained_at=time.time() - 100, expires_at=time.time() + 15))
    running.set(outage="error")
    assert await Kept(directory, "aps", "file").token() == first.access_token
    vault(directory, "aps", "file").save(replace(first, expires_at=time.time() - 1))
    with pytest.raises(Unavailable, match="503"):
        await Kept(directory, "aps", "file").token()
    running.set(outage=None)
    assert await Kept(directory, "aps", "file").token() != first.access_token


async def test_a_login_that_the_issuer_has_ended(short: tuple[Provider, Path]) -> None:
    running, directory = short
    first = stored(directory)
    async with Issuer(running.issuer) as issuer:
        assert await issuer.revoke(first)
    await asyncio.sleep(max(0, first.obtained_at + 1.1 - time.time()))
    with pytest.raises(Unauthenticated, match=r"has ended at .* UTC; run: s2uc login aps"):
        await Kept(directory, "aps", "file").token()
    asked = running.counts()["/token"]
    with pytest.raises(Unauthenticated):
        await Kept(directory, "aps", "file").token()
    assert running.counts()["/token"] == asked  # not asked again for what is over


async def test_who_goes_away_during_a_renewal_loses_no_login(short: tuple[Provider, Path]) -> None:
    running, directory = short
    running.set(accessTokenTtl=600)
    first = stored(directory)
    await asyncio.sleep(max(0, first.obtained_at + 1.1 - time.time()))
    before = running.counts()["/token"]
    task = asyncio.create_task(Kept(directory, "aps", "file").token())
    while running.counts()["/token"] == before and not task.done():
        await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert running.introspect(stored(directory).access_token)["active"]
    assert stored(directory).refresh_token != first.refresh_token


# Where tokens are


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    place = vault(tmp_path / "u", "aps", "file")
    assert place.load() is None
    place.save(Grant("secret"))
    path = tmp_path / "u/logins/aps.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.chmod(0o644)
    with pytest.raises(InvalidArgument, match="others can read it"):
        place.load()
    path.chmod(0o600)
    path.write_text("{}")
    with pytest.raises(InvalidArgument, match="log in again"):
        place.load()
    place.forget()
    place.forget()
    assert not path.exists()


def test_the_keyring_keeps_tokens_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keyring = pytest.importorskip("keyring")
    from tests.support.ring import FileRing

    monkeypatch.setenv("RING", str(tmp_path / "ring.json"))
    before = keyring.get_keyring()
    keyring.set_keyring(FileRing())
    try:
        one, other = vault(tmp_path, "aps", "keyring"), vault(tmp_path / "other", "aps", "keyring")
        one.save(Grant("secret", expires_at=5.0, scopes=("a", "b")))
        assert one.load() == Grant("secret", expires_at=5.0, scopes=("a", "b"))
        assert other.load() is None
        one.forget()
        one.forget()
        assert one.load() is None
        assert not (tmp_path / "logins").exists()
    finally:
        keyring.set_keyring(before)


def test_a_computer_without_a_keyring(tmp_path: Path) -> None:
    keyring = pytest.importorskip("keyring")
    from keyring.backends.fail import Keyring

    before = keyring.get_keyring()
    keyring.set_keyring(Keyring())
    try:
        with pytest.raises(FailedPrecondition, match="no keyring on this computer"):
            vault(tmp_path, "aps", "keyring").load()
        config = UserConfig(tmp_path)
        config.save_gateway(KnownGateway("aps", Endpoint("127.0.0.1", 9)))
        terms, wish = Terms("http://127.0.0.1:9", "s2uc", ("openid",)), Wish(store="keyring")
        with pytest.raises(FailedPrecondition, match="no keyring on this computer"):  # and nobody had to log in before
            wait_for(log_in(config, "aps", terms, wish, print))
    finally:
        keyring.set_keyring(before)


def test_a_store_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ScistreamError, match="file, keyring"):
        vault(tmp_path, "aps", "cloud")
