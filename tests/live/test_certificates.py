"""Certificates of clients on control ports of their own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from scistream.proto import scistream_pb2 as pb
from scistream.wire import grpc
from tests.support import programs
from tests.support.authority import Authority, Pair
from tests.support.gateways import Client, GatewayProcess, gateway
from tests.support.ports import port_block


class Door:
    """A gateway with a port for certificates."""

    def __init__(self, running: GatewayProcess, authority: Authority) -> None:
        self.gateway = running
        self.authority = authority
        self.plain = running.config.read_text()
        self.port = port_block(1)
        (running.directory / "users.crt").write_bytes(authority.pem)
        self.configure("admins = ['root']")

    def configure(self, more: str = "", ok: bool = True) -> str:
        """Change its settings; what is said when they are refused."""
        table = f'[auth.certificates]\nlisten = ["127.0.0.1:{self.port}"]\nca = "users.crt"\n{more}\n'
        self.gateway.config.write_text(f"{self.plain}\n{table}")
        done = self.s2cs("reload")
        assert (done.returncode == 0) == ok, done.stderr
        return done.stderr

    def s2cs(self, *command: str) -> subprocess.CompletedProcess[str]:
        return programs.run("s2cs", *command, "--config", self.gateway.config)

    @contextmanager
    def client(self, pair: Pair | None, token: str = "") -> Iterator[Client]:
        pem, key = pair or (None, None)
        credentials = grpc.ssl_channel_credentials(self.gateway.ca, key, pem)
        with grpc.secure_channel(f"127.0.0.1:{self.port}", credentials) as channel:
            yield Client(channel, token)

    def whoami(self, pair: Pair | None, token: str = "") -> pb.GatewayDescription:
        with self.client(pair, token) as client:
            found: pb.GatewayDescription = client.describe(pb.DescribeRequest(), timeout=10)
            return found

    def refusal(self, pair: Pair | None) -> tuple[str, str]:
        with pytest.raises(grpc.RpcError) as caught:
            self.whoami(pair)
        return caught.value.code().name, caught.value.details()


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with gateway(tmp_path_factory.mktemp("certificates") / "g") as running:
        yield Door(running, Authority())


def test_a_good_certificate(door: Door) -> None:
    found = door.whoami(door.authority.issue("alice"))
    assert (found.user, found.identity, found.method) == ("cert:alice", "certificate:cert:alice", "certificate")
    assert (found.role, list(found.scopes)) == ("user", ["read", "sessions"])
    assert 86000 < found.authenticated_until.ToSeconds() - time.time() < 86500
    assert door.whoami(door.authority.issue("root")).admin
    with door.client(door.authority.issue("alice")) as alice:
        alice.req(pb.Request(uid="a-1", role="PROD", num_conn=1, immediate=True))
        assert [session.owner for session in alice.list(pb.ListRequest()).sessions] == ["cert:alice"]
        alice.release(pb.Release(uid="a-1"))


def test_a_token_goes_before_the_certificate(door: Door) -> None:
    assert door.whoami(door.authority.issue("alice"), door.gateway.token).user == "admin"


@pytest.mark.parametrize(
    "pair",
    [
        None,
        Authority().issue("alice"),
        lambda door: door.authority.issue("alice", days=-1),
        lambda door: door.authority.issue("alice", use=ExtendedKeyUsageOID.SERVER_AUTH),
    ],
    ids=["none", "another CA of the same name", "expired", "a server's"],
)
def test_tls_refuses(door: Door, pair: Any) -> None:
    status, words = door.refusal(pair(door) if callable(pair) else pair)
    assert status == "UNAVAILABLE"
    assert "user" not in words


def test_the_other_ports_ask_for_none_and_believe_none(door: Door) -> None:
    pem, key = door.authority.issue("alice")
    credentials = grpc.ssl_channel_credentials(door.gateway.ca, key, pem)
    with grpc.secure_channel(door.gateway.address, credentials) as channel, pytest.raises(grpc.RpcError) as caught:
        Client(channel, "").describe(pb.DescribeRequest(), timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_name_that_cannot_be_shown(door: Door) -> None:
    status, words = door.refusal(door.authority.issue("Alice Smith"))
    assert (status, "cn of your certificate has 'Alice Smith'" in words) == ("UNAUTHENTICATED", True)


def test_a_person_is_kept_out(door: Door) -> None:
    pair = door.authority.issue("mallory")
    door.whoami(pair)
    assert door.s2cs("user", "disable", "cert:mallory").returncode == 0
    status, words = door.refusal(pair)
    assert (status, "is disabled" in words) == ("PERMISSION_DENIED", True)


def test_the_list_of_revoked_certificates(door: Door) -> None:
    crl: Path = door.gateway.directory / "users.crl"
    bob, carol = door.authority.issue("bob"), door.authority.issue("carol")
    crl.write_bytes(door.authority.revoke(bob))
    door.configure('crl = "users.crl"\nusername = "email"')
    assert door.whoami(carol).user == "cert:carol@example.org"
    assert "is revoked" in door.refusal(bob)[1]
    with door.client(carol) as connected:
        connected.describe(pb.DescribeRequest())
        crl.write_bytes(door.authority.revoke(bob, carol))
        time.sleep(1.1)  # no reload
        with pytest.raises(grpc.RpcError, match="is revoked"):
            connected.describe(pb.DescribeRequest())
    crl.write_bytes(Authority().revoke())
    time.sleep(1.1)
    assert "is revoked" in door.refusal(bob)[1]  # somebody else's list changes nothing
    assert "not signed by a CA" in door.configure('crl = "users.crl"', ok=False)
    crl.write_bytes(door.authority.revoke(good_for=-timedelta(days=1)))
    time.sleep(1.1)
    status, words = door.refusal(carol)
    assert (status, "out of date" in words) == ("UNAVAILABLE", True)
    crl.write_bytes(door.authority.revoke())
    door.configure()


def test_another_ca_after_a_reload(door: Door) -> None:
    pair = door.authority.issue("alice")
    other = Authority("others")
    (door.gateway.directory / "users.crt").write_bytes(other.pem)
    door.configure()
    assert door.refusal(pair)[0] == "UNAVAILABLE"
    assert door.whoami(other.issue("dora")).user == "cert:dora"
    (door.gateway.directory / "users.crt").write_text("nothing")
    assert "has no certificates in PEM" in door.configure(ok=False)
    assert door.whoami(other.issue("dora")).user == "cert:dora"
