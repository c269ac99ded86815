"""Flows of UDP, as Nginx opens them: with room for more than a few datagrams, and ended where they are of no use.

Nginx has no setting for what may wait in a socket that it opens, and 208 kB, which most kernels give, are three
datagrams of 60,000 bytes.

An application that does not listen is told of by ICMP. Nginx 1.22 (1.31 does not) never reads from a flow again that it
was told so of, though it goes on sending: an application that comes back then hears, and is not heard, for as long as
the consumer sends. Nothing that the kernel lets one do to the socket of another process ends a flow of Nginx but a
send that fails: so the socket loses its peer, and the consumer's next datagram fails with it.
"""

from __future__ import annotations

import ctypes
import logging
import socket
import struct
from collections.abc import Iterable, Set

from s2cs.s2ds import procfs
from s2cs.s2ds.copies import copies
from s2cs.s2ds.ports import DATAGRAMS
from s2cs.s2ds.proxy import Proxy
from scistream.vocabulary import Endpoint

log = logging.getLogger(__name__)

_LIBC = ctypes.CDLL(None, use_errno=True)
_NOWHERE = struct.pack("=H14x", socket.AF_UNSPEC)
_LOOK_S = 0.25


async def tend_flows(proxy: Proxy) -> None:
    """Give a proxy's flows room, and end those to applications that refused a datagram, until the proxy ends."""
    process = proxy.process
    known: frozenset[int] = frozenset()
    while not process.ended:
        await process.wait(_LOOK_S)
        proxy.log.read()
        known = _tend((process.pid, *procfs.children(process.pid)), known, proxy.log.take_refusers())


def _tend(pids: Iterable[int], known: Set[int], refusers: Set[Endpoint]) -> frozenset[int]:
    """Look at the sockets of processes that are not known yet, and of refusers at all; give the inodes of all."""
    found: set[int] = set()
    for pid in pids:
        sockets = procfs.descriptors(pid)
        found |= sockets.keys()
        if not refusers and sockets.keys() <= known:
            continue
        wanted = (fd for inode, fd in sockets.items() if refusers or inode not in known)
        for _, copy in copies(pid, wanted):
            if copy is None:
                continue
            with copy:
                if copy.type != socket.SOCK_DGRAM or (peer := _peer(copy)) is None:
                    continue
                copy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, DATAGRAMS)
                if peer in refusers:
                    _LIBC.connect(copy.fileno(), _NOWHERE, len(_NOWHERE))
    return frozenset(found)


def _peer(found: socket.socket) -> Endpoint | None:
    if found.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        return Endpoint(*found.getpeername()[:2])
    except OSError:
        return None  # a listener
