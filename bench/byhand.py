"""The same proxies as an administrator would set them up by hand: the baseline of the data path."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bench.host import program
from bench.place import Missing, Node, Place, running, wait_for_ports
from bench.traffic import Address
from scistream.vocabulary import Role, Uid
from scistream.x509 import PrivateKey, SessionCA, peer_name
from tests.support.ports import port_block

UID = Uid("by-hand")
PEER = peer_name(UID, Role.PROD)  # the name in the certificate of the producer's side

_STUNNEL = """
foreground = yes
debug = 4
pid =
sslVersion = TLSv1.3
[data]
client = {client}
accept = {listen}
connect = {target}
cert = {directory}/cert.pem
key = {directory}/key.pem
CAfile = {directory}/ca.pem
verifyChain = yes
{check}
"""

_HAPROXY = """
global
    ssl-default-bind-options ssl-min-ver TLSv1.3
    ssl-default-server-options ssl-min-ver TLSv1.3
defaults
    mode tcp
    timeout connect 10s
    timeout client 1h
    timeout server 1h
listen data
    bind {listen} {bind}
    server target {target} {server}
"""

_NGINX = """
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
worker_processes auto;
{module}
events {{ worker_connections 1024; }}
stream {{
    server {{
        listen {listen} {listen_ssl};
        proxy_pass {target};
        {tls}
    }}
}}
"""

_HITCH = """
frontend = "[{host}]:{port}"
backend = "[{target_host}]:{target_port}"
pem-file = "{directory}/both.pem"
client-verify = required
client-verify-ca = "{directory}/ca.pem"
tls-protos = TLSv1.3
workers = 2
{user}
ocsp-dir = ""
"""


@dataclass(frozen=True)
class Side:
    """One proxy of the way: where its files are, where it listens, where it leads."""

    role: Role
    directory: Path
    listen: Address
    target: Address

    @property
    def accepts_tls(self) -> bool:
        """True on the producer's side."""
        return self.role is Role.PROD

    @property
    def words(self) -> dict[str, object]:
        """What every configuration names."""
        listen, target = (f"{host}:{port}" for host, port in (self.listen, self.target))
        return {"directory": self.directory, "listen": listen, "target": target}

    def write(self, text: str) -> Path:
        """Write a configuration."""
        file = self.directory / "proxy.conf"
        file.write_text(text)
        return file


Command = Callable[[Side], list[str]]


def _program(name: str) -> str:
    if (found := program(name)) is None:
        raise Missing(f"{name} is not installed")
    return found


def stunnel(side: Side) -> list[str]:
    """Configure Stunnel."""
    check = "requireCert = yes" if side.accepts_tls else f"checkHost = {PEER}"
    text = _STUNNEL.format(client="no" if side.accepts_tls else "yes", check=check, **side.words)
    return [_program("stunnel4"), str(side.write(text))]


def haproxy(side: Side) -> list[str]:
    """Configure HAProxy."""
    tls = f"ssl crt {side.directory}/both.pem ca-file {side.directory}/ca.pem verify required"
    bind, server = (tls, "") if side.accepts_tls else ("", f"{tls} verifyhost {PEER} sni str({PEER})")
    return [_program("haproxy"), "-db", "-f", str(side.write(_HAPROXY.format(bind=bind, server=server, **side.words)))]


def nginx(side: Side) -> list[str]:
    """Configure Nginx."""
    module = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
    d = side.directory
    pre = "" if side.accepts_tls else "proxy_"
    lines = [
        f"{pre}ssl_certificate {d}/cert.pem;",
        f"{pre}ssl_certificate_key {d}/key.pem;",
        f"{pre}ssl_protocols TLSv1.3;",
    ]
    if side.accepts_tls:
        lines += [f"ssl_client_certificate {d}/ca.pem;", "ssl_verify_client on;"]
    else:
        lines += [
            "proxy_ssl on;",
            "proxy_ssl_verify on;",
            f"proxy_ssl_trusted_certificate {d}/ca.pem;",
            f"proxy_ssl_name {PEER};",
            "proxy_ssl_server_name on;",
        ]
    text = _NGINX.format(
        module=f"load_module {module};" if module.exists() else "",
        listen_ssl="ssl" if side.accepts_tls else "",
        tls="\n        ".join(lines),
        **side.words,
    )
    return [_program("nginx"), "-c", str(side.write(text))]


