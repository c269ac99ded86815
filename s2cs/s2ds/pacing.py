"""The kernel as rate limiter, for any proxy: TCP holds back what a socket sends.

A listening socket hands its pace to each connection that it accepts. On both gateways those are the connections
that carry data from the producer to the consumer. Connections that a proxy opens inherit from nobody: where the
proxy has no limit of its own they are found in /proc, copied for a moment, and paced, a quarter of a second after
they opened at the latest.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Iterable, Set

from s2cs.s2ds import procfs
from s2cs.s2ds.copies import copies
from s2cs.s2ds.launchers.base import Running

log = logging.getLogger(__name__)

_SO_MAX_PACING_RATE = 47  # of every architecture that these proxies are packaged for; Python has no name for it
_LOOK_S = 0.25


def set_pace(connection: socket.socket, pace: int) -> None:
    """Let the kernel hold back what a socket sends, to that many bytes per second.

    TCP paces by itself: neither root nor a queueing discipline is needed.
    """
    connection.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, struct.pack("@L", pace))


async def pace_opened(process: Running, pace: int) -> None:
    """Pace the connections that a proxy opens itself, to so many bytes per second each, until it ends."""
    known: set[tuple[int, int]] = set()
    told = False
    while not process.ended:
        known, refused = _look((process.pid, *procfs.children(process.pid)), known, pace)
        if refused and not told:
            told = True
            log.warning("the kernel lets nobody look into process %s: towards the producer no rate is kept", refused)
        await process.wait(_LOOK_S)


def _look(pids: Iterable[int], known: Set[tuple[int, int]], pace: int) -> tuple[set[tuple[int, int]], int]:
    """Pace the sockets that are not known yet; give those that are known now, and a process that is closed to us."""
    paced, refused = set(), 0
    for pid in pids:
        found = {(inode, fd) for inode, fd in procfs.descriptors(pid).items()}
        paced |= found & known
        new = {fd: inode for inode, fd in found - known}
        for fd, connection in copies(pid, new):
            if connection is None:
                refused = pid if procfs.descriptors(pid).get(new[fd]) == fd else refused
                continue
            with connection:
                set_pace(connection, pace)
                if os.fstat(connection.fileno()).st_ino == new[fd]:
                    paced.add((new[fd], fd))
    return paced, refused
