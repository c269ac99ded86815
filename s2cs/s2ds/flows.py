"""Flows of UDP whose application was not there, ended so that the next datagram opens them anew.

An application that does not listen is told of by ICMP. Nginx 1.22 (1.31 does not) never reads from a flow again that it
was told so of, though it goes on sending: an application that comes back then hears, and is not heard, for as long as
the consumer sends. Nothing that the kernel lets one do to the socket of another process ends a flow of Nginx but a
send that fails: so the socket loses its peer, and the consumer's next datagram fails with it.
"""

from __future__ import annotations

import ctypes
import logging
import os
import socket
import struct
from collections.abc import Iterable, Set

from s2cs.s2ds import procfs
from s2cs.s2ds.pacing import copied
from s2cs.s2ds.proxy import Proxy
from scistream.vocabulary import Endpoint

log = logging.getLogger(__name__)

_LIBC = ctypes.CDLL(None, use_errno=True)
_NOWHERE = struct.pack("=H14x", socket.AF_UNSPEC)
_LOOK_S = 1.0


async def reopen_refused(proxy: Proxy) -> None:
    """End the flows of a proxy to applications that refused a datagram, within a second, until the proxy ends."""
    process = proxy.process
    while not process.ended:
        await process.wait(_LOOK_S)
        proxy.log.read()
        if refusers := proxy.log.take_refusers():
            end_flows((process.pid, *procfs.children(process.pid)), refusers)


def end_flows(pids: Iterable[int], peers: Set[Endpoint]) -> None:
    """Take their peer from the UDP sockets of processes that have one of these.

    The kernel's rule for that is the one of tracing, as for taking listeners back.
    """
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            continue  # it has ended
        try:
            for fd in procfs.descriptors(pid).values():
                if (found := copied(pidfd, fd)) is None:
                    continue
                with found:
                    if found.type == socket.SOCK_DGRAM and _peer(found) in peers:
                        _LIBC.connect(found.fileno(), _NOWHERE, len(_NOWHERE))
        finally:
            os.close(pidfd)


def _peer(found: socket.socket) -> Endpoint | None:
    if found.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        return Endpoint(*found.getpeername()[:2])
    except OSError:
        return None  # a listener
