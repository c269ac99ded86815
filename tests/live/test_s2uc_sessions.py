"""Sessions through the user's command line and library, on real gateways."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

import s2uc
from scistream.errors import AlreadyExists, InvalidArgument
from scistream.vocabulary import Endpoint
from tests.support.gateways import restarted
from tests.support.sessions import Echo, echo, exchange
from tests.support.user import Facilities, facilities


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facilities]:
    with facilities(tmp_path_factory.mktemp("facilities")) as both:
        yield both


@pytest.fixture
def producer() -> Iterator[Echo]:
    with echo() as server:
        yield server


def _connect_and_exchange(listener: str) -> None:
    endpoint = Endpoint.parse(listener)
    with socket.create_connection((endpoint.host, endpoint.port), 30) as connection:
        exchange(connection, os.urandom(3_000_000))


_REQUEST = ("request", "--producer", "aps", "--consumer", "alcf")


def test_a_session_from_request_to_release(running: Facilities, producer: Echo) -> None:
    user = running.user
    listeners = ("--prod-listeners", str(producer.endpoint))
    session = user.json(*_REQUEST, *listeners, "--num-conn", "2", "--rate", "10Gb/s", "--label", "scan=7")
    assert set(session) == {"uid", "state", "expires_at", "producer", "consumer"}
    assert set(session["producer"]) == {"gateway", "listeners", "targets"}
    assert set(session["consumer"]) == {"gateway", "listeners"}
    assert session["state"] == "ACTIVE"
    assert session["producer"]["targets"] == [str(producer.endpoint)]
    assert [session[side]["gateway"] for side in ("producer", "consumer")] == ["aps", "alcf"]
    assert datetime.fromisoformat(session["expires_at"]) > datetime.now(UTC)
    assert len(session["consumer"]["listeners"]) == 2
    for listener in session["consumer"]["listeners"]:
        _connect_and_exchange(listener)
    uid = session["uid"]
    record = user.config / "sessions" / f"{uid}.json"
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    assert stat.S_IMODE(user.config.stat().st_mode) == 0o700

    listed = user.json("list")["sessions"]
    assert [(one["gateway"], one["role"], one["state"]) for one in listed] == [
        ("alcf", "CONS", "ACTIVE"),
        ("aps", "PROD", "ACTIVE"),
    ]
    status = user.json("status", uid)
    assert status["state"] == "ACTIVE"
    assert status["producer"]["labels"] == {"scan": "7"}
    assert status["producer"]["rate_bytes_per_s"] == 1_250_000_000
    assert status["consumer"]["targets"] == session["producer"]["listeners"]
    deadline = time.monotonic() + 20
    while status["producer"]["traffic"]["connections_open"] and time.monotonic() < deadline:
        time.sleep(0.1)
        status = user.json("status", uid)
    for side in ("producer", "consumer"):
        traffic = status[side]["traffic"]
        assert traffic["connections_total"] == 2
        assert traffic["bytes_from_consumer"] == traffic["bytes_from_producer"] > 0
    shown = user.s2uc("status", uid).stdout
    assert uid in shown
    assert "from the producer" in shown
    assert "0 open, 2 in all" in shown

    watching = user.start("watch", "--json", uid)
    plain = user.start("watch", uid)
    assert watching.stdout
    assert plain.stdout
    first = json.loads(watching.stdout.readline())
    assert first["session"]["state"] == "ACTIVE"
    assert "ACTIVE" in plain.stdout.readline()
    released = user.json("release", uid)
    assert released == {"uid": uid, "state": "RELEASED", "gateways": ["aps", "alcf"]}
    rest, errors = watching.communicate(timeout=30)
    assert (watching.returncode, errors) == (0, "")
    states = {event["session"]["state"] for event in map(json.loads, rest.splitlines())}
    assert "RELEASED" in states
    assert "RELEASED" in plain.communicate(timeout=30)[0]
    assert running.left() == {}
    assert user.records() == []
    assert user.json("list")["sessions"] == []
    assert "no running sessions; --all shows" in user.s2uc("list").stderr
    ended = user.json("list", "--all")["sessions"]
    assert {one["state"] for one in ended} == {"RELEASED"}
    assert [one["traffic"]["connections_total"] for one in ended] == [2, 2]
    user.s2uc("release", uid)  # again: harmless


def test_repeating_a_request(running: Facilities, producer: Echo) -> None:
    user = running.user
    request = (*_REQUEST, "--prod-listeners", str(producer.endpoint), "--uid", "scan-7")
    session = user.json(*request)
    assert user.json(*request) == session
    _connect_and_exchange(session["consumer"]["listeners"][0])
    steps = user.s2uc(*request, "--verbose").stderr
    assert "UpdateTargets" not in steps  # running streams and new connections are not disturbed
    elsewhere = (*_REQUEST, "--prod-listeners", "127.0.0.1:9", "--uid", "scan-7")
    user.complaint(*elsewhere, expect=1)
    assert "other content" in user.complaint(*request, "--num-conn", "2", expect=1)
    assert user.json("status", "scan-7")["state"] == "ACTIVE"  # it is not the failed one's to undo
    assert user.records() == ["scan-7"]
    user.s2uc("release", "scan-7")
    again = user.json(*request)  # its uid is free again
    assert again["state"] == "ACTIVE"
    user.s2uc("release", "scan-7")
    assert running.left() == {}


def test_a_session_of_which_nothing_is_on_file(running: Facilities, producer: Echo) -> None:
    user = running.user
    uid = user.json(*_REQUEST, "--prod-listeners", str(producer.endpoint))["uid"]
    (user.config / "sessions" / f"{uid}.json").unlink()
    assert user.json("status", uid)["state"] == "ACTIVE"
    assert "released at" in user.s2uc("release", uid).stdout
    assert running.left() == {}


def test_the_library_waits(running: Facilities, producer: Echo) -> None:
    steps: list[s2uc.StepEvent] = []
    with s2uc.request(*running.gateways(), prod_listeners=[str(producer.endpoint)], on_step=steps.append) as session:
        assert session.state == "ACTIVE"
        assert all(info is not None and info.state == "ACTIVE" for info in session.status())
        _connect_and_exchange(str(session.listeners[0]))
    assert session.state == "RELEASED"
    assert running.left() == {}
    assert {(event.step.value, event.role.value) for event in steps} == {
        (step, role) for step in ("REQ", "RESP", "Hello", "UpdateTargets", "ACTIVE") for role in ("PROD", "CONS")
    }
    assert [event.at for event in steps] == sorted(event.at for event in steps)


async def test_the_library_in_a_loop(running: Facilities, producer: Echo) -> None:
    gateways = running.gateways()
    async with await s2uc.aio.request(*gateways, prod_listeners=[producer.endpoint], num_conn=2) as session:
        await asyncio.to_thread(_connect_and_exchange, str(session.listeners[1]))
        with pytest.raises(AlreadyExists, match="other content"):
            await s2uc.aio.request(*gateways, prod_listeners=[producer.endpoint], uid=session.uid)
        assert all(info is not None and info.state == "ACTIVE" for info in await session.status())
    # Inside a running loop, as in a notebook, the waiting face works as well.
    with s2uc.request(*gateways, prod_listeners=[producer.endpoint]) as waited:
        await asyncio.to_thread(_connect_and_exchange, str(waited.listeners[0]))
    assert running.left() == {}


async def test_the_library_refuses_before_it_sends(running: Facilities) -> None:
    aps, alcf = running.gateways()
    with pytest.raises(InvalidArgument, match="one gateway for each side"):
        await s2uc.aio.request(aps, aps)
    with pytest.raises(InvalidArgument, match="too many"):
        await s2uc.aio.request(aps, alcf, prod_listeners=["127.0.0.1:5", "127.0.0.1:6"])


def test_one_gateway_is_away(producer: Echo, tmp_path: Path) -> None:
    with facilities(tmp_path) as both:
        user = both.user
        user.s2uc(*_REQUEST, "--prod-listeners", str(producer.endpoint), "--uid", "half")
        both.aps.stop()
        seen = user.s2uc("status", "half", expect=4)
        assert seen.stderr.startswith("s2uc: gateway aps (")
        assert "ACTIVE" in seen.stdout
        assert [user.json("status", "half", expect=4)[side] is None for side in ("producer", "consumer")] == [
            True,
            False,
        ]
        assert "session half is released at alcf alone" in user.complaint("release", "half", expect=4)
        with restarted(both.aps):
            user.s2uc("release", "half")
            assert both.left() == {}
