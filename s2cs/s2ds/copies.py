"""Sockets out of another process: its listeners after a restart, its streams to pace them, its flows to end them.

The kernel's rule for that is the one of tracing: the same user, or CAP_SYS_PTRACE; where Yama restricts it, only the
latter.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterable, Iterator

_LIBC = ctypes.CDLL(None, use_errno=True)
_PIDFD_GETFD = 438  # the same on every architecture; Python has no name for it


def copies(pid: int, fds: Iterable[int]) -> Iterator[tuple[int, socket.socket | None]]:
    """Copy sockets of a process, one after the other; nothing of a process that has ended.

    Args:
        pid: whose they are.
        fds: their numbers there.

    Yields:
        the number, and a copy, which is the caller's to close; None where there is no socket, or none is to be had.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        for fd in fds:
            yield fd, _copied(pidfd, fd)
    finally:
        os.close(pidfd)


def _copied(pidfd: int, fd: int) -> socket.socket | None:
    copy = _LIBC.syscall(_PIDFD_GETFD, pidfd, fd, 0)
    if copy < 0:
        return None
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return None
