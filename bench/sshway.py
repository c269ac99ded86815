"""`ssh -L`: what a user without gateways does, with throw-away keys and a server of its own."""

from __future__ import annotations

import getpass
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.host import program
from bench.place import Missing, Place, running, wait_for_ports
from bench.traffic import Address
from tests.support.ports import port_block

_CIPHER = "aes128-gcm@openssh.com"
_SERVER = """
Port {port}
ListenAddress {host}
HostKey {directory}/host
AuthorizedKeysFile {directory}/user.pub
PidFile none
StrictModes no
PasswordAuthentication no
PermitRootLogin prohibit-password
AllowTcpForwarding local
MaxStartups 100
UsePAM no
Ciphers {cipher}
"""


@contextmanager
def tunnel(place: Place, target: Address) -> Iterator[tuple[Address, list[int], list[int]]]:
    """Run server and client; give where to connect to, and the processes of either side.

    Raises:
        Missing: a program is not here, or does not serve.
    """
    server, client, keygen = (program(name) for name in ("sshd", "ssh", "ssh-keygen"))
    if not (server and client and keygen):
        raise Missing("OpenSSH's server, client or ssh-keygen is not installed")
    directory = place.directory
    for name in ("host", "user"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)], check=True)
    Path("/run/sshd").mkdir(exist_ok=True)  # its compiled-in empty directory
    port = port_block()
    host = place.producer.address
    config = directory / "sshd_config"
    config.write_text(_SERVER.format(port=port, host=host, directory=directory, cipher=_CIPHER))
    logs = directory / "sshd.log", directory / "ssh.log"
    listen = place.consumer.address, port + 1
    forward = f"{listen[0]}:{listen[1]}:{target[0]}:{target[1]}"
    options = {
        "UserKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "no",
        "IdentitiesOnly": "yes",
        "BatchMode": "yes",
        "ExitOnForwardFailure": "yes",
        "Ciphers": _CIPHER,
    }
    login = [f"-o{name}={value}" for name, value in options.items()]
    where = [*login, "-F", "none", "-i", str(directory / "user"), "-p", str(port), f"{getpass.getuser()}@{host}"]
    with running(place.producer, [server, "-D", "-e", "-f", str(config)], logs[0]) as sshd:
        wait_for_ports(place.producer, [port], sshd, logs[0])
        with running(place.consumer, [client, "-N", "-L", forward, *where], logs[1]) as ssh:
            wait_for_ports(place.consumer, [listen[1]], ssh, logs[1])
            yield listen, [sshd.pid], [ssh.pid]
