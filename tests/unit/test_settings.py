"""Settings: every fault is named, with what was found and what is accepted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from s2cs.settings_file import SettingsError, load
from s2cs.tables import others_can_read


def written(directory: Path, text: str) -> Path:
    file = directory / "s2cs.toml"
    file.write_text(text)
    return file


_OPAQUE = "[[auth.introspection]]\nname = 'x'\nendpoint = 'https://x/introspect'\nclient_id = 'g'\naudience = 'g'\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[server]\nnmae = 'x'", ["[server] nmae: unknown key", "did you mean 'name'?; accepted are name, listen"]),
        ("[servr]\nname = 'x'", ["[servr]: unknown table", "server, network"]),
        ("[server]\nname = 'a b'", ["[server] name: found 'a b'"]),
        ("[server]\nlisten = []", ["[server] listen"]),
        ("[server]\nlisten = ['127.0.0.1']", ["[server] listen: found '127.0.0.1'", "HOST:PORT"]),
        ("[server]\nlisten = '127.0.0.1:5000'", ["[server] listen: found '127.0.0.1:5000'"]),
        ("[server]\non_shutdown = 'panic'", ["[server] on_shutdown: found 'panic'", "'release'"]),
        ("[network]\nlan = 'eth0'", ["[network] lan: found 'eth0'"]),
        ("[network]\nwan = '0.0.0.0'", ["[network] wan: found '0.0.0.0'", "name one address"]),
        ("[network]\nports = '5-2'", ["[network] ports: found '5-2'", "FIRST-LAST"]),
        ("[network]\nports = 5000", ["[network] ports: found 5000"]),
        ("[network]\nwan = 'gateway'", ["[network] wan: found 'gateway'", "use one IPv4 or IPv6 address"]),
        ("[network]\nwan_port = 65536", ["[network] wan_port: found 65536", "65535"]),
        ("[network]\nwan_port = 30999\n[compat]\npsk = true", ["wan_port tells sessions apart", "leave one out"]),
        ("[s2ds]\nbackend = 'squid'", ["[s2ds] backend: found 'squid'", "'nginx'"]),
        ("[s2ds]\nbuffer_bytes = 1", ["[s2ds] buffer_bytes: found 1", "4096"]),
        ("[s2ds]\nciphers = ['RC4']", ["[s2ds] ciphers: found 'RC4'", "TLS_AES_128_GCM_SHA256"]),
        ("[s2ds]\nprograms = {squid = '/bin/sh'}", ["[s2ds] programs", "'nginx'"]),
        ("[limits]\nsessions = 'many'", ["[limits] sessions: found 'many'", "integer"]),
        ("[limits]\nmax_lease = 'later'", ["[limits] max_lease: found 'later'", "2h or 1d"]),
        ("[limits]\ndefault_lease = '2h'\nmax_lease = '1h'", ["[limits]", "longer than max_lease"]),
        ("[policy]\ntargets = ['here']", ["[policy] targets: found 'here'"]),
        ("[policy]\ntargets = ['10.0.0.0/8:http']", ["[policy] targets: found '10.0.0.0/8:http'", "port range"]),
        ("[policy]\npeers = ['169.254.0.0/16']", ["[policy] peers", "link-local"]),
        ("[[policy.rules]]\nsessions = 3", ["[[policy.rules]] 1: name users or groups"]),
        ("[[policy.rules]]\nusers = ['a']\n[[policy.rules]]\nuser = 'b'", ["[[policy.rules]] 2 user: unknown key"]),
        ("[[policy.rules]]\nusers = ['a']\nrate = 'fast'", ["[[policy.rules]] 1 rate: found 'fast'", "10Gb/s"]),
        ("[[policy.rules]]\nusers = ['a']\nrate = '0'", ["[[policy.rules]] 1", "leave rate out"]),
        ("[[policy.rules]]\nusers = ['a']\nsessions = -1", ["[[policy.rules]] 1 sessions: found -1"]),
        ("[[policy.rules]]\nusers = ['a']\nbackends = ['squid']", ["[[policy.rules]] 1 backends: found 'squid'"]),
        ("[[policy.rules]]\nusers = ['a']\nmax_lease = 'ever'", ["[[policy.rules]] 1 max_lease: found 'ever'"]),
        ("[[policy.rules]]\nusers = 'a'", ["[[policy.rules]] 1 users: found 'a'"]),
        ("policy = 3", ["[policy]: found 3"]),
        ("[auth]\ntokens = false", ["[auth]", "nobody could get in"]),
        (
            "[[auth.oidc]]\nname = 'lab'\nissuer = 'https://x'\naudience = 'g'\naud = 1",
            ["[[auth.oidc]] 1 aud: unknown"],
        ),
        (
            "[[auth.oidc]]\nname = 'A:b'",
            ["[[auth.oidc]] 1 name: found 'A:b'", "[[auth.oidc]] 1 issuer: field required"],
        ),
        ("[[auth.oidc]]\nissuer = 'http://lab.example.org'", ["issuer: found 'http://lab.example.org'; give an https"]),
        ("[[auth.oidc]]\nalgorithms = ['HS256']", ["[[auth.oidc]] 1 algorithms: found 'HS256'", "'RS256'"]),
        ("[[auth.oidc]]\nalgorithms = ['none']", ["[[auth.oidc]] 1 algorithms: found 'none'"]),
        (
            "[[auth.oidc]]\ngrants = {look = ['everything']}",
            ["[[auth.oidc]] 1 grants: found 'everything'", "'sessions'"],
        ),
        (_OPAQUE, ["[[auth.introspection]] 1: give either secret_file or secret_env"]),
        (
            "[[auth.introspection]]\nname = 'x'\nendpoint = 'https://x/y'\nclient_id = 'g'\nsecret_env = 'A'\n",
            ["[[auth.introspection]] 1: give audience or required_scopes"],
        ),
        (
            _OPAQUE + "secret_env = 'A'\n" + _OPAQUE + "secret_env = 'B'",
            ["[auth]: each method needs a name of its own"],
        ),
        ("[auth.certificates]\nlisten = ['127.0.0.1:5001']", ["[auth.certificates]: listen needs ca"]),
    ],
)
def test_a_fault_is_named(tmp_path: Path, text: str, says: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load(written(tmp_path, text), {})
    for words in says:
        assert words in str(caught.value)


def test_all_faults_at_once(tmp_path: Path) -> None:
    file = written(tmp_path, "[server]\nx = 1\n[network]\nports = 'y'\n[limits]\nsessions = 0\n")
    with pytest.raises(SettingsError) as caught:
        load(file, {})
    assert len(str(caught.value).splitlines()) == 3


def test_not_toml_and_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="not TOML"):
        load(written(tmp_path, "[server"), {})
    with pytest.raises(SettingsError, match=r"not TOML.*write each \[table\] once"):
        load(written(tmp_path, "[web]\nlisten = []\n[web]\nidle = 60\n"), {})
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        load(tmp_path / "none.toml", {})


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    text = f"[server]\nkey = '/etc/key.pem'\n[auth.certificates]\nca = 'users.crt'\n{_OPAQUE}secret_file = 'secret'"
    settings = load(written(tmp_path, text), {})
    assert settings.auth.certificates.ca == tmp_path / "users.crt"
    assert settings.auth.introspection[0].secret_file == tmp_path / "secret"
    assert settings.server.state_dir == tmp_path / "state"
    assert settings.server.key == Path("/etc/key.pem")
    assert (settings.server.runtime_dir, settings.audit.directory) == ("auto", "")
    others = "[server]\nruntime_dir = 'run'\n[s2ds]\nprograms = {nginx = 'bin/nginx'}\n[audit]\ndirectory = 'log'"
    settings = load(written(tmp_path, others), {})
    assert settings.server.runtime_dir == tmp_path / "run"
    assert settings.s2ds.programs == {"nginx": tmp_path / "bin/nginx"}
    assert settings.audit.directory == tmp_path / "log"


def test_the_environment_overrides(tmp_path: Path) -> None:
    file = written(tmp_path, "[limits]\nsessions = 1")
    environ = {
        "SCISTREAM_LIMITS__SESSIONS": "7",
        "SCISTREAM_NETWORK__PORTS": "4000-4009",
        "SCISTREAM_POLICY__TARGETS": '["10.0.0.0/8"]',
        "SCISTREAM_UID": "not a setting",
    }
    settings = load(file, environ)
    assert settings.limits.sessions == 7
    assert len(settings.network.ports) == 10
    assert str(settings.policy.targets[0]) == "10.0.0.0/8"
    with pytest.raises(SettingsError, match=r"\[limits\] sesions: unknown key"):
        load(file, {"SCISTREAM_LIMITS__SESIONS": "7"})


@pytest.mark.parametrize(
    ("owner", "group", "mode", "others"),
    [
        (1000, 1000, 0o600, False),
        (1000, 1000, 0o640, True),
        (0, 1000, 0o440, False),  # as Kubernetes gives a pod its Secret
        (0, 7, 0o440, False),
        (0, 8, 0o440, True),
        (0, 1000, 0o444, True),
        (0, 1000, 0o460, True),
        (1001, 1000, 0o440, True),
    ],
)
def test_who_can_read_a_secret(
    monkeypatch: pytest.MonkeyPatch, owner: int, group: int, mode: int, others: bool
) -> None:
    """For user 1000 of the groups 1000 and 7."""
    for name, value in {"geteuid": 1000, "getegid": 1000, "getgroups": [7]}.items():
        monkeypatch.setattr(os, name, lambda value=value: value)
    monkeypatch.setattr(Path, "stat", lambda path: os.stat_result((mode, 0, 0, 1, owner, group, 0, 0, 0, 0)))
    assert others_can_read(Path("secret")) is others


def test_a_secret_of_root_is_closed_to_groups_where_root_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"geteuid": 0, "getegid": 0, "getgroups": [0]}.items():
        monkeypatch.setattr(os, name, lambda value=value: value)
    monkeypatch.setattr(Path, "stat", lambda path: os.stat_result((0o440, 0, 0, 1, 0, 0, 0, 0, 0, 0)))
    assert others_can_read(Path("secret"))
