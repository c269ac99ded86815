"""What s2uc keeps on file: modes, whole writes, and what it refuses to read."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from s2uc.config import KnownGateway, SessionRecord, UserConfig, known_gateway
from s2uc.files import read_secret, write_secret
from s2uc.gateway import Gateway
from s2uc.keys import AppKey, read_key
from s2uc.ticket import Ticket
from scistream.errors import FailedPrecondition, InvalidArgument, NotFound
from scistream.vocabulary import Endpoint, Rate, Role, Uid
from scistream.x509 import SessionCA

_ENDPOINT = Endpoint("gateway.example", 5000)
_UID = Uid("scan-7")


@pytest.fixture
def config(tmp_path: Path) -> UserConfig:
    return UserConfig(tmp_path / "deep" / "config")


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_gateways(config: UserConfig) -> None:
    assert config.gateways() == []
    gateway = KnownGateway("aps.2-BM", _ENDPOINT, "PEM", "secret")
    config.save_gateway(gateway)
    assert config.gateway("aps.2-BM") == gateway
    assert config.gateways() == [gateway]
    assert _mode(config.directory) == 0o700
    assert _mode(config.directory / "gateways") == 0o700
    assert _mode(config.directory / "gateways" / "aps.2-BM.json") == 0o600
    assert "secret" not in repr(gateway)
    assert "secret" not in repr(gateway.live())
    assert known_gateway("aps.2-BM", str(config.directory)) == Gateway("aps.2-BM", _ENDPOINT, b"PEM", "secret")
    config.forget_gateway("aps.2-BM")
    assert config.gateways() == []
    others = (Endpoint("other.example", 5000), Endpoint("::1", 5001))
    config.save_gateway(several := KnownGateway("aps", _ENDPOINT, others=others))
    assert config.gateway("aps") == several
    assert several.live().for_application("key").endpoints == (_ENDPOINT, *others)
    config.forget_gateway("aps")
    with pytest.raises(InvalidArgument, match="none yet"):
        config.forget_gateway("aps.2-BM")


@pytest.mark.parametrize("name", ["", ".", "../x", "a/b", "-x", "a b", "x" * 64, "a\n"])
def test_gateway_names(config: UserConfig, name: str) -> None:
    with pytest.raises(InvalidArgument, match="gateway name"):
        KnownGateway(name, _ENDPOINT)
    with pytest.raises(InvalidArgument, match="is not known"):
        config.gateway(name)


def test_sessions(config: UserConfig) -> None:
    record = SessionRecord(_UID, {Role.PROD: "aps", Role.CONS: "alcf"}, {Role.PROD: "key"}, datetime.now(UTC))
    assert config.find_session(_UID) is None
    with pytest.raises(NotFound):
        config.session(_UID)
    config.save_session(record)
    assert config.session(_UID) == record
    assert _mode(config.directory / "sessions" / "scan-7.json") == 0o600
    other = SessionRecord(Uid("other"), {Role.PROD: "aps"}, {}, datetime.now(UTC) + timedelta(hours=1))
    config.save_session(other)  # clears away what has expired
    assert config.find_session(_UID) is None
    assert config.session(Uid("other")) == other
    config.forget_session(Uid("other"))
    config.forget_session(Uid("other"))


def test_damaged_files(config: UserConfig) -> None:
    config.save_gateway(KnownGateway("aps", _ENDPOINT))
    path = config.directory / "gateways" / "aps.json"
    for content in ("", "[]", "{}", '{"name": "aps", "address": "nowhere", "ca": "", "token": ""}'):
        path.write_text(content)
        with pytest.raises(InvalidArgument, match="is not a gateway file"):
            config.gateway("aps")
    config.save_session(SessionRecord(_UID, {}))
    (config.directory / "sessions" / "scan-7.json").write_text('{"uid": "../x"}')
    with pytest.raises(InvalidArgument, match="is not a session file"):
        config.session(_UID)


def test_the_place_of_the_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SCISTREAM_CONFIG_DIR", raising=False)
    assert UserConfig.locate().directory == Path.home() / ".config" / "scistream"
    monkeypatch.setenv("SCISTREAM_CONFIG_DIR", str(tmp_path / "a"))
    assert UserConfig.locate().directory == tmp_path / "a"
    assert UserConfig.locate(str(tmp_path / "b")).directory == tmp_path / "b"
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPrecondition, match="cannot be made"):
        UserConfig(tmp_path / "file").save_gateway(KnownGateway("aps", _ENDPOINT))


def test_secrets(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write_secret(path, "one")
    write_secret(path, "two")
    assert read_secret(path) == "two"
    assert _mode(path) == 0o600
    assert list(tmp_path.iterdir()) == [path]
    for mode in (0o640, 0o604, 0o660):
        path.chmod(mode)
        with pytest.raises(InvalidArgument, match="chmod 600"):
            read_secret(path)
    path.chmod(0o600)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidArgument, match="not a text file"):
        read_secret(path)
    with pytest.raises(InvalidArgument, match="cannot be read"):
        read_secret(tmp_path / "none")
    with pytest.raises(InvalidArgument, match="cannot be read"):
        read_secret(tmp_path)
    with pytest.raises(FailedPrecondition, match="cannot be written"):
        write_secret(tmp_path / "none" / "secret", "x")


def test_key_files(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "k"
    key = AppKey(_UID, Role.PROD, Gateway("aps", _ENDPOINT, b"PEM", "the-key"))
    key.save(path)
    assert _mode(path) == 0o600
    assert read_key(path, _UID, Role.PROD) == key
    with pytest.raises(InvalidArgument, match="the PROD side of session scan-7"):
        read_key(path, _UID, Role.CONS)
    with pytest.raises(InvalidArgument, match="the PROD side of session scan-7"):
        read_key(path, Uid("other"), Role.PROD)
    write_secret(path, "bare-key\n")
    assert read_key(path, _UID, Role.PROD) == "bare-key"
    for content in ("", "{}", "{", json.dumps({"address": "x"})):
        write_secret(path, content)
        with pytest.raises(InvalidArgument, match="not a key file"):
            read_key(path, _UID, Role.PROD)


def test_tickets(tmp_path: Path) -> None:
    end = datetime.now(UTC) + timedelta(hours=1)
    ca = SessionCA.create(_UID, end)
    ticket = Ticket(_UID, 2, Rate(10), "aps", (Endpoint("::1", 5),), end, ca)
    path = tmp_path / "ticket"
    ticket.save(path)
    assert _mode(path) == 0o600
    found = Ticket.load(path)
    assert (found.uid, found.num_conn, found.rate, found.listeners) == (_UID, 2, Rate(10), (Endpoint("::1", 5),))
    assert found.expires_at == end
    assert found.ca.certificate.der == ca.certificate.der
    assert "PRIVATE" not in repr(found)
    content = json.loads(path.read_text())
    other = SessionCA.create(_UID, end)
    write_secret(path, json.dumps(content | {"ca": other.certificate.pem.decode()}))
    with pytest.raises(InvalidArgument, match="is damaged"):
        Ticket.load(path)
    write_secret(path, json.dumps(content | {"version": 3}))
    with pytest.raises(InvalidArgument, match="this version"):
        Ticket.load(path)


@pytest.mark.parametrize("token", ["a b", "a\n", "a\x00", "ä", "x" * 13_000])
def test_tokens(token: str) -> None:
    with pytest.raises(InvalidArgument, match="one line of printable characters") as caught:
        Gateway("aps", _ENDPOINT, token=token)
    assert token not in str(caught.value)
