"""UDP between two real gateways that trust each other's network, and its refusal everywhere else."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

import s2uc
from scistream.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Endpoint
from scistream.x509 import DevelopmentCA
from tests.support.datagrams import UdpEcho, ask, ask_once, flow, silent, udp_echo
from tests.support.gateways import GatewayProcess, gateway
from tests.support.tunnels import kill
from tests.support.user import Facilities, User, introduce

APS, ALCF = "127.77.0.1", "127.77.0.2"  # in the WAN
TRUSTED = ["127.77.0.0/24"]
_KEEP = {"SCISTREAM_SERVER__ON_SHUTDOWN": "keep"}
_LENGTHS = (1, 1400, 9000, 60_000)
_UDP = ("--protocol", "udp", "--unencrypted")
PLAIN: dict[str, Any] = {"protocol": "udp", "unencrypted": True}
_REQUEST = ("request", "--producer", "aps", "--consumer", "alcf")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facilities]:
    directory = tmp_path_factory.mktemp("facilities")
    with (
        gateway(directory / "aps", SCISTREAM_NETWORK__WAN=APS, **_KEEP) as aps,
        gateway(directory / "alcf", SCISTREAM_NETWORK__WAN=ALCF, **_KEEP) as alcf,
    ):
        for each in (aps, alcf):
            trust(each, TRUSTED)
        user = User(directory / "user")
        introduce(user, "aps", aps)
        introduce(user, "alcf", alcf)
        yield Facilities(aps, alcf, user, {*aps.listening(), *alcf.listening()})


@pytest.fixture
def producer() -> Iterator[UdpEcho]:
    with udp_echo() as server:
        yield server


@contextmanager
def opened(running: Facilities, producer: UdpEcho, num_conn: int = 1) -> Iterator[s2uc.Session]:
    """Have a session of UDP, and see that nothing is left of it."""
    aps, alcf = running.gateways()
    listeners = [producer.endpoint]
    with s2uc.request(aps, alcf, prod_listeners=listeners, num_conn=num_conn, **PLAIN) as session:
        yield session
    assert running.left() == {}


def audited(running: GatewayProcess, event: str, uid: str) -> list[dict[str, Any]]:
    """What an audit log has of a session."""
    (file,) = (running.directory / "state" / "audit").glob("*.jsonl")
    return [
        entry
        for entry in map(json.loads, file.read_text().splitlines())
        if (entry["event"], entry.get("uid")) == (event, uid)
    ]


def test_datagrams_of_all_lengths_go_both_ways(running: Facilities, producer: UdpEcho) -> None:
    with opened(running, producer, num_conn=3) as session, ExitStack() as stack:
        assert session.producer.backend == session.consumer.backend == "nginx"
        consumers = [stack.enter_context(flow(listener)) for listener in session.listeners]
        sent = 0
        for length in _LENGTHS:
            for consumer in consumers:
                assert ask_once(consumer, data := os.urandom(length)) == data
                sent += length
        assert sum(map(len, producer.got)) == sent
        assert len(producer.peers) == 3
        deadline = time.monotonic() + 20
        sides = ("producer", "consumer")
        while True:  # what is told may be half a second old
            told = running.user.json("status", session.uid)
            found = [(told[side]["protocol"], told[side]["traffic"]["connections_open"]) for side in sides]
            if found == [("udp", 3)] * 2 or time.monotonic() > deadline:
                break
        assert found == [("udp", 3)] * 2
        assert "none: udp, unencrypted" in running.user.s2uc("status", session.uid).stdout
        verified = running.user.s2uc("verify", session.uid)
        assert "UNENCRYPTED" in verified.stdout
        assert "nothing between the gateways is encrypted" in verified.stderr
        before = session.expires_at
        session.renew(7200)  # which opens no flow anew
        assert session.expires_at > before
        assert ask_once(consumers[0], b"renewed") == b"renewed"
        assert len(producer.peers) == 3
        received = sum(map(len, producer.got))
    for gateway_ in (running.aps, running.alcf):
        (end,) = audited(gateway_, "session.end", session.uid)
        assert (end["bytes_from_producer"], end["bytes_from_consumer"], end["connections"]) == (received, received, 3)
        (asked,) = audited(gateway_, "call.req", session.uid)
        assert (asked["protocol"], asked["encrypted"]) == ("udp", False)
    assert audited(running.aps, "call.update", session.uid)[0]["wan_peers"] == [ALCF]


def test_only_the_other_gateways_address_is_let_in(running: Facilities, producer: UdpEcho) -> None:
    request = (*_REQUEST, "--prod-listeners", str(producer.endpoint), "--num-conn", "4", *_UDP)
    session = running.user.json(*request, "--uid", "scan-9")
    for text in session["producer"]["listeners"]:
        wan = Endpoint.parse(text)
        assert wan.host == APS
        for source in ("127.77.0.3", "127.0.0.1", APS):
            with flow(wan, source) as stranger:
                stranger.send(b"forged")
    with flow(wan, ALCF) as peer:  # all that is known of the other gateway is its address
        assert ask(peer, b"not forged enough") == b"not forged enough"
    assert set(producer.got) == {b"not forged enough"}
    assert "forbidden" not in running.user.s2uc("logs", "scan-9").stdout  # they cost the proxy nothing
    running.user.s2uc("release", "scan-9")
    assert running.left() == {}


def test_flows_outlive_the_control_server_and_come_back_after_a_proxys_death(
    running: Facilities, producer: UdpEcho
) -> None:
    with opened(running, producer) as session, flow(session.listeners[0]) as consumer:
        assert ask(consumer, b"first") == b"first"
        for each in (running.aps, running.alcf):
            each.stop(signal.SIGKILL)
        for number in range(50):
            assert ask(consumer, b"%d" % number) == b"%d" % number
        assert len(producer.peers) == 1
        running.aps.start()
        running.alcf.start()
        assert ask(consumer, b"adopted") == b"adopted"
        assert len(producer.peers) == 1
        wan, lan = session.producer.listeners[0], session.listeners[0]
        for each, listener in ((running.aps, wan), (running.alcf, lan)):
            kill(*(proxy.pid for proxy in each.proxies()))
            assert ask(consumer, listener.host.encode()) == listener.host.encode()
        with flow(wan, "127.77.0.3") as stranger:
            assert silent(stranger, b"forged")
        restarts = [info.restarts for info in session.status() if info is not None]
        assert restarts == [1, 1]


def test_two_users_with_a_ticket(running: Facilities, producer: UdpEcho, tmp_path: Path) -> None:
    user, ticket = running.user, str(tmp_path / "ticket")
    inbound = ("inbound-request", "--gateway", "aps", "--prod-listeners", str(producer.endpoint), "--ticket", ticket)
    assert "--wan-peers" in user.complaint(*inbound, *_UDP, expect=2)
    uid = user.json(*inbound, *_UDP, "--wan-peers", ALCF)["uid"]
    outbound = ("outbound-request", "--gateway", "alcf", "--ticket", ticket)
    assert "in plain" in user.complaint(*outbound, expect=2)
    (listener,) = user.json(*outbound, "--unencrypted")["consumer"]["listeners"]
    with flow(Endpoint.parse(listener)) as consumer:
        assert ask(consumer, b"both halves") == b"both halves"
    user.s2uc("release", uid)
    assert running.left() == {}


def test_what_is_refused(running: Facilities) -> None:
    aps, alcf = running.gateways()
    for more, kind, says in (
        ({"protocol": "udp"}, InvalidArgument, "udp goes between the gateways in plain, since no proxy encrypts it"),
        ({"unencrypted": True}, InvalidArgument, "tcp is always encrypted"),
        ({"protocol": "sctp"}, InvalidArgument, "use tcp or udp"),
        ({**PLAIN, "rate": "1Gb/s"}, InvalidArgument, "no rate can be kept for udp"),
        ({**PLAIN, "backend": "haproxy"}, FailedPrecondition, "backend haproxy carries no UDP; ask for nginx"),
        ({**PLAIN, "backend": "stunnel"}, FailedPrecondition, "backend stunnel carries no UDP; ask for nginx"),
    ):
        with pytest.raises(kind, match=says):
            s2uc.request(aps, alcf, prod_listeners=["127.0.0.1:9"], **more)  # type: ignore[arg-type]
    complaint = running.user.complaint(*_REQUEST, "--prod-listeners", "127.0.0.1:9", "--protocol", "udp", expect=2)
    assert "say --unencrypted" in complaint
    assert running.left() == {}


def trust(gateway_: GatewayProcess, networks: list[str]) -> None:
    """Let a gateway that runs trust these."""
    text = re.sub(r"(?m)^trusted_wan = .*\n", "", gateway_.config.read_text())
    gateway_.config.write_text(text.replace("[policy]\n", f"[policy]\ntrusted_wan = {json.dumps(networks)}\n"))
    reloads = gateway_.log.count(" reloaded")
    gateway_.process.send_signal(signal.SIGHUP)
    while gateway_.log.count(" reloaded") == reloads:
        time.sleep(0.02)


def test_each_gateway_has_to_trust_the_other(running: Facilities, producer: UdpEcho) -> None:
    aps, alcf = running.gateways()
    with opened(running, producer) as session, flow(session.listeners[0]) as consumer:
        for distrusting, networks, says in (
            (running.aps, ["127.77.9.0/24"], f"aps: this gateway does not trust {ALCF} with udp in plain"),
            (running.alcf, ["127.77.9.0/24"], f"alcf: this gateway does not trust {APS} with udp in plain"),
            (running.aps, [], "aps: udp goes between gateways in plain, and this one trusts no network with that"),
        ):
            trust(distrusting, networks)
            with pytest.raises(PermissionDenied, match=re.escape(says)):
                s2uc.request(aps, alcf, prod_listeners=[producer.endpoint], **PLAIN)
            assert ask(consumer, b"what runs goes on") == b"what runs goes on"
            with pytest.raises(PermissionDenied, match=re.escape(says)):
                session.renew()
            trust(distrusting, TRUSTED)


def test_bare_requests(running: Facilities) -> None:
    udp = {"protocol": "udp", "unencrypted": True}
    with running.aps.client() as client:
        for asked, says in (
            ({"protocol": "udp"}, "say that you know it"),
            ({"unencrypted": True}, "tcp is always encrypted"),
            ({**udp, "protocol": "sctp"}, "use tcp or udp"),
            ({**udp, "rate": 5}, "no rate can be kept for udp"),
        ):
            with pytest.raises(grpc.RpcError, match=says) as refused:
                client.req(pb.Request(uid="bare", role="PROD", num_conn=1, immediate=True, **asked))
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_updates_that_do_not_fit(running: Facilities, producer: UdpEcho) -> None:
    """In any wrong order and form; what is right then still goes, and can be said twice."""
    request = pb.Request(uid="by-hand", role="PROD", num_conn=1, immediate=True, protocol="udp", unencrypted=True)
    with running.aps.client() as client:
        answer = client.req(request)
        assert (answer.wan_host, client.req(request)) == (APS, answer)
        client.hello(pb.Hello(uid="by-hand", role="PROD", prod_listeners=[str(producer.endpoint)]))
        wan = Endpoint.parse(answer.listeners[0])
        with flow(wan, ALCF) as early:
            early.send(b"early")  # before the way is open nobody is let in

        def update(**more: Any) -> Any:
            message = pb.UpdateTargets(uid="by-hand", role="PROD", remote_listeners=[str(producer.endpoint)], **more)
            return client.update(message)

        ca = DevelopmentCA.create("a").certificate.der
        for more, says in (
            ({}, "needs wan_peers"),
            ({"wan_peers": ["8.8.8.8"]}, "does not trust 8.8.8.8"),
            ({"wan_peers": [ALCF, "8.8.8.8"]}, "does not trust 8.8.8.8"),
            ({"wan_peers": ["a b"]}, "neither an IP address nor a host name"),
            ({"wan_peers": [ALCF] * 17}, "send fewer"),
            ({"wan_peers": [ALCF], "trust_anchor": ca}, "has no credentials"),
        ):
            with pytest.raises(grpc.RpcError, match=says):
                update(**more)
        assert update(wan_peers=[ALCF]).state == "ACTIVE"
        assert update(wan_peers=[ALCF]).state == "ACTIVE"
        with flow(wan, ALCF) as peer, flow(wan, "127.77.0.3") as other:
            assert ask(peer, b"one") == b"one"
            assert silent(other, b"not yet")
            assert update(wan_peers=["127.77.0.3"]).state == "ACTIVE"
            assert ask(other, b"two") == b"two"
            assert silent(peer, b"no more")
        assert set(producer.got) == {b"one", b"two"}
        with pytest.raises(grpc.RpcError, match="renew it without trust_anchor"):
            client.renew(pb.Renew(uid="by-hand", trust_anchor=ca))
        client.release(pb.Release(uid="by-hand"))
    assert running.left() == {}


def test_the_policy_explains_it(running: Facilities) -> None:
    def policy(gateway_: GatewayProcess, *more: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "s2cs", "policy", "test", "admin", "--protocol", "udp", *more]
        command += ["--config", str(gateway_.config)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        return done.returncode, done.stdout

    status, told = policy(running.alcf, "--peer", f"{APS}:30000")
    assert status == 0
    assert "[policy] trusted_wan, " in told
    status, told = policy(running.alcf, "--peer", "127.78.0.1:30000")
    assert status == 3
    assert "does not trust 127.78.0.1 with udp in plain" in told
