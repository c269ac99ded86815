"""Bad input at the command line: the exit status, and one sentence; nothing is left at the gateways."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from scistream.vocabulary import Endpoint
from tests.support.ports import port_block
from tests.support.sessions import Echo, echo
from tests.support.user import Facilities, User, facilities, introduce

INJECTION = "127.0.0.1:1\n[x]\nexec=/bin/sh"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facilities]:
    with facilities(tmp_path_factory.mktemp("facilities")) as both:
        yield both


@pytest.fixture
def producer() -> Iterator[Echo]:
    with echo() as server:
        yield server


_REQUEST = ("request", "--producer", "aps", "--consumer", "alcf")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--num-conn", "0"], 2, "num_conn 0"),
        (["--num-conn", "-1"], 2, "num_conn -1"),
        (["--num-conn", "1000000"], 2, "num_conn 1000000"),
        (["--num-conn", "60000"], 6, "num_conn 60000"),
        (["--num-conn", "abc"], 2, "abc"),
        (["--num-conn", "99999999999999999999"], 2, "num_conn"),
        (["--prod-listeners", "127.0.0.1:0"], 2, "port 0"),
        (["--prod-listeners", "127.0.0.1:65536"], 2, "port 65536"),
        (["--prod-listeners", "127.0.0.1:abc"], 2, "has no port"),
        (["--prod-listeners", "127.0.0.1"], 2, "has no port"),
        (["--prod-listeners", ""], 2, "has no port"),
        (["--prod-listeners", INJECTION], 2, "has no port"),
        (["--prod-listeners", "127.0.0.1 x:5000"], 2, "neither an IP address nor a host name"),
        (["--prod-listeners", "{{ x }}:5000"], 2, "neither an IP address nor a host name"),
        (["--prod-listeners", "no-such-host.invalid:5000"], 2, "no-such-host.invalid"),
        (["--prod-listeners", "::1:5000"], 2, "IPv6 without brackets"),
        (["--prod-listeners", "192.0.2.1:5000"], 3, "192.0.2.1"),
        (["--prod-listeners", "127.0.0.1:5000,127.0.0.1:5001"], 2, "too many"),
        (["--uid", ""], 2, "uid"),
        (["--uid", "x" * 10_000], 2, "uid"),
        (["--uid", "../../etc/passwd"], 2, "uid"),
        (["--uid", "a\nb"], 2, "uid"),
        (["--rate", "-1"], 2, "rate"),
        (["--rate", "fast"], 2, "rate"),
        (["--lease", "0"], 2, "duration"),
        (["--lease", "9999d"], 2, "lease"),
        (["--backend", "pigeon"], 2, "pigeon"),
        (["--backend", "nginx\n[x]"], 2, "nginx"),
        (["--label", "scan"], 2, "KEY=VALUE"),
        (["--label", "a b=c"], 2, "label"),
        (["--label", "a=b\nc"], 2, "label"),
        (["--consumer", "aps"], 2, "one gateway for each side"),
        (["--consumer", "nowhere"], 2, "not known (known: alcf, aps)"),
        (["--consumer", "../aps"], 2, "not known"),
        (["--no-such-option"], 2, "--help"),
        (["--timeout", "soon"], 2, "duration"),
    ],
)
def test_request(running: Facilities, producer: Echo, arguments: list[str], status: int, words: str) -> None:
    listeners = () if "--prod-listeners" in arguments else ("--prod-listeners", str(producer.endpoint))
    assert words in running.user.complaint(*_REQUEST, *listeners, *arguments, expect=status)
    assert running.left() == {}
    assert running.user.records() == []


@pytest.mark.parametrize("command", ["status", "release", "watch"])
def test_no_such_session(running: Facilities, command: str) -> None:
    assert "not known" in running.user.complaint(command, "no-such-session", expect=5)
    assert "uid" in running.user.complaint(command, "../x", expect=2)


def test_hello_and_run(running: Facilities, tmp_path: Path) -> None:
    user = running.user
    for role in ("", "BOTH", "prod\n"):
        assert "role" in user.complaint("hello", "x", "--role", role, expect=2)
    assert "--gateway" in user.complaint("hello", "x", "--role", "consumer", expect=2)
    user.complaint("hello", "x", "--role", "consumer", "--gateway", "alcf", expect=5)
    user.complaint("run", "x", "--role", "consumer", "--gateway", "alcf", "--", "true", expect=5)
    user.complaint("run", "x", "--role", "consumer", expect=2)
    user.complaint("hello", "x", "--role", "producer", "--listeners", "127.0.0.1:0", expect=2)
    rubbish = tmp_path / "key"
    rubbish.write_text("{}")
    rubbish.chmod(0o600)
    assert "not a key file" in user.complaint("hello", "x", "--role", "consumer", "--key-file", str(rubbish), expect=2)


def test_somebody_elses_session_is_like_none(running: Facilities, producer: Echo, tmp_path: Path) -> None:
    mallory = User(tmp_path / "mallory")
    introduce(mallory, "aps", running.aps, running.aps.add_user("mallory"))
    introduce(mallory, "alcf", running.alcf, running.alcf.add_user("mallory"))
    running.user.s2uc(*_REQUEST, "--prod-listeners", str(producer.endpoint), "--uid", "mine")
    for command in (("status",), ("release",), ("watch",), ("hello", "--role", "consumer", "--gateway", "alcf")):
        theirs = mallory.complaint(*command, "mine", expect=5)
        assert theirs == mallory.complaint(*command, "none", expect=5).replace("none", "mine")
    assert mallory.json("list")["sessions"] == []
    assert running.user.json("status", "mine")["state"] == "ACTIVE"
    running.user.s2uc("release", "mine")


def test_tokens(running: Facilities, producer: Echo, tmp_path: Path) -> None:
    user = User(tmp_path / "config")
    ca = str(running.aps.directory / "certs" / "ca.crt")
    add = ("gateway", "add", "aps", running.aps.address, "--ca", ca)
    assert user.complaint(*add, "--token-file", "-", expect=3, stdin="wrong").startswith("s2uc: gateway aps: ")
    assert "is empty" in user.complaint(*add, "--token-file", "-", expect=2)
    assert "one line" in user.complaint(*add, "--token-file", "-", expect=2, stdin="a\nb")
    assert "cannot be read" in user.complaint(*add, "--token-file", str(tmp_path / "none"), expect=2)
    assert user.json("gateway", "list") == {"gateways": []}
    assert "not signed by the CA" in user.complaint(*add[:3], running.alcf.address, "--ca", ca, expect=4)
    assert "run: s2uc login aps" in user.s2uc(*add).stderr  # the gateway fits, and is kept
    assert user.json("gateway", "list")["gateways"][0]["credentials"] == ""
    assert "s2uc login aps" in user.complaint("list", expect=3)
    user.complaint("login", "aps", "--token-file", "-", expect=3, stdin="wrong")
    user.s2uc("login", "aps", "--token-file", str(running.aps.directory / "token"))
    who = user.json("check-auth")["gateways"]
    assert [(one["gateway"], one["user"], one["admin"]) for one in who] == [("aps", "admin", True)]
    user.s2uc("logout", "aps")
    user.s2uc("check-auth", expect=3)
    user.s2uc("gateway", "remove", "aps")
    assert "no gateway is known yet" in user.complaint("list", expect=2)


def test_gateways_that_cannot_be_reached(running: Facilities, producer: Echo, tmp_path: Path) -> None:
    user = User(tmp_path / "config")
    ca = str(running.aps.directory / "certs" / "ca.crt")

    def complaint(address: str, ca: str = ca, expect: int = 4) -> str:
        return user.complaint("gateway", "add", "x", address, "--ca", ca, "--timeout", "5s", expect=expect)

    assert "was refused" in complaint(f"127.0.0.1:{port_block()}")
    assert "not signed by the CA" in complaint(running.aps.address, str(running.alcf.directory / "certs" / "ca.crt"))
    assert "cannot be resolved" in complaint("no-such-host.invalid:5000")
    rubbish = tmp_path / "rubbish"
    rubbish.write_text("rubbish")
    assert "no certificate in PEM" in complaint(running.aps.address, str(rubbish), expect=2)
    assert "cannot be read" in complaint(running.aps.address, str(tmp_path / "none"), expect=2)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_control_channel_speaks_tls_1_3_only(running: Facilities, version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context(cadata=running.aps.ca.decode())
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    endpoint = Endpoint.parse(running.aps.address)

    def handshake() -> str | None:
        with (
            socket.create_connection((endpoint.host, endpoint.port)) as plain,
            context.wrap_socket(plain, server_hostname=endpoint.host) as tls,
        ):
            return tls.version()

    if version is ssl.TLSVersion.TLSv1_2:
        with pytest.raises(ssl.SSLError):
            handshake()
    else:
        assert handshake() == "TLSv1.3"