def envoy(side: Side) -> list[str]:
    """Configure Envoy."""
    d = side.directory
    common = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [
            {"certificate_chain": {"filename": f"{d}/cert.pem"}, "private_key": {"filename": f"{d}/key.pem"}}
        ],
        "validation_context": {"trusted_ca": {"filename": f"{d}/ca.pem"}},
    }
    chain: dict[str, Any] = {
        "filters": [
            {
                "name": "tcp",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                    "stat_prefix": "data",
                    "cluster": "target",
                    "idle_timeout": "0s",
                },
            }
        ]
    }
    cluster: dict[str, Any] = {
        "name": "target",
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": "target",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _socket(side.target)}}]}],
        },
    }
    tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
    if side.accepts_tls:
        config = {
            "@type": f"{tls}DownstreamTlsContext",
            "common_tls_context": common,
            "require_client_certificate": True,
        }
        chain["transport_socket"] = {"name": "tls", "typed_config": config}
    else:
        names = [{"san_type": "DNS", "matcher": {"exact": PEER}}]
        common["validation_context"]["match_typed_subject_alt_names"] = names  # type: ignore[index]
        config = {"@type": f"{tls}UpstreamTlsContext", "common_tls_context": common, "sni": PEER}
        cluster["transport_socket"] = {"name": "tls", "typed_config": config}
    listener = {"name": "data", "address": _socket(side.listen), "filter_chains": [chain]}
    file = side.directory / "envoy.json"
    file.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}))
    return [_program("envoy"), "-c", str(file), "--disable-hot-restart", "--log-level", "warning", "--concurrency", "2"]


def _socket(address: Address) -> dict[str, Any]:
    return {"socket_address": {"address": address[0], "port_value": address[1]}}


def socat(side: Side) -> list[str]:
    """Configure socat: OpenSSL on the WAN, with the largest useful buffer."""
    d = side.directory
    host, port = side.target
    files = f"cert={d}/both.pem,cafile={d}/ca.pem,verify=1,openssl-min-proto-version=TLS1.3"
    listen = f"LISTEN:{side.listen[1]},bind={side.listen[0]},reuseaddr,fork,backlog=128"
    if side.accepts_tls:
        ends = [f"OPENSSL-{listen},{files}", f"TCP4:{host}:{port},nodelay"]
    else:
        ends = [f"TCP4-{listen},nodelay", f"OPENSSL:{host}:{port},commonname={PEER},{files}"]
    return [_program("socat"), "-b", "65536", *ends]


def hitch(side: Side) -> list[str]:
    """Configure hitch, which takes TLS; it does not open it, so Stunnel does."""
    if not side.accepts_tls:
        return stunnel(side)
    (host, port), (target_host, target_port) = side.listen, side.target
    user = 'user = "nobody"\ngroup = "nogroup"' if os.geteuid() == 0 else ""  # it refuses to stay root
    text = _HITCH.format(
        user=user, host=host, port=port, target_host=target_host, target_port=target_port, directory=side.directory
    )
    return [_program("hitch"), f"--config={side.write(text)}"]


PROXIES: Mapping[str, Command] = MappingProxyType(
    {"nginx": nginx, "haproxy": haproxy, "stunnel": stunnel, "envoy": envoy}
)
RIVALS: Mapping[str, Command] = MappingProxyType({"socat": socat, "hitch": hitch})


@contextmanager
def tunnel(command: Command, place: Place, target: Address) -> Iterator[tuple[Address, list[int], list[int]]]:
    """Run both proxies of a way; give where to connect to, and the processes of either side.

    Raises:
        Missing: a program is not here, or does not serve.
    """
    wan = port_block()
    ca = SessionCA.create(UID, datetime.now(UTC) + timedelta(hours=3))
    sides = (
        (place.producer, Side(Role.PROD, place.directory / "prod", (place.producer.address, wan), target)),
        (
            place.consumer,
            Side(
                Role.CONS,
                place.directory / "cons",
                (place.consumer.address, wan + 1),
                (place.producer.address, wan),
            ),
        ),
    )
    with ExitStack() as stack:
        pids = []
        for node, side in sides:
            _write_credentials(ca, side)
            start = partial(_started, stack, node, side)
            pids.append(start(command(side)))
        yield sides[1][1].listen, [pids[0]], [pids[1]]


def _started(stack: ExitStack, node: Node, side: Side, command: list[str]) -> int:
    log = side.directory / "log"
    process = stack.enter_context(running(node, command, log))
    wait_for_ports(node, [side.listen[1]], process, log)
    return process.pid


def _write_credentials(ca: SessionCA, side: Side) -> None:
    side.directory.mkdir()
    key = PrivateKey.generate()
    leaf = ca.issue(key.csr(UID, side.role), side.role)
    (side.directory / "key.pem").write_bytes(key.pem)
    (side.directory / "cert.pem").write_bytes(leaf.certificate.pem)
    (side.directory / "both.pem").write_bytes(leaf.certificate.pem + key.pem)
    (side.directory / "ca.pem").write_bytes(leaf.trust_anchor.pem)
    for file in side.directory.iterdir():
        file.chmod(0o600)
