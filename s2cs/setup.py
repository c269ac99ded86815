"""`s2cs init`: everything a gateway needs to start, in one directory."""

from __future__ import annotations

import ipaddress
import re
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil

from s2cs.auth import digest, new_token
from s2cs.settings import GATEWAY_NAME
from s2cs.store import SqliteStore
from s2cs.users import Rank, Token, User
from scistream.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from scistream.vocabulary import Endpoint, PortRange, shown
from scistream.x509 import DevelopmentCA

_DAYS = 825  # the longest that common TLS clients accept for a server certificate

_SETTINGS = """\
# The settings of one SciStream gateway. See docs/operator/configuration.md; check with: s2cs check --config THIS-FILE

[server]
name = "{name}"
listen = [{listen}]
certificate = "certs/server.crt"
key = "certs/server.key"
state_dir = "{state}"

[network]
lan = "{lan}"  # applications connect here, and are reached from here
wan = "{wan}"  # other facilities' gateways connect here
ports = "{ports}"  # listeners are reserved in this range; open it in the firewall on the WAN side

[s2ds]
backend = "{backend}"

[policy]
targets = [{targets}]  # networks of the applications that this gateway may forward to
peers = [{peers}]  # networks of the gateways that this gateway may connect to

[metrics]
listen = [{metrics}]  # /metrics for Prometheus, /healthz and /readyz

[web]
listen = []  # the page for people: "127.0.0.1:5002", or with this gateway's certificate "10.1.0.5:5002"
"""
_AUDIT = """
[audit]
directory = "{audit}"
"""


def lan_network(address: str) -> str:
    """Find the network of one of this host's addresses; of an unknown address, only itself.

    All of 127.0.0.0/8 for a loopback address.
    """
    ip = ipaddress.ip_address(address)
    if ip.is_loopback:
        return "127.0.0.0/8" if ip.version == 4 else "::1/128"
    for addresses in psutil.net_if_addrs().values():
        for found in addresses:
            if found.address.partition("%")[0] == address and found.netmask:
                prefix = bin(int(ipaddress.ip_address(found.netmask))).count("1")
                return str(ipaddress.ip_network(f"{address}/{prefix}", strict=False))
    return str(ipaddress.ip_network(address))


def address_of(option: str, text: str) -> str:
    """Read an option's IP address.

    Raises:
        InvalidArgument: it is none, or stands for all.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise InvalidArgument(f"{option} {shown(text)} is not an IP address; name one of this host's") from None
    if address.is_unspecified:
        raise InvalidArgument(f"{option} {text} is not one address; name the one that others reach this host by")
    return str(address)


def initialise(
    directory: Path,
    name: str,
    hosts: tuple[str, ...],
    port: int,
    lan: str,
    wan: str,
    ports: str,
    backend: str,
    metrics_port: int,
    state: Path = Path("state"),
    audit: Path | None = None,
) -> list[str]:
    """Write settings, a development CA, a server certificate and a first user.

    Returns:
        The names and addresses that the certificate is for.

    Raises:
        AlreadyExists: the directory has settings already; nothing is touched.
        InvalidArgument: an option's value cannot be used.
        FailedPrecondition: the directory cannot be written.
    """
    lan, wan = address_of("--lan", lan), address_of("--wan", wan)
    session_ports = PortRange.parse(ports)
    name = name or socket.gethostname().partition(".")[0]
    if not GATEWAY_NAME.fullmatch(name):
        raise InvalidArgument(f"--name {shown(name)} is not 1 to 63 letters, digits and . _ -")
    if not 1 <= port <= 65535:
        raise InvalidArgument(f"--port {port} is not in 1-65535")
    if not 0 <= metrics_port <= 65535:
        raise InvalidArgument(f"--metrics-port {metrics_port} is not in 0-65535; 0 is for none")
    if session_ports.first <= metrics_port <= session_ports.last:
        raise InvalidArgument(
            f"metrics port {metrics_port} is among the sessions' ports {session_ports}; "
            "name another with --metrics-port"
        )
    if (directory / "s2cs.toml").exists():
        raise AlreadyExists(f"{directory} has a gateway's settings already; name a new directory")
    addresses = list(dict.fromkeys([lan, wan]))
    names = list(dict.fromkeys([*(Endpoint(host, port).host for host in hosts), *addresses]))
    if any(ipaddress.ip_address(address).is_loopback for address in addresses):
        names.append("localhost")
    loopback = ipaddress.ip_address(wan).is_loopback
    for option, path in (("--state-dir", state), ("--audit-dir", audit or state)):
        if not re.fullmatch(r"[^\x00-\x1f\x7f\"\\]+", str(path)):
            raise InvalidArgument(f"{option} {shown(str(path))} has quotes, backslashes or control characters in it")
    settings = _SETTINGS.format(
        name=name,
        state=state,
        listen=", ".join(f'"[{a}]:{port}"' if ":" in a else f'"{a}:{port}"' for a in addresses),
        lan=lan,
        wan=wan,
        ports=ports,
        metrics=f'"127.0.0.1:{metrics_port}"' if metrics_port else "",
        backend=backend,
        targets=f'"{lan_network(lan)}"',
        peers=f'"{lan_network(wan)}"' if loopback else '"0.0.0.0/0", "::/0"',
    )
    if audit is not None:
        settings += _AUDIT.format(audit=audit)
    try:
        _write_all(directory, directory / state, settings, name, names)
    except OSError as error:
        raise FailedPrecondition(
            f"{error.filename or directory} cannot be written: {error.strerror}; name another directory"
        ) from None
    return names


def _write_all(directory: Path, state: Path, settings: str, name: str, names: list[str]) -> None:
    certs = directory / "certs"
    for path in (directory, certs, state):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    ca = DevelopmentCA.create(name)
    certificate, key = ca.issue_server(names, datetime.now(UTC) + timedelta(days=_DAYS))
    write_whole(certs / "ca.crt", ca.certificate.pem, 0o644)
    write_whole(certs / "ca.key", ca.key.pem, 0o600)
    write_whole(certs / "server.crt", certificate.pem, 0o644)
    write_whole(certs / "server.key", key.pem, 0o600)
    store = SqliteStore(state / "s2cs.db")
    try:
        if any(user.name == "admin" for user in store.users.all()):
            store.users.remove("admin")
        token = new_token()
        store.users.add(User.new("admin", Rank.ADMIN), Token.new(digest(token)))
    finally:
        store.close()
    write_whole(directory / "token", f"{token}\n".encode(), 0o600)
    write_whole(directory / "s2cs.toml", settings.encode(), 0o644)  # last: what is there is whole


def write_whole(path: Path, content: bytes, mode: int) -> None:
    """Write a file whole, never readable by more than it may be."""
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    draft.touch(mode)
    draft.write_bytes(content)
    draft.replace(path)
