"""What this gateway can still take on: found out before anything is taken, never half-way."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from s2cs.policy.decision import Use
from s2cs.settings import Limits
from scistream.errors import ResourceExhausted
from scistream.machine import Request
from scistream.vocabulary import Rate

# What a session holds in this process beside its listeners: pidfd, log, and some for the moment of starting.
_DESCRIPTORS_PER_SESSION = 8
_DESCRIPTORS_KEPT = 64  # for control connections, the store, and for releasing what there is
_PROCESSES_PER_SESSION = 4  # a proxy with its workers
_CGROUP = Path("/proc/self/cgroup")
_ROOTS = {"": "/sys/fs/cgroup", "pids": "/sys/fs/cgroup/pids"}  # of version 2, and of the pids controller of version 1


def admit(limits: Limits, use: Use, request: Request) -> None:
    """Refuse a request for which there is no room.

    Args:
        limits: the operator's.
        use: what all sessions have that have not ended.
        request: the one more.

    Raises:
        ResourceExhausted: sessions, connections, rate, descriptors or processes would not suffice.
    """
    if use.sessions >= limits.sessions:
        raise ResourceExhausted(f"this gateway serves {limits.sessions} sessions already; try again when one has ended")
    if use.connections + request.num_conn > limits.connections:
        left = limits.connections - use.connections
        raise ResourceExhausted(
            f"{request.num_conn} connections were asked for, and {left} of this gateway's "
            f"{limits.connections} are left; ask for fewer, or try again when a session has ended"
        )
    _admit_rate(limits.rate, use.rate.bytes_per_s, request.rate)
    needed = request.num_conn + _DESCRIPTORS_PER_SESSION + _DESCRIPTORS_KEPT
    if (left := _descriptors_left()) < needed:
        raise ResourceExhausted(
            f"this gateway has {left} file descriptors left, and a session of {request.num_conn} connections needs "
            f"{needed}; its operator raises LimitNOFILE of the service"
        )
    if (left := _processes_left()) < _PROCESSES_PER_SESSION:
        raise ResourceExhausted(
            f"this gateway may start {left} more processes, and a session needs {_PROCESSES_PER_SESSION}; "
            "its operator raises TasksMax of the service"
        )


def _admit_rate(capacity: Rate, taken: int, asked: Rate) -> None:
    if capacity.bytes_per_s and taken + asked.bytes_per_s > capacity.bytes_per_s:
        left = max(0, capacity.bytes_per_s - taken)
        shown = Rate(left) if left else "none"
        raise ResourceExhausted(
            f"a rate of {asked} was asked for, and of this gateway's {capacity} {shown} is left; "
            "ask for less, or try again when a session has ended"
        )


def _descriptors_left() -> int:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return 2**31
    try:
        # Since Linux 6.2 the size of the directory is their number; else thousands of names are to be counted.
        return limit - (os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd")))  # noqa: PTH116, PTH208
    except OSError:  # not even one for looking
        return 0


def _processes_left() -> int:
    """Look at this service's cgroup; without one of its own there is no limit that could be counted against."""
    for line in _CGROUP.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if (root := _ROOTS.get(controllers)) is None:
            continue
        group = Path(root + path)
        try:
            limit, current = (group / "pids.max").read_text().strip(), int((group / "pids.current").read_text())
        except OSError:
            continue
        if limit != "max":
            return int(limit) - current
    return 2**31
