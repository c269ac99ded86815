"""Listeners of a tunnel: a reserved port is a bound socket."""

from __future__ import annotations

import errno
import math
import os
import random
import socket
from collections.abc import Iterator
from typing import Self

from s2cs.s2ds.config import Interface
from scistream.errors import FailedPrecondition, ResourceExhausted
from scistream.vocabulary import Endpoint, PortRange

_BACKLOG = 4096  # connections that wait while a proxy starts; the kernel caps it at net.core.somaxconn
_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 8}  # keeps an idle stream in firewalls' tables


class Listeners:
    """Sockets bound at random free ports, handed down to a proxy and held until the tunnel ends."""

    def __init__(self, sockets: tuple[socket.socket, ...], interface: Interface) -> None:
        self.sockets = sockets
        self.bound = tuple(Endpoint(interface.bind, s.getsockname()[1]) for s in sockets)
        self.advertised = tuple(Endpoint(interface.advertise, endpoint.port) for endpoint in self.bound)
        self.inodes = frozenset(os.fstat(s.fileno()).st_ino for s in sockets)

    @classmethod
    def bind(cls, interface: Interface, ports: PortRange, count: int) -> Self:
        """Take `count` ports, all or none.

        Raises:
            ResourceExhausted: fewer are free, or this process has no descriptors left.
            FailedPrecondition: the address is not one of this node's.
        """
        sockets: list[socket.socket] = []
        try:
            for port in _shuffled(ports):
                if len(sockets) == count:
                    break
                if (bound := _bind(interface, port)) is not None:
                    sockets.append(bound)
            if len(sockets) < count:
                raise ResourceExhausted(
                    f"{count} listeners were asked for, and {len(sockets)} ports of {ports} are free on "
                    f"{interface.bind}; release sessions, or widen the port range"
                )
        except BaseException:
            for each in sockets:
                each.close()
            raise
        return cls(tuple(sockets), interface)

    def listen(self) -> None:
        """Accept into the backlog from now on. What is accepted inherits keepalive and no-delay."""
        for each in self.sockets:
            # Connections inherit it: their ports can be bound again while they are in TIME_WAIT.
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for name, value in _KEEPALIVE.items():
                each.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
            each.listen(_BACKLOG)

    def close(self) -> None:
        """Give the ports back. Closing twice is harmless."""
        for each in self.sockets:
            each.close()


def _bind(interface: Interface, port: int) -> socket.socket | None:
    """Bind one port, or answer None when somebody has it."""
    family = socket.AF_INET6 if interface.ip.version == 6 else socket.AF_INET
    try:
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ResourceExhausted(
            f"no socket can be opened ({error.strerror}); release sessions, or raise LimitNOFILE of this service"
        ) from None
    try:
        # Old connections in TIME_WAIT are no obstacle ...
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((interface.bind, port))
        # ... but while the option is set, another program could bind this port beside a socket that does not listen.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError as error:
        bound.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            return None
        raise FailedPrecondition(
            f"address {interface.bind} cannot be bound ({error.strerror}); set the address that this node has"
        ) from None
    return bound


def _shuffled(ports: PortRange) -> Iterator[int]:
    """Walk the range once from anywhere with any stride: random enough, and nothing to prepare."""
    size = len(ports)
    stride = next(n for n in iter(lambda: random.randint(1, size), None) if math.gcd(n, size) == 1)  # noqa: S311
    start = random.randrange(size)  # noqa: S311
    for i in range(size):
        yield ports.first + (start + i * stride) % size
