"""The hosts of the pages: two facilities and a wide-area network between them, each host a network namespace.

Where namespaces cannot be made, the hosts are directories, and their addresses loopback ones.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# Each host's addresses: the network's first two numbers are the place of the plug.
ADDRESSES = {
    "aps-gw": ["10.1.0.5/24", "203.0.113.5/24"],
    "instrument": ["10.1.0.7/24"],
    "alcf-gw": ["10.2.0.5/24", "198.51.100.5/24"],
    "compute": ["10.2.0.9/24"],
    "laptop": ["192.0.2.9/24", "10.1.0.99/24", "10.2.0.99/24"],  # in the facilities by a VPN, which is a cable here
    "office": ["192.0.2.10/24"],
}
ROUTERS = ["203.0.113.1/24", "198.51.100.1/24", "192.0.2.1/24"]  # of the wide-area network; the LANs have none
NAMES = {"gw.aps.example": "203.0.113.5", "gw.alcf.example": "198.51.100.5"}
INSIDE = {"compute": {"gw.alcf.example": "10.2.0.5"}, "instrument": {"gw.aps.example": "10.1.0.5"}}
# Without namespaces. N is a number that no other run of this test uses at the time.
LOOPBACK = {
    "gw.aps.example": "127.N.1.1",  # no name service here: the gateway's WAN address
    "203.0.113.5": "127.N.1.1",
    "10.1.0.5": "127.N.1.5",
    "10.1.0.7": "127.N.1.7",
    "10.1.0.99": "127.N.1.99",
    "gw.alcf.example": "127.N.2.1",
    "198.51.100.5": "127.N.2.1",
    "10.2.0.5": "127.N.2.5",
}
SCP = """#!/bin/sh
# Stands in for scp: HOST:PATH is PATH in the directory of that host.
for argument; do
    case $argument in
        *:*) argument="../${argument%%:*}/${argument#*:}" ;;
    esac
    set -- "$@" "$argument"; shift
