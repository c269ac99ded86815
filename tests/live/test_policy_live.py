"""Rules for users and groups at a real gateway, and the command that explains them."""

from __future__ import annotations

import json
import socket
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scistream.proto import scistream_pb2 as pb
from scistream.wire import grpc
from scistream.x509 import DevelopmentCA
from tests.support import programs
from tests.support.gateways import Client, GatewayProcess, gateway

RULES = """
[[policy.rules]]
name = "one beamline"
groups = ["tomo"]
targets = ["127.0.0.0/8:7000-7999"]
sessions = 2
connections = 3
max_lease = "10m"

[[policy.rules]]
users = ["slow"]
rate = "80Mb/s"
backends = ["haproxy"]

[[policy.rules]]
users = ["mallory"]
targets = ["0.0.0.0/0", "::/0", "64:ff9b::/96"]
peers = []
"""
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with gateway(tmp_path_factory.mktemp("policy") / "g") as found:
        with found.config.open("a") as file:
            file.write(RULES)
        s2cs(found, "reload")
        yield found


@pytest.fixture(scope="module")
def tokens(running: GatewayProcess) -> dict[str, str]:
    return {
        "tina": running.add_user("tina", "--group", "tomo"),
        "slow": running.add_user("slow"),
        "mallory": running.add_user("mallory"),
        "free": running.add_user("free"),
    }


def s2cs(running: GatewayProcess, *arguments: str, exit_status: int = 0) -> subprocess.CompletedProcess[str]:
    done = programs.run("s2cs", *arguments, "--config", running.config)
    assert done.returncode == exit_status, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done


@contextmanager
def client(running: GatewayProcess, token: str) -> Iterator[Client]:
    with running.client(token) as found:
        try:
            yield found
        finally:
            for session in found.list(pb.ListRequest()).sessions:
                found.release(pb.Release(uid=session.uid))


def ask(caller: Client, uid: str, **fields: object) -> pb.Response:
    wanted = {"role": "PROD", "num_conn": 1, "immediate": True, **fields}
    return caller.req(pb.Request(uid=uid, **wanted))  # type: ignore[no-any-return, operator, arg-type]


def hello(caller: Client, uid: str, *targets: str) -> pb.AppResponse:
    return caller.hello(pb.Hello(uid=uid, role="PROD", prod_listeners=targets))  # type: ignore[no-any-return, operator]


@contextmanager
def refused(code: grpc.StatusCode, *says: str) -> Iterator[None]:
    with pytest.raises(grpc.RpcError) as caught:
        yield
    assert caught.value.code() is code, caught.value.details()
    for words in says:
        assert words in caught.value.details()


def test_a_groups_rule(running: GatewayProcess, tokens: dict[str, str]) -> None:
    with client(running, tokens["tina"]) as tina:
        described = tina.describe(pb.DescribeRequest())
        assert (described.max_lease_s, described.default_lease_s) == (600, 600)
        with refused(Code.PERMISSION_DENIED, "lease of 601s"):
            ask(tina, "a", lease_s=601)
        with refused(Code.PERMISSION_DENIED, "127.0.0.1:6999"):
            ask(tina, "a", producer="127.0.0.1:6999")
        first = ask(tina, "a", num_conn=2)
        assert 500 < first.expires_at.seconds - tina.list(pb.ListRequest()).sessions[0].created_at.seconds <= 600
        with refused(Code.RESOURCE_EXHAUSTED, "2 connections", "you get 3"):
            ask(tina, "b", num_conn=2)
        ask(tina, "b")
        with refused(Code.RESOURCE_EXHAUSTED, "2 sessions at once"):
            ask(tina, "c")
        ask(tina, "b")  # the same again is no more
        with refused(Code.PERMISSION_DENIED, "localhost:6999 (127.0.0.1)", "[[policy.rules]] 1 targets"):
            hello(tina, "a", "127.0.0.1:7000", "localhost:6999")
        assert hello(tina, "a", "localhost:7000").state == "ANNOUNCED"
        assert list(tina.list(pb.ListRequest(uid="a")).sessions[0].prod_listeners) == ["127.0.0.1:7000"]
        tina.release(pb.Release(uid="a"))
        ask(tina, "c", num_conn=2)  # what is given back can be had again


