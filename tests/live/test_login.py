"""Users who log in by an issuer: their commands and programs, real gateways, a real provider, real streams."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import s2uc
from s2uc.blocking import wait_for
from s2uc.config import UserConfig
from s2uc.login import Ended, Prompt, Who, Wish, aio
from scistream.errors import FailedPrecondition, Unauthenticated
from scistream.vocabulary import Endpoint
from tests.support.gateways import gateway
from tests.support.provider import BROWSER, CLIENT_ID, GATEWAY_ID, GATEWAY_SECRET, Browser, Provider, provider
from tests.support.sessions import echo, exchange
from tests.support.user import Facilities, User, introduce

AUDIENCE, OPAQUE = "urn:scistream:aps", "urn:scistream:aps-opaque"
HEADLESS = {"DISPLAY": "", "WAYLAND_DISPLAY": "", "BROWSER": ""}


@dataclass
class Site:
    """A gateway `aps` that believes a provider in two ways, a gateway `alcf` with tokens of its own, and a user."""

    both: Facilities
    issuer: Provider

    @property
    def user(self) -> User:
        """Somebody who is known to alcf, and not to aps."""
        return self.both.user

    @property
    def config(self) -> str:
        """The user's directory."""
        return str(self.user.config)

    def log_in(self, who: str = "ada", method: str = "lab") -> Who:
        """Log in at aps, from a program: that is quicker than a command and a browser."""
        visits: list[threading.Thread] = []

        def act(prompt: Prompt) -> None:
            visits.append(threading.Thread(target=Browser(who).finish, args=(prompt.page,)))
            visits[0].start()

        found = s2uc.login.in_browser("aps", Wish(method=method, start=False), config=self.config, show=act)
        visits[0].join(20)
        return found

    def tokens(self) -> dict[str, Any]:
        """What is kept of the login at aps."""
        found: dict[str, Any] = json.loads((self.user.config / "logins/aps.json").read_text())
        return found

    def put(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Change what is kept of the login at aps; all of it."""
        found = self.tokens() | changes
        (self.user.config / "logins/aps.json").write_text(json.dumps(found))
        return found


def believe(site: Site) -> None:
    """Set aps up."""
    site.both.aps.configure(
        f"""
[[auth.oidc]]
name = "lab"
issuer = "{site.issuer.issuer}"
audience = "{AUDIENCE}"
leeway = 0
groups_claim = "groups"
operators = ["olga"]
login_client = "{CLIENT_ID}"
login_scopes = ["openid", "sessions", "read"]

[[auth.introspection]]
name = "shop"
issuer = "{site.issuer.issuer}"
endpoint = "{site.issuer.issuer}/token/introspection"
client_id = "{GATEWAY_ID}"
secret_env = "SHOP_SECRET"
audience = "{OPAQUE}"
username_claim = "sub"
cache = 1
negative_cache = 1
login_client = "{CLIENT_ID}"
login_scopes = ["openid", "sessions"]
"""
    )


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("login")
    resources = {OPAQUE: {"format": "opaque"}}
    with (
        provider(accounts={"ada": {"groups": ["b7"]}}, resources=resources) as issuer,
        gateway(directory / "aps", SHOP_SECRET=GATEWAY_SECRET) as aps,
        gateway(directory / "alcf") as alcf,
    ):
        user = User(directory / "user")
        site = Site(Facilities(aps, alcf, user, {*aps.listening(), *alcf.listening()}), issuer)
        believe(site)
        user.s2uc("gateway", "add", "aps", aps.address, "--ca", str(aps.directory / "certs/ca.crt"))
        introduce(user, "alcf", alcf, alcf.add_user("ada"))
        yield site


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    """The same for all, with nobody logged in at aps."""
    yield running
    running.issuer.set(accessTokenTtl=3600, outage=None)
    wait_for(aio.log_out(UserConfig(running.user.config), "aps", revoke=False))


# Logging in


def test_in_a_browser(site: Site) -> None:
    done = site.user.s2uc("login", "aps", "--method", "lab", BROWSER=BROWSER.format("ada"))
    said = done.stdout + done.stderr
    assert f"lets you log in at {site.issuer.issuer} for {AUDIENCE}" in said
    assert re.search(r"you are lab:ada \(user, in lab:b7\) by oidc for .*, until 20.* UTC at gateway aps", said)
    kept = site.tokens()
    assert kept["access_token"] not in said
    assert kept["refresh_token"] not in said
    assert stat.S_IMODE((site.user.config / "logins/aps.json").stat().st_mode) == 0o600
    [aps] = [one for one in site.user.json("gateway", "list")["gateways"] if one["gateway"] == "aps"]
    assert aps["credentials"] == "login"


def waiting(user: User, *command: str, **environ: str) -> tuple[subprocess.Popen[str], str]:
    """Start a login, and read what it asks its user for."""
    process = user.start("login", "aps", *command, **{**HEADLESS, **environ})
    assert process.stderr is not None
    assert "lets you log in" in process.stderr.readline()
    return process, process.stderr.readline()


def test_with_the_address_only(site: Site) -> None:
    process, line = waiting(site.user, "--json", "--method", "lab", "--no-browser")
    assert "can be closed" in Browser("olga").finish(line.removeprefix("open ").strip()).text
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    found = json.loads(out)
    assert (found["user"], found["role"], found["method"]) == ("lab:olga", "operator", "oidc")


@pytest.mark.parametrize("asked", [True, False])
def test_with_a_code_on_another_device(site: Site, asked: bool) -> None:
    more = ["--device"] if asked else []
    process, line = waiting(site.user, "--method", "shop", *more, **({"BROWSER": "x"} if asked else {}))
    assert process.stderr is not None
    complete = re.search(r"open (\S+) and compare", process.stderr.readline())
    assert complete
    assert re.search(r"type the code [A-Z]{4}-[A-Z]{4}", line)
    Browser("grace").open(complete[1])
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "you are shop:grace (user) by introspection" in out


def test_somebody_who_refuses(site: Site) -> None:
    process, line = waiting(site.user, "--method", "lab", "--no-browser")
    Browser(consents=False).finish(line.removeprefix("open ").strip())
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (3, "")
    assert "access was refused on its page" in errors
    assert not (site.user.config / "logins/aps.json").exists()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_terminal_that_is_closed(site: Site, number: int) -> None:
    process, _ = waiting(site.user, "--method", "lab", "--no-browser")
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == (130 if number == signal.SIGINT else 129)
    assert not (site.user.config / "logins/aps.json").exists()


def test_nobody_comes(site: Site) -> None:
    said = site.user.s2uc("--timeout", "1s", "login", "aps", "--method", "lab", "--no-browser", expect=4).stderr
    assert "nobody logged in within 1 s" in said


def test_several_ways_and_none(site: Site) -> None:
    user = site.user
    assert "choose one with --method" in user.complaint("login", "aps", expect=2)
    assert "none called 'x'" in user.complaint("login", "aps", "--method", "x", expect=2)
    assert "give it with --token-file" in user.complaint("login", "alcf", expect=2)
    assert "give one" in user.complaint("login", "aps", "--device", "--no-browser", expect=2)
    assert "https" in user.complaint("login", "aps", "--issuer", "http://a.example", "--client-id", "x", expect=2)


def test_tokens_that_the_gateway_does_not_take_are_revoked_and_not_kept(site: Site) -> None:
    command = ("--issuer", site.issuer.issuer, "--client-id", CLIENT_ID, "--scope", "sessions", "--audience", OPAQUE)
    before = site.issuer.counts()["/token/revocation"]
    said = site.user.s2uc("login", "alcf", *command, expect=3, BROWSER=BROWSER.format("ada")).stderr
    assert "not a user's at this gateway" in said
    assert site.issuer.counts()["/token/revocation"] == before + 2
    assert not (site.user.config / "logins/alcf.json").exists()
    assert site.user.json("check-auth", "alcf")["gateways"][0]["method"] == "token"  # as before


def test_a_gateway_that_asks_for_anothers_tokens(site: Site, tmp_path: Path) -> None:
    site.log_in()
    user = site.user
    with gateway(tmp_path / "greedy") as greedy:
        greedy.configure(
            f"""
[[auth.oidc]]
name = "lab"
issuer = "{site.issuer.issuer}"
audience = "{AUDIENCE}"
login_client = "{CLIENT_ID}"
"""
        )
        introduce(user, "greedy", greedy)
        try:
            said = user.s2uc("login", "greedy", expect=1, BROWSER=BROWSER.format("ada")).stderr
            assert (
                "tokens that gateway aps takes, too, and could use them there in your name; if you trust both with "
                in said
            )
            assert user.json("check-auth", "greedy")["gateways"][0]["method"] == "token"
            user.s2uc("login", "greedy", "--audience", AUDIENCE, BROWSER=BROWSER.format("ada"))
            assert user.json("check-auth", "greedy")["gateways"][0]["user"] == "lab:ada"
        finally:
            user.s2uc("gateway", "remove", "greedy")
    assert not (user.config / "logins/greedy.json").exists()


# Being logged in


def test_who_one_is_at_two_gateways_in_two_ways(site: Site) -> None:
    site.log_in()
    alcf, aps = site.user.json("check-auth")["gateways"]
    assert (alcf["user"], alcf["role"], alcf["method"], alcf["until"]) == ("ada", "user", "token", None)
    assert (aps["user"], aps["role"], aps["method"], aps["groups"]) == ("lab:ada", "user", "oidc", ["lab:b7"])
    assert set(aps["scopes"]) == {"sessions", "read"}
    until = datetime.fromisoformat(aps["until"]) - datetime.now(UTC)
    assert 3000 < until.total_seconds() <= 3600
    text = site.user.s2uc("check-auth").stdout.splitlines()
    assert text[0].startswith("alcf  ")
    assert "ada (user) by token" in text[0]
    assert "lab:ada (user, in lab:b7) by oidc" in text[1]


def test_nobody_is_told_to_log_in(site: Site) -> None:
    found = site.user.json("check-auth", expect=3)["gateways"]
    assert "run: s2uc login aps" in found[1]["error"]
    assert found[0]["user"] == "ada"


def test_a_token_that_has_ended_is_renewed_by_commands_and_programs(site: Site) -> None:
    site.log_in()
    site.issuer.set(accessTokenTtl=1)
    now = time.time()
    quick = site.issuer.tokens("ada", scope="openid sessions read", resource=AUDIENCE)
    first = site.put({key: quick[key] for key in ("access_token", "refresh_token")} | {"expires_at": now + 1})
    site.issuer.set(accessTokenTtl=600)
    time.sleep(1.5)
    with site.both.aps.client(first["access_token"]) as client, pytest.raises(Exception, match="expired"):
        client.list(s2uc.gateway.pb.ListRequest())
    assert site.user.json("list", "--gateway", "aps")["sessions"] == []
    second = site.tokens()
    assert second["access_token"] != first["access_token"]
    assert second["refresh_token"] != first["refresh_token"]

    site.put({"expires_at": time.time() - 1})
    assert s2uc.login.who("aps", config=site.config).user == "lab:ada"
    assert site.tokens()["access_token"] != second["access_token"]


def test_a_program_outlives_its_tokens(site: Site) -> None:
    site.log_in()
    site.issuer.set(accessTokenTtl=1)
    site.put({"expires_at": time.time() - 1})
    before = site.issuer.counts()["/token"]

    async def work() -> None:
        live = UserConfig(site.user.config).gateway("aps").live()
        async with s2uc.GatewayClient(live) as client:
            while site.issuer.counts()["/token"] < before + 2:
                await client.list()

    wait_for(work())


def test_the_issuer_ends_a_login(site: Site) -> None:
    site.log_in(method="shop")
    kept = site.tokens()
    form = {"token": kept["refresh_token"], "client_id": CLIENT_ID}
    site.issuer.client.post("/token/revocation", data=form).raise_for_status()
    time.sleep(1.1)  # as long as the gateway believes what it was told
    said = site.user.complaint("list", "--gateway", "aps", expect=3)
    assert "your login at gateway aps has ended" in said
    assert "s2uc login aps" in said


def test_a_session_of_somebody_from_an_issuer_and_somebody_with_a_token(site: Site) -> None:
    site.log_in()
    user = site.user
    with echo() as producer:
        session = user.json(
            *("request", "--producer", "aps", "--consumer", "alcf", "--prod-listeners", str(producer.endpoint))
        )
        endpoint = Endpoint.parse(session["consumer"]["listeners"][0])
        with socket.create_connection((endpoint.host, endpoint.port), 30) as connection:
            exchange(connection, os.urandom(3_000_000))
        found = user.json("status", session["uid"])
        assert (found["producer"]["owner"], found["consumer"]["owner"]) == ("lab:ada", "ada")
        user.s2uc("release", session["uid"])
    assert site.both.left() == {}


# Logging out


def test_a_logout_revokes(site: Site) -> None:
    site.log_in(method="shop")
    kept = site.tokens()
    assert site.issuer.introspect(kept["access_token"])["active"]
    assert "revoked and forgotten" in site.user.s2uc("logout", "aps").stdout
    assert not (site.user.config / "logins/aps.json").exists()
    assert site.issuer.introspect(kept["access_token"]) == {"active": False}
    assert site.issuer.introspect(kept["refresh_token"]) == {"active": False}
    time.sleep(1.1)
    with site.both.aps.client(kept["access_token"]) as client, pytest.raises(Exception, match="UNAUTHENTICATED"):
        client.list(s2uc.gateway.pb.ListRequest())
    assert "run: s2uc login aps" in site.user.complaint("list", "--gateway", "aps", expect=3)
    assert site.user.json("logout", "aps")["tokens"] == "none"


def test_a_logout_without_the_issuer_keeps_the_tokens_for_the_next(site: Site) -> None:
    site.log_in(method="shop")
    site.issuer.set(outage="error")
    assert "503" in site.user.complaint("logout", "aps", expect=4)
    assert (site.user.config / "logins/aps.json").exists()
    site.issuer.set(outage=None)
    assert site.user.json("logout", "aps")["tokens"] == "revoked"


def test_a_gateway_that_is_removed_has_its_login_revoked(site: Site) -> None:
    site.log_in(method="shop")
    kept = site.tokens()
    aps = site.both.aps
    site.user.s2uc("gateway", "add", "aps", aps.address, "--ca", str(aps.directory / "certs/ca.crt"))
    assert site.issuer.introspect(kept["refresh_token"]) == {"active": False}
    assert not (site.user.config / "logins/aps.json").exists()


# Elsewhere


def test_tokens_in_the_keyring(site: Site, tmp_path: Path) -> None:
    pytest.importorskip("keyring")
    ring = tmp_path / "ring.json"
    environ = {
        "PYTHON_KEYRING_BACKEND": "tests.support.ring.FileRing",
        "RING": str(ring),
        "BROWSER": BROWSER.format("ada"),
    }
    user = site.user
    user.s2uc("login", "aps", "--method", "lab", "--store", "keyring", **environ)
    assert not (user.config / "logins/aps.json").exists()
    assert '\\"refresh_token\\"' in ring.read_text()
    assert "lab:ada" in user.s2uc("check-auth", "aps", **environ).stdout
    user.s2uc("logout", "aps", **environ)
    assert ring.read_text() == "{}"
    token = site.both.aps.add_user("byhand")
    user.s2uc("login", "aps", "--token-file", "-", stdin=token, SCISTREAM_TOKEN_STORE="keyring", **environ)
    assert token in ring.read_text()
    assert token not in (user.config / "gateways/aps.json").read_text()
    assert "byhand" in user.s2uc("check-auth", "aps", **environ).stdout
    user.s2uc("logout", "aps", **environ)
    assert ring.read_text() == "{}"


def test_a_program_logs_in_and_out(site: Site) -> None:
    config, who = site.config, site.log_in()
    assert (who.user, who.admin) == ("lab:ada", False)
    assert s2uc.login.who("aps", config=config).until == who.until
    assert s2uc.login.out("aps", config=config) is Ended.REVOKED
    assert s2uc.login.out("aps", config=config) is Ended.NONE
    with pytest.raises(Unauthenticated):
        s2uc.login.who("aps", config=config)
    with pytest.raises(FailedPrecondition, match="with_token"):
        s2uc.login.in_browser("alcf", config=config)
