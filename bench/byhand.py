"""The same three proxies as an administrator would set them up by hand: the baseline of the data path."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scistream.vocabulary import Role, Uid
from scistream.x509 import PrivateKey, SessionCA, peer_name
from tests.support.gateways import port_block
from tests.support.sessions import in_an_hour

UID = Uid("by-hand")

_STUNNEL = """
foreground = yes
debug = 4
pid =
sslVersion = TLSv1.3
[data]
client = {client}
accept = 127.0.0.1:{listen}
connect = 127.0.0.1:{target}
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
    bind 127.0.0.1:{listen} {bind}
    server target 127.0.0.1:{target} {server}
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
        listen 127.0.0.1:{listen} {listen_ssl};
        proxy_pass 127.0.0.1:{target};
        {tls}
    }}
}}
"""


def _config(backend: str, role: Role, directory: Path, listen: int, target: int) -> str:
    d, accepts = directory, role is Role.PROD
    common = {"directory": d, "listen": listen, "target": target}
    if backend == "stunnel":
        check = "requireCert = yes" if accepts else f"checkHost = {peer_name(UID, Role.PROD)}"
        return _STUNNEL.format(client="no" if accepts else "yes", check=check, **common)
    if backend == "haproxy":
        tls = f"ssl crt {d}/both.pem ca-file {d}/ca.pem verify required"
        name = peer_name(UID, Role.PROD)
        return _HAPROXY.format(
            bind=tls if accepts else "", server="" if accepts else f"{tls} verifyhost {name} sni str({name})", **common
        )
    module = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
    pre = "" if accepts else "proxy_"
    lines = [
        f"{pre}ssl_certificate {d}/cert.pem;",
        f"{pre}ssl_certificate_key {d}/key.pem;",
        f"{pre}ssl_protocols TLSv1.3;",
    ]
    if accepts:
        lines += [f"ssl_client_certificate {d}/ca.pem;", "ssl_verify_client on;"]
    else:
        lines += [
            "proxy_ssl on;",
            "proxy_ssl_verify on;",
            f"proxy_ssl_trusted_certificate {d}/ca.pem;",
            f"proxy_ssl_name {peer_name(UID, Role.PROD)};",
            "proxy_ssl_server_name on;",
        ]
    return _NGINX.format(
        module=f"load_module {module};" if module.exists() else "",
        listen_ssl="ssl" if accepts else "",
        tls="\n        ".join(lines),
        **common,
    )


_COMMANDS = {
    "stunnel": ["stunnel4", "{file}"],
    "haproxy": ["haproxy", "-db", "-f", "{file}"],
    "nginx": ["nginx", "-c", "{file}"],
}


@contextmanager
def tunnel(backend: str, directory: Path, target: int) -> Iterator[tuple[int, list[int]]]:
    """Run both proxies of a way to 127.0.0.1:target; give the port to connect to and the two process ids."""
    wan = port_block()
    ca = SessionCA.create(UID, in_an_hour())
    processes = []
    try:
        for role, listen, onward in ((Role.PROD, wan, target), (Role.CONS, wan + 1, wan)):
            place = directory / role
            place.mkdir()
            key = PrivateKey.generate()
            leaf = ca.issue(key.csr(UID, role), role)
            (place / "key.pem").write_bytes(key.pem)
            (place / "cert.pem").write_bytes(leaf.certificate.pem)
            (place / "both.pem").write_bytes(leaf.certificate.pem + key.pem)
            (place / "ca.pem").write_bytes(leaf.trust_anchor.pem)
            file = place / "proxy.conf"
            file.write_text(_config(backend, role, place, listen, onward))
            program, *arguments = [part.format(file=file) for part in _COMMANDS[backend]]
            path = shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin")
            assert path, f"{program} is not installed"
            with (place / "log").open("wb") as log:
                started = subprocess.Popen([path, *arguments], stdout=log, stderr=log, start_new_session=True)
            processes.append(started)
        _wait_for(wan, wan + 1)
        yield wan + 1, [process.pid for process in processes]
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(*ports: int) -> None:
    deadline = time.monotonic() + 10
    for port in ports:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
    time.sleep(0.2)  # the connections made here have to be gone before anything is measured
