"""What the kernel says about processes: asked of /proc, never of the process itself."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from ipaddress import ip_address
from pathlib import Path

_EPOLL_ENTRY = re.compile(r"^tfd:.*\bino:([0-9a-f]+)", re.MULTILINE)
_ESTABLISHED, _LISTEN, _UNCONNECTED = "01", "0A", "07"  # in the tables of TCP, and of UDP
_SOCKET = re.compile(r"socket:\[(\d+)\]")


@cache
def boot_id() -> str:
    """Name this boot of the machine: process ids mean nothing in another."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def stat_fields(text: str) -> list[str]:
    """Split what follows the command in a line of /proc/PID/stat: state, parent, group, session, ..."""
    return text.rpartition(")")[2].split()  # the command may hold spaces and brackets


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when there is none. A zombie counts."""
    try:
        return int(stat_fields(_read(f"/proc/{pid}/stat"))[19])
    except (OSError, IndexError):
        return None


def alive(pid: int) -> bool:
    """Tell whether a process runs. One that has ended and was not reaped does not."""
    try:
        return stat_fields(_read(f"/proc/{pid}/stat"))[0] not in "ZX"
    except (OSError, IndexError):
        return False


def own_number(pid: int) -> int:
    """The number that a process knows itself by: in a container that is another."""
    try:
        found = re.search(r"^NSpid:.*\s(\d+)$", _read(f"/proc/{pid}/status"), re.MULTILINE)
    except OSError:
        return pid
    return int(found[1]) if found else pid


def children(pid: int) -> frozenset[int]:
    """The processes that a process's main thread started."""
    try:
        return frozenset(map(int, _read(f"/proc/{pid}/task/{pid}/children").split()))
    except OSError:
        return frozenset()


def group_members(group: int) -> Iterator[int]:
    """The processes of a group that still run (a zombie does not)."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - names, and fast
        if name.isdigit():
            try:
                fields = stat_fields(_read(f"/proc/{name}/stat"))
            except OSError:
                continue
            if fields[2] == str(group) and fields[0] not in "ZX":
                yield int(name)


def descriptors(pid: int) -> dict[int, int]:
    """The inodes of the sockets that a process holds, each with a descriptor of it."""
    found = {}
    directory = f"/proc/{pid}/fd"
    for name in _listing(directory):
        try:
            match = _SOCKET.fullmatch(os.readlink(f"{directory}/{name}"))  # noqa: PTH115
        except OSError:
            continue
        if match:
            found[int(match[1])] = int(name)
    return found


def fullness(pid: int) -> tuple[int, int]:
    """How many descriptors a process has, and a number that no other process shares; (0, 0) where it is not told.

    One call instead of one for each descriptor. The kernel tells since Linux 6.2.
    """
    try:
        found = os.stat(f"/proc/{pid}/fd")  # noqa: PTH116 - asked of thousands
    except OSError:
        return 0, 0
    return (found.st_size, found.st_ino) if found.st_size else (0, 0)


def sockets(pid: int) -> frozenset[int]:
    """The inodes of the sockets that a process holds."""
    return frozenset(descriptors(pid))


def watched(pid: int) -> frozenset[int]:
    """The inodes that a process has in its epoll sets: what it really waits on."""
    found: set[int] = set()
    directory = f"/proc/{pid}/fd"
    for name in _listing(directory):
        try:
            if os.readlink(f"{directory}/{name}") != "anon_inode:[eventpoll]":  # noqa: PTH115
                continue
            text = _read(f"/proc/{pid}/fdinfo/{name}")
        except OSError:
            continue
        found.update(int(inode, 16) for inode in _EPOLL_ENTRY.findall(text))
    return frozenset(found)


def _read(path: str) -> str:
    """Read one of the kernel's files with nothing but system calls: a list of a thousand sessions reads thousands."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b""
        while part := os.read(descriptor, 65536):
            text += part
        return text.decode(errors="replace")
    finally:
        os.close(descriptor)


def _listing(directory: str) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208 - names, and fast
    except OSError:
        return []


def connections(inodes: frozenset[int]) -> Iterator[tuple[int, tuple[str, int] | None]]:
    """Give the local port of each listening or established TCP socket among these, and its peer; None for listening."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = _read(table).splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, remote, state, *rest = line.split()
            if state in (_ESTABLISHED, _LISTEN) and int(rest[5]) in inodes:
                address, _, port = remote.partition(":")
                peer = None if state == _LISTEN else (_address(address), int(port, 16))
                yield int(local.rpartition(":")[2], 16), peer


def receiving(inodes: frozenset[int]) -> frozenset[int]:
    """Give the ports of the UDP sockets among these that receive from more than one peer."""
    found = set()
    for table in ("/proc/net/udp", "/proc/net/udp6"):
        try:
            lines = _read(table).splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, _, state, *rest = line.split()
            if state == _UNCONNECTED and int(rest[5]) in inodes:
                found.add(int(local.rpartition(":")[2], 16))
    return frozenset(found)


def _address(text: str) -> str:
    """Read an address of the kernel's table: words of four bytes in the host's order."""
    packed = b"".join(int(text[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(text), 8))
    return str(ip_address(packed))
