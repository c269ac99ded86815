"""The split flow: two users at two facilities, joined by a ticket file."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from scistream.vocabulary import Endpoint
from tests.support.sessions import Echo, echo, exchange
from tests.support.user import Facilities, User, facilities, introduce


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facilities]:
    with facilities(tmp_path_factory.mktemp("facilities")) as both:
        yield both


@pytest.fixture(scope="module")
def alice(running: Facilities, tmp_path_factory: pytest.TempPathFactory) -> User:
    """The producer's user: known at `aps` only."""
    user = User(tmp_path_factory.mktemp("alice") / "config")
    introduce(user, "aps", running.aps, running.aps.add_user("alice"))
    return user


@pytest.fixture(scope="module")
def bob(running: Facilities, tmp_path_factory: pytest.TempPathFactory) -> User:
    """The consumer's user: known at `alcf` only."""
    user = User(tmp_path_factory.mktemp("bob") / "config")
    introduce(user, "alcf", running.alcf, running.alcf.add_user("bob"))
    return user


@pytest.fixture
def producer() -> Iterator[Echo]:
    with echo() as server:
        yield server


def _exchange(listener: str) -> None:
    endpoint = Endpoint.parse(listener)
    with socket.create_connection((endpoint.host, endpoint.port), 30) as connection:
        exchange(connection, os.urandom(1_000_000))


def test_two_users(running: Facilities, alice: User, bob: User, producer: Echo, tmp_path: Path) -> None:
    ticket = tmp_path / "scan7.ticket"
    inbound = alice.json(
        *("inbound-request", "--gateway", "aps", "--prod-listeners", str(producer.endpoint)),
        *("--num-conn", "3", "--ticket", str(ticket)),
    )
    assert stat.S_IMODE(ticket.stat().st_mode) == 0o600
    assert inbound["ticket"] == str(ticket)
    assert len(inbound["producer"]["listeners"]) == 3
    outbound = bob.json("outbound-request", "--gateway", "alcf", "--ticket", str(ticket))
    assert outbound["uid"] == inbound["uid"]
    assert outbound["consumer"]["targets"] == inbound["producer"]["listeners"]
    again = bob.complaint("outbound-request", "--gateway", "alcf", "--ticket", str(ticket), expect=1)
    assert f"a consumer's half of session {inbound['uid']} is open there" in again
    for listener in outbound["consumer"]["listeners"]:
        _exchange(listener)
    for user, side in ((alice, "producer"), (bob, "consumer")):
        assert user.json("status", inbound["uid"])[side]["state"] == "ACTIVE"
        user.s2uc("release", inbound["uid"])
    assert running.left() == {}


def test_option_names_of_the_existing_client(running: Facilities, producer: Echo, tmp_path: Path) -> None:
    user = User(tmp_path / "config")
    ticket = str(tmp_path / "ticket")

    def where(name: str) -> tuple[str, ...]:
        gateway = getattr(running, name)
        return (
            *("--s2cs", gateway.address, "--server_cert", str(gateway.directory / "certs" / "ca.crt")),
            *("--token-file", str(gateway.directory / "token")),
        )

    inbound = user.json(
        *("inbound-request", *where("aps"), "--remote_ip", producer.endpoint.host),
        *("--receiver_ports", str(producer.endpoint.port), "--num_conn", "2", "--rate", "10000", "--ticket", ticket),
    )
    assert inbound["producer"]["targets"] == [str(producer.endpoint)]
    wan = Endpoint.parse(inbound["producer"]["listeners"][0])
    outbound = user.json(
        *("outbound-request", *where("alcf"), "--ticket", ticket, "--num_conn", "1"),
        *("--remote_ip", wan.host, "--receiver_ports", str(wan.port)),
    )
    assert outbound["consumer"]["targets"] == [str(wan)]
    assert len(outbound["consumer"]["listeners"]) == 1
    _exchange(outbound["consumer"]["listeners"][0])
    info = running.user.json("status", inbound["uid"])
    assert info["producer"]["rate_bytes_per_s"] == 10_000_000
    running.user.s2uc("release", inbound["uid"])
    assert running.left() == {}


