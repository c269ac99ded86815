"""Whatever a value or a file holds, it is read or refused in one printable sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s2cs.settings import Settings
from s2cs.settings_file import load
from s2uc.config import KnownGateway, SessionRecord, UserConfig
from s2uc.keys import AppKey, read_key
from s2uc.login.grant import Grant
from s2uc.login.vault import FileVault
from s2uc.side import Terms
from s2uc.ticket import Ticket
from scistream.errors import ScistreamError
from scistream.vocabulary import Endpoint, PortRange, Rate, Role, Uid, parse_duration, printable
from scistream.x509 import PrivateKey, SessionCA

_UID = Uid("scan-7")
_SOON = datetime.now(UTC) + timedelta(hours=1)
_CA = SessionCA.create(_UID, _SOON)
_TEXTS = st.one_of(
    st.text(max_size=60), st.text(alphabet="0123456789.:[]%-/abGgsmhdkMTx \n\t\x00\x1b\u202e\u0661é", max_size=40)
)
_ODD = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), _TEXTS),
    st.lists(_TEXTS, max_size=3),
    st.dictionaries(_TEXTS, _TEXTS, max_size=2),
    st.sampled_from(
        [10**30, "0001-01-01T00:00:00", "9999-12-31T23:59:59-14:00", "2999-01-01", _CA.key.pem.decode()],
    ),
)
_fuzzed = settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def _read_or_refused(read: Callable[[], object]) -> None:
    try:
        read()
    except ScistreamError as error:
        assert all(line.isprintable() for line in str(error).split("\n")), str(error)


@pytest.mark.parametrize("parse", [Endpoint.parse, Rate.parse, parse_duration, Uid, PortRange.parse, Role.parse])
def test_values(parse: Callable[[str], object]) -> None:
    @_fuzzed
    @given(_TEXTS)
    def attack(text: str) -> None:
        _read_or_refused(lambda: parse(text))

    attack()


@_fuzzed
@given(_TEXTS)
def test_an_endpoint_is_safe_in_any_configuration_file(text: str) -> None:
    def read() -> None:
        found = str(Endpoint.parse(text))
        assert Endpoint.parse(found) == Endpoint.parse(text)
        assert found.isascii()
        assert all(c.isalnum() or c in ".-_:[]" for c in found)

    _read_or_refused(read)


@_fuzzed
@given(st.text())
def test_what_is_printable_stays_and_the_rest_is_escaped(text: str) -> None:
    assert printable(text).isprintable()
    assert printable(text) == text or not text.isprintable()


def _use_ticket(path: Path) -> None:
    ticket = Ticket.load(path)
    Terms(uid=ticket.uid, num_conn=ticket.num_conn, rate=ticket.rate, producer=ticket.producer)
    ticket.ca.issue(PrivateKey.generate().csr(_UID, Role.CONS), Role.CONS)


def _use_login(login: FileVault) -> None:
    grant = login.load()
    assert grant
    assert not grant.fresh() or grant.good()
    assert grant.terms.form()


def _files(directory: Path) -> dict[str, tuple[Path, Callable[[Path], object]]]:
    """Each kind of file that s2uc reads, a good one, and what reads it."""
    config = UserConfig(directory)
    config.save_gateway(KnownGateway("aps", Endpoint("aps.example", 5000), "", "token"))
    config.save_session(SessionRecord(_UID, {Role.PROD: "aps"}, {Role.PROD: "key"}, _SOON))
    gateway = KnownGateway("aps", Endpoint("aps.example", 5000)).live()
    AppKey(_UID, Role.CONS, gateway.with_token("key")).save(directory / "key")
    Ticket(_UID, 1, Rate(), "aps", (Endpoint("127.0.0.1", 9),), _SOON, _CA).save(directory / "ticket")

    login = FileVault(directory, "aps")
    login.save(Grant("access", "refresh", 1.0, 2.0, "https://issuer.example", "s2uc", ("openid",), "urn:aps"))

    def find(path: Path) -> None:
        config.find_session(_UID)
        config.save_session(SessionRecord(Uid("other"), {}))

    return {
        "gateway": (directory / "gateways" / "aps.json", lambda path: [known.live() for known in config.gateways()]),
        "login": (directory / "logins" / "aps.json", lambda path: _use_login(login)),
        "session": (directory / "sessions" / f"{_UID}.json", find),
        "key": (directory / "key", lambda path: read_key(path, _UID, Role.CONS)),
        "ticket": (directory / "ticket", _use_ticket),
    }


@pytest.mark.parametrize("kind", ["gateway", "login", "session", "key", "ticket"])
def test_files_of_the_user(tmp_path: Path, kind: str) -> None:
    path, read = _files(tmp_path)[kind]
    good = json.loads(path.read_text())

    def attack_with(text: str) -> None:
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        _read_or_refused(lambda: read(path))

    @_fuzzed
    @given(st.sampled_from(sorted(good)), _ODD, st.sampled_from(["changed", "missing", "truncated"]))
    def attack(name: str, value: Any, how: str) -> None:
        content = {**good, name: value}
        if how == "missing":
            del content[name]
        text = json.dumps(content)
        attack_with(text[: len(text) * 3 // 4] if how == "truncated" else text)

    attack()
    for text in ("", "\x00" * 50, "NaN", "[]", "[" * 100_000, '{"a":' * 50_000):
        attack_with(text)


_KEYS = [(table, key) for table in Settings.model_fields for key in type(getattr(Settings(), table)).model_fields]


@_fuzzed
@given(st.sampled_from([*_KEYS, ("server", "unknown"), ("unknown", "key")]), _TEXTS)
def test_settings_by_the_environment(tmp_path: Path, where: tuple[str, str], text: str) -> None:
    file = tmp_path / "s2cs.toml"
    file.touch()
    _read_or_refused(lambda: load(file, {f"SCISTREAM_{where[0].upper()}__{where[1].upper()}": text}))


def test_settings_that_are_no_settings(tmp_path: Path) -> None:
    file = tmp_path / "s2cs.toml"
    for text in (
        "a=" + "[" * 50_000,
        "[server]\n[server]\n",
        "\x00",
        "server = 5",
        "[server]\nname = [[]]",
        "a" * 10**6,
    ):
        file.write_text(text)
        with pytest.raises(ScistreamError):
            load(file, {})