done
for _ in 1 2 3 4 5 6 7 8 9 10; do [ -e "$1" ] || sleep 0.5; done  # a person would have looked whether it is there
exec cp "$@"
"""


class Hosts:
    """The hosts of the pages, where commands are run as they are written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.running: list[subprocess.Popen[bytes]] = []
        tools = directory / "tools"
        for name in ("tools", *ADDRESSES):
            (directory / name).mkdir()
        (tools / "scp").write_text(SCP)
        (tools / "scp").chmod(0o755)
        inherited = {k: v for k, v in os.environ.items() if not re.match(r"(?i)scistream_|.*_proxy$", k)}
        path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
        # Sessions that the pages leave open, or a failure, end with their gateway here.
        self.environment = {**inherited, "PATH": path, "SCISTREAM_SERVER__ON_SHUTDOWN": "release"}

    def at(self, host: str) -> list[str]:
        """Give what a command begins with to be run at a host."""
        raise NotImplementedError

    def here(self, text: str) -> str:
        """Write a text with the addresses that the hosts have here."""
        return text

    def listeners(self) -> set[tuple[str, int]]:
        """Give what listens on the hosts' addresses: address and port."""
        raise NotImplementedError

    def home(self, host: str) -> Path:
        """Give a host's directory, where its commands are run."""
        return self.directory / host

    def run(self, host: str, command: str, statuses: tuple[int, ...] = (0,)) -> str:
        """Run a command line at a host, give what it prints; one with & at its end goes on."""
        assert host in ADDRESSES, f"{host} is no host of the pages: {', '.join(ADDRESSES)}"
        home = self.home(host)
        environment = {**self.environment, "HOME": str(home)}
        line = self.here(command)
        if line.endswith("&"):
            with (home / "log").open("ab") as log:
                process = subprocess.Popen(
                    [*self.at(host), "bash", "-c", f"cd {home} && exec {line.removesuffix('&')}"],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            self.running.append(process)
            if not line.startswith("s2uc "):  # a server; what waits for others is not waited for
                self._wait_for_listener(process, line)
            return ""
        result = subprocess.run(
            [*self.at(host), "bash", "-c", f"cd {home} && {line}"],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode in statuses, f"{host}$ {line}\n{result.returncode}: {result.stdout}{result.stderr}"
        return result.stdout

    def _wait_for_listener(self, process: subprocess.Popen[bytes], line: str) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert process.poll() is None, f"{line} has ended"
            with contextlib.suppress(OSError):
                sockets = {str(fd.readlink()) for fd in Path(f"/proc/{process.pid}/fd").iterdir()}
                if any(f"socket:[{inode}]" in sockets for inode, _, _ in _listening(process.pid)):
                    return
            time.sleep(0.05)
        raise AssertionError(f"{line} does not listen")

    def close(self) -> None:
        """End what runs on, in reverse order."""
        for process in reversed(self.running):
            process.send_signal(signal.SIGTERM)
        for process in self.running:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Namespaces(Hosts):
    """Each host a network namespace with its own addresses, names and loopback."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._hosts: dict[str, subprocess.Popen[bytes]] = {}
        try:
            switch = self._holder("switch", {})
            plugs: dict[str, list[str]] = {}
            for host, addresses in ADDRESSES.items():
                holder = self._holder(host, NAMES | INSIDE.get(host, {}))
                for i, address in enumerate(addresses):
                    plug = f"{host}{i}"
                    _ip(holder, f"link add eth{i} type veth peer name {plug} netns {switch.pid}")
                    _ip(holder, f"addr add {address} dev eth{i}", f"link set eth{i} up")
                    plugs.setdefault(_network(address), []).append(plug)
                    if (router := f"{_network(address)}.1/24") in ROUTERS:
                        _ip(holder, f"route add default via {router.removesuffix('/24')}")
            for i, (network, names) in enumerate(plugs.items()):
                _ip(switch, f"link add lan{i} type bridge", f"link set lan{i} up")
                if f"{network}.1/24" in ROUTERS:
                    _ip(switch, f"addr add {network}.1/24 dev lan{i}")
                for name in names:
                    _ip(switch, f"link set dev {name} master lan{i}", f"link set dev {name} up")
            subprocess.run([*_in(switch), "sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True)
            deadline = time.monotonic() + 10  # the kernel takes up to a second to see that a link is up
            while (
                b"DOWN"
                in subprocess.run([*_in(switch), "ip", "-br", "link"], check=True, stdout=subprocess.PIPE).stdout
            ):
                assert time.monotonic() < deadline, "the links do not come up"
                time.sleep(0.05)
        except BaseException:
            self.close()
            raise

    def _holder(self, host: str, names: dict[str, str]) -> subprocess.Popen[bytes]:
        """Make a namespace; it is there as long as the process."""
        table = self.directory / f"{host}.hosts"
        table.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in names.items()))
        # There is no name service: where none is named, none is waited for.
        mounts = 'mount --bind "$0" /etc/hosts && mount --bind /dev/null /etc/resolv.conf'
        script = f"{mounts} && ip link set lo up && echo ready && exec sleep infinity"
        command = ["unshare", "--net", "--mount", "sh", "-c", script, str(table)]
        holder = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self._hosts[host] = holder
        assert holder.stdout
        assert holder.stdout.readline() == b"ready\n"
        return holder

    def at(self, host: str) -> list[str]:
        """Enter the namespace."""
        return _in(self._hosts[host])

    def listeners(self) -> set[tuple[str, int]]:
        """Read the kernel's table of each namespace."""
        found = {(address, port) for holder in self._hosts.values() for _, address, port in _listening(holder.pid)}
        return {(address, port) for address, port in found if not address.startswith("127.")}

    def close(self) -> None:
        """End what runs on, then the namespaces."""
        super().close()
        for holder in self._hosts.values():
            holder.kill()
            holder.wait()
            if holder.stdout:
                holder.stdout.close()


class Directories(Hosts):
    """Each host a directory of this one."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.environment["SCISTREAM_METRICS__LISTEN"] = "[]"  # the two gateways have one loopback
        for number in range(20, 250):
            self._guard = socket.socket()
            with contextlib.suppress(OSError):
                self._guard.bind((f"127.{number}.0.1", 5000))
                break
            self._guard.close()
        self._number = number

    def at(self, host: str) -> list[str]:
        """Be here."""
        return []

    def here(self, text: str) -> str:
        """Put loopback addresses in for those of the pages."""
        for there, here in sorted(LOOPBACK.items(), key=lambda pair: -len(pair[0])):
            text = text.replace(there, here.replace("N", str(self._number)))
        return text

    def listeners(self) -> set[tuple[str, int]]:
        """Read this host's table."""
        mine = f"127.{self._number}."
        return {(address, port) for _, address, port in _listening(os.getpid()) if address.startswith(mine)}

    def close(self) -> None:
        """End what runs on."""
        super().close()
        self._guard.close()


def namespaces_can_be_made() -> bool:
    """Tell whether this user, kernel and system can."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "nsenter", "sysctl"))):
        return False
    attempt = "ip link add eth0 type veth peer name eth1 && ip link add lan0 type bridge"
    run = subprocess.run(["unshare", "--net", "--mount", "sh", "-c", attempt], capture_output=True, check=False)
    return run.returncode == 0


@contextlib.contextmanager
def hosts(directory: Path, kind: type[Hosts]) -> Iterator[Hosts]:
    """Have the hosts, and leave nothing of them."""
    found = kind(directory)
    try:
        yield found
    finally:
        found.close()


def _network(address: str) -> str:
    return address.rpartition(".")[0]


def _in(holder: subprocess.Popen[bytes]) -> list[str]:
    return ["nsenter", "--target", str(holder.pid), "--net", "--mount"]


def _ip(holder: subprocess.Popen[bytes], *lines: str) -> None:
    text = "".join(f"{line}\n" for line in lines)
    subprocess.run([*_in(holder), "ip", "-batch", "-"], input=text.encode(), check=True)


def _listening(pid: int) -> Iterator[tuple[int, str, int]]:
    """Give inode, address and port of each listening TCP socket in the network namespace of a process."""
    for table in ("tcp", "tcp6"):  # gRPC listens on IPv4 addresses by sockets of IPv6
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = entry.split()
                if fields[3] == "0A":
                    address, port = fields[1].split(":")
                    yield int(fields[9]), socket.inet_ntoa(bytes.fromhex(address[-8:])[::-1]), int(port, 16)
