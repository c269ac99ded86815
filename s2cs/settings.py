"""The gateway's settings: one TOML file, validated whole, with environment variables over it.

`SCISTREAM_NETWORK__LAN=10.0.0.1` sets `lan` of `[network]`. Relative paths are relative to the file.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from s2cs.identity.settings import Auth
from s2cs.policy.reach import Reach
from s2cs.tables import Duration, Listen, Table, read_by
from scistream.errors import ScistreamError
from scistream.vocabulary import Endpoint, PortRange, Rate, parse_round_trip, shown

GATEWAY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
SEARCHED = (Path("s2cs.toml"), Path("/etc/scistream/s2cs.toml"))


def _ip(value: object) -> str:
    address = ipaddress.ip_address(str(value))
    if address.is_unspecified:
        raise ValueError("name one address of this host, not all of them; others have to reach it")
    return str(address)


Address = Annotated[str, BeforeValidator(_ip)]
Ports = Annotated[PortRange, read_by(PortRange.parse)]
Networks = tuple[Annotated[Reach, read_by(Reach.parse)], ...]
Cipher = Literal["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"]
BackendName = Literal["stunnel", "haproxy", "nginx"]


class Server(Table):
    """`[server]`: the control channel and this gateway's own things."""

    name: Annotated[str, Field(pattern=rf"^{GATEWAY_NAME.pattern}$")] = "gateway"
    listen: Annotated[tuple[Listen, ...], Field(min_length=1)] = (Endpoint("127.0.0.1", 5000),)
    certificate: Path = Path("certs/server.crt")  # PEM, with the chain if there is one
    key: Path = Path("certs/server.key")
    state_dir: Path = Path("state")
    runtime_dir: Literal["auto"] | Path = "auto"  # keys of sessions; auto is a place in memory, where there is one
    on_shutdown: Literal["keep", "release"] = "keep"  # the streams, for the next start to take up


class NetworkSettings(Table):
    """`[network]`: where data comes in and goes out."""

    lan: Address = "127.0.0.1"
    wan: Address = "127.0.0.1"
    lan_advertise: str = ""  # what others are told instead, behind address translation
    wan_advertise: str = ""
    ports: Ports = PortRange(30000, 30999)
    bandwidth: Annotated[Rate, read_by(Rate.parse)] = Rate()  # that one connection is to reach; 0: what the WAN has
    rtt: Annotated[float, read_by(parse_round_trip)] = 0.05  # seconds, to the other facility


class DataServerSettings(Table):
    """`[s2ds]`: the proxies."""

    backend: Literal["auto"] | BackendName = "auto"
    launcher: Literal["process"] = "process"
    user: str = ""  # whom proxies run as; empty is scistream-s2ds or nobody when S2CS is root, else S2CS's own
    programs: dict[BackendName, Path] = Field(default_factory=dict)  # where a proxy is, if not where it is looked for
    buffer_bytes: Annotated[int, Field(ge=4096, le=16 * 2**20)] = 256 * 1024
    ciphers: tuple[Cipher, ...] = ()  # in order; empty = AES-128-GCM first where the CPU has AES
    grace: Duration = 1  # of a release: for streams to end by themselves
    start_timeout: Duration = 10
    count_period: Duration = 5  # between looks at the kernel's counters of open connections
    max_restarts: Annotated[int, Field(ge=0, le=1000)] = 5  # within a minute, before a session FAILs


class Limits(Table):
    """`[limits]`: how much, and for how long."""

    sessions: Annotated[int, Field(ge=1, le=100_000)] = 1000
    num_conn: Annotated[int, Field(ge=1, le=4096)] = 128  # of one session
    connections: Annotated[int, Field(ge=1, le=65535)] = 10_000  # of all
    rate: Annotated[Rate, read_by(Rate.parse)] = Rate()  # of all together; 0 is no limit
    default_lease: Duration = 3600
    max_lease: Duration = 7 * 86400
    hello_wait: Duration = 600  # REQ to Hello
    update_wait: Duration = 120  # Hello to UpdateTargets
    keep_ended: Duration = 3600  # how long `status` still knows what became of a session
    peer_connections: Annotated[int, Field(ge=4, le=10_000)] = 256  # of one address to the control port
    stranger_time: Duration = 30  # how long one of them may last without good credentials
    call_rate: Annotated[int, Field(ge=1, le=100_000)] = 200  # a second, of one credential or one address's strangers
    failure_rate: Annotated[int, Field(ge=1, le=10_000)] = 5  # failed authentications a second of one address

    @model_validator(mode="after")
    def _leases(self) -> Limits:
        if self.default_lease > self.max_lease:
            raise ValueError(f"default_lease ({self.default_lease} s) is longer than max_lease ({self.max_lease} s)")
        return self