def test_inbound_request_waits_for_its_producer(
    alice: User, running: Facilities, producer: Echo, tmp_path: Path
) -> None:
    ticket = str(tmp_path / "ticket")
    waiting = alice.start("inbound-request", "--gateway", "aps", "--ticket", ticket, "--uid", "patient", "--json")
    assert waiting.stderr
    assert "waits for its producer" in waiting.stderr.readline()
    hello = ("hello", "patient", "--role", "producer", "--listeners", str(producer.endpoint))
    for _ in range(50):
        process = alice.start(*hello)
        process.communicate()
        if process.returncode == 0:
            break
    assert waiting.wait(30) == 0
    waiting.communicate()
    assert json.loads(Path(ticket).read_text())["uid"] == "patient"
    alice.s2uc("release", "patient")
    assert running.left() == {}


def test_failed_halves_leave_nothing(running: Facilities, alice: User, bob: User, tmp_path: Path) -> None:
    ticket = tmp_path / "ticket"
    inbound = ("inbound-request", "--gateway", "aps", "--ticket", str(ticket), "--prod-listeners")
    alice.complaint(*inbound, "192.0.2.1:5000", expect=3)  # not a network that the gateway may forward to
    assert not ticket.exists()
    assert running.left() == {}
    nowhere = ("inbound-request", "--gateway", "aps", "--ticket", str(tmp_path / "none" / "ticket"))
    assert "cannot be written" in alice.complaint(*nowhere, "--prod-listeners", "127.0.0.1:9", expect=1)
    assert running.left() == {}
    assert alice.records() == []
    alice.s2uc(*inbound, "127.0.0.1:9")
    uid = json.loads(ticket.read_text())["uid"]
    outbound = ("outbound-request", "--gateway", "alcf", "--ticket", str(ticket))
    bob.complaint(*outbound, "--backend", "pigeon", expect=2)
    assert running.alcf.leftovers() == {}
    bob.complaint(*outbound, "--remote_ip", "127.0.0.1", "--receiver_ports", "65536", expect=2)
    assert "exists already" in alice.complaint(*inbound, "127.0.0.1:9", expect=2)
    alice.s2uc("release", uid)
    assert running.left() == {}


def test_a_half_that_is_refused_leaves_the_record_of_the_session_that_has_its_uid(
    running: Facilities, alice: User, tmp_path: Path
) -> None:
    inbound = ("inbound-request", "--gateway", "aps", "--uid", "taken")
    alice.s2uc(*inbound, "--ticket", str(tmp_path / "first"), "--prod-listeners", "127.0.0.1:9")
    (record,) = (alice.config / "sessions").glob("*.json")
    before = record.read_text()
    for waits_or_not in ((), ("--prod-listeners", "127.0.0.1:9")):
        again = (*inbound, "--ticket", str(tmp_path / "second"), "--num-conn", "2", *waits_or_not)
        assert "exists with other content" in alice.complaint(*again, expect=1)
        assert record.read_text() == before
    alice.s2uc("release", "taken")
    assert running.left() == {}


def test_bad_tickets(alice: User, bob: User, running: Facilities, tmp_path: Path) -> None:
    ticket = tmp_path / "ticket"
    alice.s2uc("inbound-request", "--gateway", "aps", "--ticket", str(ticket), "--prod-listeners", "127.0.0.1:9")
    good = json.loads(ticket.read_text())
    outbound = ("outbound-request", "--gateway", "alcf", "--ticket", str(ticket))

    def write(**changes: object) -> None:
        ticket.write_text(json.dumps(good | changes))
        ticket.chmod(0o600)

    write(expires_at=(datetime.now(UTC) - timedelta(seconds=1)).isoformat())
    assert "expired at" in bob.complaint(*outbound, expect=1)
    for change in (
        {"uid": "../x"},
        {"listeners": ["127.0.0.1:1\n[x]\nexec=/bin/sh"]},
        {"listeners": []},
        {"num_conn": "many"},
        {"ca": "no certificate"},
        {"ca_key": good["ca"]},
        {"expires_at": "soon"},
    ):
        write(**change)
        assert "is damaged" in bob.complaint(*outbound, expect=2), change
    write(kind="something else")
    assert "not a ticket" in bob.complaint(*outbound, expect=2)
    ticket.write_text("{")
    assert "is not a ticket" in bob.complaint(*outbound, expect=2)
    ticket.unlink()
    assert "cannot be read" in bob.complaint(*outbound, expect=2)
    write()
    ticket.chmod(0o640)
    assert f"chmod 600 {ticket}" in bob.complaint(*outbound, expect=2)
    alice.s2uc("release", good["uid"])
    assert running.left() == {}
