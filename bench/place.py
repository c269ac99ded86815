"""Where a measurement runs: two nodes, on loopback or in network namespaces, and the processes on them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000


class Missing(Exception):
    """Something that a measurement needs is not here; the sentence goes into the result."""


@dataclass(frozen=True)
class Node:
    """A host of the measurement: its address, and the network namespace it is (none: this machine's own)."""

    address: str = "127.0.0.1"
    namespace: str = ""

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Be on this node: sockets that this thread opens and processes that it starts are there."""
        if not self.namespace:
            yield
            return
        with Path("/proc/thread-self/ns/net").open() as home, Path(f"/run/netns/{self.namespace}").open() as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())


def _enter(descriptor: int) -> None:
    if _LIBC.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "the network namespace cannot be entered")


@dataclass(frozen=True)
class Place:
    """Two nodes, and a directory for what is made meanwhile."""

    directory: Path
    producer: Node = field(default_factory=Node)
    consumer: Node = field(default_factory=Node)

    def sub(self, name: str) -> Place:
        """Give the same nodes with an empty directory of its own."""
        directory = self.directory / name
        directory.mkdir(parents=True)
        return Place(directory, self.producer, self.consumer)


@contextmanager
def running(
    node: Node, command: list[str], log: Path, grace_s: float = 0.0, **environ: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program on a node in a group of its own; the whole group ends with the block."""
    with node.inside(), log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | environ,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if grace_s and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace_s)
        descendants = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for each in descendants:  # a daemon's children may have groups of their own
            try:
                each.kill()
            except psutil.Error:
                continue


def wait_for_ports(
    node: Node, ports: Iterable[int], process: subprocess.Popen[bytes], log: Path, timeout_s: float = 20.0
) -> None:
    """Wait until a process listens on all of these ports of a node: seen in the kernel's table, without connecting.

    Raises:
        Missing: it ended, or does not in time; with the end of its log.
    """
    left = set(ports)
    deadline = time.monotonic() + timeout_s
    while left:
        left -= _listening(node)
        if left and (process.poll() is not None or time.monotonic() > deadline):
            said = log.read_text(errors="replace").strip()[-300:]
            raise Missing(f"it does not listen on {sorted(left)}: {said}")
        if left:
            time.sleep(0.01)


def _listening(node: Node) -> set[int]:
    found = set()
    with node.inside():
        for table in ("tcp", "tcp6"):
            try:
                text = Path(f"/proc/thread-self/net/{table}").read_text()
            except OSError:
                continue
            for entry in text.splitlines()[1:]:
                fields = entry.split()
                if fields[3] == "0A":
                    found.add(int(fields[1].rpartition(":")[2], 16))
    return found


def family(pids: Iterable[int]) -> set[int]:
    """Give processes with all their descendants that still run."""
    found = set()
    for pid in pids:
        try:
            process = psutil.Process(pid)
            found |= {pid, *(child.pid for child in process.children(recursive=True))}
        except psutil.Error:
            continue
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time that these processes have used, to the microsecond: the scheduler's count of each thread."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                total += int(task.read_text().split()[0])
            except (OSError, IndexError):
                continue
    return total / 1e9


def pss_bytes(pids: Iterable[int]) -> int:
    """Memory of these processes, what they share counted once (proportional set size)."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next((int(entry.split()[1]) for entry in text.splitlines() if entry.startswith("Pss:")), 0) * 1024
    return total