def test_a_users_rate_and_backend(running: GatewayProcess, tokens: dict[str, str]) -> None:
    with client(running, tokens["slow"]) as slow:
        with refused(Code.PERMISSION_DENIED, "you get 80 Mb/s"):
            ask(slow, "a")
        with refused(Code.PERMISSION_DENIED, "you may have haproxy"):
            ask(slow, "a", rate=1000, backend="nginx")
        assert ask(slow, "a", rate=8000).backend == "haproxy"
        with refused(Code.RESOURCE_EXHAUSTED, "64 Mb/s"):
            ask(slow, "b", rate=4000)
        assert ask(slow, "b", rate=2000, backend="haproxy").backend == "haproxy"


def test_who_no_rule_names_has_what_all_have(running: GatewayProcess, tokens: dict[str, str]) -> None:
    with client(running, tokens["free"]) as free:
        for uid in "abcd":
            ask(free, uid, num_conn=8)
        assert hello(free, "a", "127.0.0.1:22").state == "ANNOUNCED"


SPELLINGS = [
    "169.254.169.254:80",
    "[::ffff:169.254.169.254]:80",
    "[::ffff:a9fe:a9fe]:80",
    "[64:ff9b::169.254.169.254]:80",
    "[64:ff9b:1::a9fe:a9fe]:80",
    "[2002:a9fe:a9fe::]:80",
    "[::169.254.169.254]:80",
    "[fd00:ec2::254]:80",
    "[fe80::1]:80",
    "0.0.0.0:80",
    "[::]:80",
    "[::ffff:0:0]:80",
    "255.255.255.255:80",
    "224.0.0.1:80",
    "[ff02::1]:80",
    "100.100.100.200:80",
]
NO_ADDRESSES = [
    "2852039166:80",
    "0xa9fea9fe:80",
    "0251.0376.0251.0376:80",
    "169.254.43518:80",
    "0xa9.0xfe.0xa9.0xfe:80",
    "169.254.169.254.:80",
    "[fe80::1%lo]:80",
    "127.1:80",
    "0:80",
    "0x7f000001:80",
    "①⑥⑨.254.169.254:80",
]


def test_metadata_in_every_spelling(running: GatewayProcess, tokens: dict[str, str]) -> None:
    """Not even with a rule that names all of both Internets."""
    with client(running, tokens["mallory"]) as mallory:
        ask(mallory, "a", num_conn=16)
        for target in SPELLINGS:
            with refused(Code.PERMISSION_DENIED, "never"):
                hello(mallory, "a", target)
            with refused(Code.PERMISSION_DENIED, "never"):
                ask(mallory, "b", producer=target)
        for target in NO_ADDRESSES:
            with pytest.raises(grpc.RpcError) as caught:
                hello(mallory, "a", target)
            assert caught.value.code() in (Code.INVALID_ARGUMENT, Code.PERMISSION_DENIED), target
        assert mallory.list(pb.ListRequest(uid="a")).sessions[0].state == "RESERVED"