class Rule(Table):
    """`[[policy.rules]]`: what some may; a key that is left out is as `[policy]` and `[limits]` have it for all."""

    name: str = ""  # for people
    users: tuple[str, ...] | None = None  # names; "*" is everybody
    groups: tuple[str, ...] | None = None
    targets: Networks | None = None
    peers: Networks | None = None
    sessions: Annotated[int, Field(ge=0, le=100_000)] | None = None  # of one user at once
    connections: Annotated[int, Field(ge=0, le=65535)] | None = None  # of all sessions of one user together
    rate: Annotated[Rate, read_by(Rate.parse)] | None = None  # of all sessions of one user together
    max_lease: Duration | None = None
    backends: tuple[BackendName, ...] | None = None

    @model_validator(mode="after")
    def _somebody(self) -> Rule:
        if self.users is None and self.groups is None:
            raise ValueError('name users or groups; users = ["*"] is everybody')
        if self.rate is not None and not self.rate.bytes_per_s:
            raise ValueError("a rate of 0 is no limit; leave rate out")
        return self


class Policy(Table):
    """`[policy]`: where this gateway forwards to, and who may what."""

    targets: Networks = ()  # applications in the LAN
    peers: Networks = ()  # other facilities' gateways
    rules: tuple[Rule, ...] = ()  # the first that names a user is the user's


class MetricsSettings(Table):
    """`[metrics]`: what the gateway tells of itself over HTTP, to whoever can reach it."""

    listen: tuple[Listen, ...] = ()


class AuditSettings(Table):
    """`[audit]`: the record of who asked what."""

    enabled: bool = True
    directory: str = ""  # empty: `audit` in the state directory
    max_bytes: Annotated[int, Field(ge=4096, le=2**40)] = 16 * 2**20  # of a file, before the next one begins
    keep_files: Annotated[int, Field(ge=2, le=100_000)] = 64
    keep_age: Duration = 400 * 86400
    on_failure: Literal["refuse", "continue"] = "refuse"  # new sessions, while the log cannot be written
    refusals_per_minute: Annotated[int, Field(ge=1, le=10_000)] = 10  # of one address; the others are counted


class Settings(Table):
    """All tables."""

    server: Server = Server()
    network: NetworkSettings = NetworkSettings()
    s2ds: DataServerSettings = DataServerSettings()
    limits: Limits = Limits()
    policy: Policy = Policy()
    auth: Auth = Auth()
    metrics: MetricsSettings = MetricsSettings()
    audit: AuditSettings = AuditSettings()


# What a running gateway cannot change: [table] and its keys, all of them if none is named.
FIXED: dict[str, tuple[str, ...]] = {
    "server": ("listen", "state_dir", "runtime_dir"),
    "network": (),
    "metrics": (),
    "s2ds": ("launcher", "user"),
    "audit": (),
}


def succeed(old: Settings, new: Settings) -> tuple[Settings, list[str]]:
    """Give the settings that a running gateway can take over, and the names of those that wait for a restart."""
    tables, waiting = {}, []
    for table, keys in FIXED.items():
        before, after = getattr(old, table), getattr(new, table)
        kept = {key: getattr(before, key) for key in keys or type(before).model_fields}
        waiting += [f"[{table}] {key}" for key, value in kept.items() if getattr(after, key) != value]
        tables[table] = after.model_copy(update=kept)
    return new.model_copy(update=tables), waiting


class SettingsError(ScistreamError):
    """The settings cannot be used; the message has a line for each fault."""


