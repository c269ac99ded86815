"""Users who show a certificate on the control channel."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

import s2uc
from s2uc.blocking import wait_for
from s2uc.login.who import ask_who
from scistream.errors import InvalidArgument, Unavailable
from scistream.vocabulary import Endpoint
from tests.support.authority import Authority, Pair
from tests.support.gateways import gateway
from tests.support.ports import ports
from tests.support.user import User


@dataclass
class Door:
    """A gateway's port for certificates, and a user."""

    address: str
    ca: Path
    authority: Authority
    user: User

    def library(self, pair: Pair | None) -> s2uc.Gateway:
        """Give the gateway as the library takes it."""
        certificate, key = pair or (None, None)
        endpoint = Endpoint.parse(self.address)
        return s2uc.Gateway("aps", endpoint, self.ca.read_bytes(), certificate=certificate, key=key)

    def add(self, certificate: Path, key: Path) -> tuple[str, ...]:
        """Give the command that makes it known."""
        files = ("--ca", str(self.ca), "--cert", str(certificate), "--key", str(key))
        return ("gateway", "add", "aps", self.address, *files)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    directory, authority = tmp_path_factory.mktemp("certificates"), Authority()
    with ports(1) as free, gateway(directory / "aps") as aps:
        (aps.directory / "users.crt").write_bytes(authority.pem)
        address = f"127.0.0.1:{free.first}"
        aps.configure(f'[auth.certificates]\nlisten = ["{address}"]\nca = "users.crt"')
        yield Door(address, aps.directory / "certs/ca.crt", authority, User(directory / "user"))


def put(directory: Path, pair: Pair) -> tuple[Path, Path]:
    """Write a certificate and its key to files."""
    certificate, key = directory / "me.crt", directory / "me.key"
    certificate.write_bytes(pair[0])
    key.touch(mode=0o600)
    key.write_bytes(pair[1])
    return certificate, key


def test_a_certificate_says_who_one_is_and_is_read_again_when_it_is_renewed(door: Door, tmp_path: Path) -> None:
    files = put(tmp_path, door.authority.issue("grace"))
    added = door.user.json(*door.add(*files))
    assert (added["user"], added["method"]) == ("cert:grace", "certificate")
    [known] = door.user.json("gateway", "list")["gateways"]
    assert known["credentials"] == "certificate"
    kept = json.loads((door.user.config / "gateways/aps.json").read_text())
    assert "PRIVATE KEY" not in str(kept)
    put(tmp_path, door.authority.issue("grace2"))
    [found] = door.user.json("check-auth")["gateways"]
    assert (found["user"], found["until"] is not None) == ("cert:grace2", True)


def test_the_library_takes_a_certificate(door: Door) -> None:
    who = wait_for(ask_who(door.library(door.authority.issue("ada"))))
    assert (who.user, who.method, who.role) == ("cert:ada", "certificate", "user")
    with pytest.raises(InvalidArgument, match="go together"):
        s2uc.Gateway("aps", Endpoint.parse(door.address), certificate=b"x")
    assert "PRIVATE KEY" not in repr(door.library(door.authority.issue("ada")))


def test_no_certificate_and_a_strangers(door: Door) -> None:
    with pytest.raises(Unavailable, match="does this port want your certificate"):
        wait_for(ask_who(door.library(None), 5))
    with pytest.raises(Unavailable, match="it does not take your certificate"):
        wait_for(ask_who(door.library(Authority("strangers").issue("ada")), 5))


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("readable", "others can read it"),
        ("mixed up", "do not belong together"),
        ("encrypted", "is encrypted"),
        ("no key", "are not a certificate and its private key"),
        ("gone", "cannot be read"),
    ],
)
def test_files_that_cannot_be_used(door: Door, tmp_path: Path, fault: str, sentence: str) -> None:
    certificate, key = put(tmp_path, door.authority.issue("ada"))
    match fault:
        case "readable":
            key.chmod(0o644)
        case "mixed up":
            key.write_bytes(door.authority.issue("ada")[1])
        case "encrypted":
            secret = serialization.load_pem_private_key(key.read_bytes(), None)
            how = serialization.BestAvailableEncryption(b"word")
            key.write_bytes(secret.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how))
        case "no key":
            key.write_text("key")
        case "gone":
            key.unlink()
    assert sentence in door.user.complaint(*door.add(certificate, key), expect=2)


def test_a_key_alone(door: Door, tmp_path: Path) -> None:
    said = door.user.complaint("gateway", "add", "aps", door.address, "--key", str(tmp_path / "k"), expect=2)
    assert "--cert and --key go together" in said