def test_services_of_the_gateway_itself(running: GatewayProcess, tokens: dict[str, str]) -> None:
    """Neither its loopback by `0.0.0.0/0`, nor its own ports and addresses, nor another user's listener."""
    own = [a for a in _addresses() if not a.startswith("127.")]
    with client(running, tokens["mallory"]) as mallory, client(running, tokens["free"]) as free:
        ask(mallory, "a")
        with socket.create_server(("127.0.0.1", 0)) as service:
            service.settimeout(0.2)
            port = service.getsockname()[1]
            for host in (
                "127.0.0.1",
                "127.0.0.2",
                "localhost",
                "[::1]",
                "[::ffff:127.0.0.1]",
                "[64:ff9b::7f00:1]",
                *own,
            ):
                with refused(Code.PERMISSION_DENIED):
                    hello(mallory, "a", f"{host}:{port}")
            with pytest.raises(TimeoutError):
                service.accept()
        ask(free, "b")
        theirs = free.req(pb.Request(uid="c", role="CONS", num_conn=1, immediate=True)).listeners[0]
        admin_ports = tomllib.loads(running.config.read_text())["server"]["listen"]
        assert len(admin_ports) >= 1
        for target in admin_ports:
            with refused(Code.PERMISSION_DENIED, "own control ports"):
                hello(free, "b", target)
        assert hello(free, "b", theirs).state == "ANNOUNCED"  # one's own may be led on
        with running.client() as admin:
            ask(admin, "d")
            with refused(Code.PERMISSION_DENIED, "somebody else's session"):
                hello(admin, "d", theirs)
            admin.release(pb.Release(uid="d"))


def _addresses() -> list[str]:
    import psutil

    return [a.address for each in psutil.net_if_addrs().values() for a in each if a.family is socket.AF_INET]


def test_policy_test_explains(running: GatewayProcess, tokens: dict[str, str]) -> None:
    lines = running.config.read_text().splitlines()
    said = s2cs(running, "policy", "test", "tina", "--target", "127.0.0.1:22", "--lease", "5m", exit_status=3).stdout
    assert f'[[policy.rules]] 1 "one beamline", {running.config} line {lines.index("[[policy.rules]]") + 1}' in said
    assert "groups tomo" in said
    assert "allowed  a session" in said
    assert "REFUSED  target 127.0.0.1:22" in said
    where = lines.index('targets = ["127.0.0.0/8:7000-7999"]') + 1
    assert f"[[policy.rules]] 1 targets, {running.config} line {where}" in said
    s2cs(running, "policy", "test", "tina", "--target", "localhost:7000")
    s2cs(running, "policy", "test", "nobody", "--group", "tomo", "--lease", "11m", exit_status=3)
    s2cs(running, "policy", "test", "slow", "--rate", "80Mb/s", "--backend", "haproxy", "--peer", "127.0.0.1:9")
    assert "address 'here'" in s2cs(running, "policy", "test", "slow", "--target", "here", exit_status=2).stderr
    with client(running, tokens["tina"]) as tina:
        ask(tina, "a", num_conn=3)
        answer = json.loads(s2cs(running, "policy", "test", "tina", "--json", exit_status=3).stdout)
    assert (answer["allowed"], answer["sessions"], answer["known"]) == (False, 1, True)
    assert answer["decisions"][0]["rule"] == "[[policy.rules]] 1 connections"
    assert answer["decisions"][0]["source"].endswith(f"line {lines.index('connections = 3') + 1}")


def test_a_reload_ends_nothing_and_says_what_is_no_longer_allowed(tmp_path: Path) -> None:
    with gateway(tmp_path / "g") as running, client(running, running.add_user("alice")) as alice:
        ask(alice, "a", num_conn=2)
        ask(alice, "b")
        with running.config.open("a") as file:
            file.write('\n[[policy.rules]]\nusers = ["alice"]\nconnections = 1\nsessions = 1\n')
        said = s2cs(running, "reload").stderr
        assert "no longer allowed, and kept until its lease ends: session a of alice ([[policy.rules]] 1 connec" in said
        assert "session b" not in said
        assert [session.state for session in alice.list(pb.ListRequest()).sessions] == ["RESERVED", "RESERVED"]
        anchor = DevelopmentCA.create("x").certificate.der
        with refused(Code.RESOURCE_EXHAUSTED, "2 connections"):
            alice.renew(pb.Renew(uid="a", lease_s=60, trust_anchor=anchor))