def load(file: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read and validate the settings.

    Args:
        file: the TOML file; None looks for `s2cs.toml` here and in /etc/scistream.
        environ: where overriding variables are looked for.

    Raises:
        SettingsError: no file, not TOML, or anything in it that is not accepted.
    """
    file = located(file)
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"settings {file} cannot be read: {error.strerror}; name the file with --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"settings {file} are not TOML: {error}") from None
    _override(tables, environ)
    try:
        settings = Settings.model_validate(tables)
    except ValidationError as error:
        faults = [f"{file}: {_sentence(fault)}" for fault in error.errors()]
        raise SettingsError("\n".join(dict.fromkeys(faults))) from None
    return _absolute(settings, file.resolve().parent)


def located(file: Path | None) -> Path:
    """Say which file the settings are.

    Raises:
        SettingsError: none was named, and there is none where they are looked for.
    """
    file = file or next((path for path in SEARCHED if path.exists()), None)
    if file is None:
        raise SettingsError("there is no s2cs.toml here or in /etc/scistream; make one with: s2cs init DIR")
    return file


def fingerprint(file: Path | None, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Tell which settings are in force, not what they are: file, its SHA-256, and the variables that override it.

    Raises:
        SettingsError: the file is gone.
    """
    file = located(file)
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise SettingsError(f"settings {file} cannot be read: {error.strerror}; name the file with --config") from None
    return {"settings": str(file.resolve()), "sha256": digest, "overridden": sorted(filter(_overrides, environ))}


def _overrides(name: str) -> bool:
    return name.startswith("SCISTREAM_") and "__" in name


def _override(tables: dict[str, Any], environ: Mapping[str, str]) -> None:
    for name, text in environ.items():
        if not _overrides(name):
            continue
        table, _, key = name.removeprefix("SCISTREAM_").lower().partition("__")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text  # a bare word, as shells have them
        section = tables.setdefault(table, {})
        if isinstance(section, dict):
            section[key] = value


def _sentence(fault: Any) -> str:
    parts = [part for part in fault["loc"] if not str(part).startswith("function-")]
    place, table, keys = _place(parts)
    if fault["type"] == "extra_forbidden":
        what = f"{place} {keys[0]}: unknown key" if place else f"[{keys[0]}]: unknown table"
        return f"{what}; accepted are {', '.join(table.model_fields)}"
    message = fault["msg"].removeprefix("Value error, ")
    found = "" if isinstance(fault["input"], dict) else f"found {shown(fault['input'])}; "
    return f"{' '.join([place or '[settings]', *map(str, keys[:1])])}: {found}{message[0].lower()}{message[1:]}"


def _place(parts: list[int | str]) -> tuple[str, type[BaseModel], list[int | str]]:
    """Find the table that a fault is in: its name as it is in the file, its type, and what of the place is left."""
    table: type[BaseModel] = Settings
    names: list[str] = []
    rest, number = list(parts), ""
    kind: object = None
    while rest and (found := _inner(table, str(rest[0]))):
        table, kind = found
        names.append(str(rest.pop(0)))
        if kind is tuple and rest:
            number = f" {int(rest.pop(0)) + 1}"
        elif kind is dict and rest:
            names.append(str(rest.pop(0)))
    name = ".".join(names)
    return (f"[[{name}]]{number}" if kind is tuple else f"[{name}]") if names else "", table, rest


def _inner(table: type[BaseModel], key: str) -> tuple[type[BaseModel], object] | None:
    """Give the type of the table, the tables in order or the tables by name that a key of a table stands for."""
    field = table.model_fields.get(key)
    if field is None:
        return None
    arguments = [each for each in get_args(field.annotation) if isinstance(each, type) and issubclass(each, Table)]
    if arguments:
        return arguments[0], get_origin(field.annotation)
    if isinstance(field.annotation, type) and issubclass(field.annotation, Table):
        return field.annotation, None
    return None


def _absolute(settings: Settings, base: Path) -> Settings:
    server = settings.server
    paths = {name: base / getattr(server, name) for name in ("certificate", "key", "state_dir")}
    if server.runtime_dir != "auto":
        paths["runtime_dir"] = base / server.runtime_dir
    directory = str(base / settings.audit.directory) if settings.audit.directory else ""
    return settings.model_copy(
        update={
            "server": server.model_copy(update=paths),
            "auth": settings.auth.absolute(base),
            "audit": settings.audit.model_copy(update={"directory": directory}),
        }
    )
