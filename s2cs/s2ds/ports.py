"""Listeners of a tunnel: a reserved port is a bound socket."""

from __future__ import annotations

import errno
import math
import os
import random
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Self

from s2cs.s2ds.config import Interface, Keepalive
from s2cs.s2ds.copies import copies
from s2cs.s2ds.pacing import set_pace
from s2cs.s2ds.senders import take_all, take_only
from scistream.errors import FailedPrecondition, ResourceExhausted, Unavailable
from scistream.vocabulary import Endpoint, PortRange, Transport

_BACKLOG = 4096  # connections that wait while a proxy starts; the kernel caps it at net.core.somaxconn
_KEEPALIVE = Keepalive()
DATAGRAMS = 8 * 2**20
"""Bytes of datagrams that may wait in a socket; the kernel caps it at net.core.rmem_max."""


class Listeners:
    """Sockets bound at random free ports, handed down to a proxy and held until the tunnel ends."""

    def __init__(
        self,
        interface: Interface,
        sockets: tuple[socket.socket, ...],
        ports: tuple[int, ...] = (),
        protocol: Transport = Transport.TCP,
    ) -> None:
        """Hold sockets; or none, of ports that a living proxy has and does not give away."""
        self.interface = interface
        self.protocol = protocol
        self.sockets = sockets
        self.ports = ports or tuple(s.getsockname()[1] for s in sockets)
        self.bound = tuple(Endpoint(interface.bind, port) for port in self.ports)
        self.advertised = tuple(Endpoint(interface.advertise, interface.port or port) for port in self.ports)

    @property
    def inodes(self) -> frozenset[int]:
        """What the kernel knows the sockets by."""
        return frozenset(os.fstat(s.fileno()).st_ino for s in self.sockets)

    @classmethod
    def bind(cls, interface: Interface, ports: PortRange, count: int, protocol: Transport = Transport.TCP) -> Self:
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
                if (bound := _bind(interface, port, protocol)) is not None:
                    sockets.append(bound)
            if len(sockets) < count:
                raise too_few(count, len(sockets), ports, interface)
        except BaseException:
            for each in sockets:
                each.close()
            raise
        return cls(interface, tuple(sockets), protocol=protocol)

    @classmethod
    def regain(
        cls,
        interface: Interface,
        ports: tuple[int, ...],
        holders: tuple[int, ...],
        protocol: Transport = Transport.TCP,
    ) -> Self:
        """Take the listeners of an earlier server back: out of a living proxy, or by binding the ports again.

        Where the kernel does not let this process look into the proxy, it keeps them alone, and they are bound
        again if it dies: connections are refused, and datagrams lost, for that moment.

        Raises:
            Unavailable: no proxy lives, and a port was taken meanwhile.
        """
        if not holders:
            regained = cls(interface, (), ports, protocol)
            regained.ensure()
            return regained
        for holder in holders:
            found = {s.getsockname()[:2]: s for s in inherited(holder, len(ports))}
            sockets = [found.pop((interface.bind, port), None) for port in ports]
            for each in found.values():
                each.close()
            held = tuple(s for s in sockets if s is not None)
            if len(held) == len(ports):
                return cls(interface, held, protocol=protocol)
            for each in held:
                each.close()
        return cls(interface, (), ports, protocol)

    def ensure(self) -> None:
        """Hold the sockets, if they are not held.

        Raises:
            Unavailable: another program has one of the ports.
        """
        if self.sockets:
            return
        bound: list[socket.socket] = []
        for port in self.ports:
            if (taken := _bind(self.interface, port, self.protocol)) is None:
                for each in bound:
                    each.close()
                where = Endpoint(self.interface.bind, port)
                raise Unavailable(f"another program has taken {where} meanwhile; keep the port range for S2DS")
            bound.append(taken)
        self.sockets = tuple(bound)

    def receive(self, senders: tuple[IPv4Address | IPv6Address, ...] | None) -> None:
        """Receive datagrams from now on: of these addresses alone, or of all. Before, nothing is received.

        Raises:
            Unavailable: another program has one of the ports.
        """
        self.ensure()
        for each in self.sockets:
            if senders is None:
                take_all(each)
            else:
                take_only(each, senders)

    def listen(self, pace: int = 0, send_buffer: int = 0) -> None:
        """Accept into the backlog from now on. What is accepted inherits all that is set here.

        Args:
            pace: how fast each connection may send, in bytes per second; 0 is no limit.
            send_buffer: what to ask for with SO_SNDBUF; 0 lets the kernel find its size.

        Raises:
            Unavailable: another program has one of the ports.
        """
        self.ensure()
        if self.protocol is Transport.UDP:
            return  # see `receive`
        try:
            for each in self.sockets:
                # Connections inherit it: their ports can be bound again while they are in TIME_WAIT.
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                # Nginx takes it for granted: a worker that loses the race for a connection would hang in accept().
                each.setblocking(False)
                each.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE.idle_s)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE.interval_s)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE.count)
                if pace:
                    set_pace(each, pace)
                if send_buffer:
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
                each.listen(_BACKLOG)
        except OSError as error:
            taken = ", ".join(map(str, self.bound))
            raise Unavailable(
                f"somebody else listens on one of {taken} ({error.strerror}); keep the port range for S2DS"
            ) from None

    def close(self) -> None:
        """Give the ports back. Closing twice is harmless."""
        for each in self.sockets:
            each.close()


def too_few(asked: int, free: int, ports: PortRange, interface: Interface) -> ResourceExhausted:
    """Say that there are not so many ports."""
    return ResourceExhausted(
        f"{asked} listeners were asked for, and {free} ports of {ports} are free on {interface.bind}; "
        "release sessions, or widen the port range"
    )


def inherited(holder: int, count: int) -> list[socket.socket]:
    """Copy the first sockets that were handed down to a process; none where the kernel does not allow it."""
    found = []
    for _, copy in copies(holder, range(3, 3 + count)):
        if copy is None:
            break
        found.append(copy)
    return found


def _bind(interface: Interface, port: int, protocol: Transport) -> socket.socket | None:
    """Bind one port, or answer None when somebody has it."""
    family = socket.AF_INET6 if interface.ip.version == 6 else socket.AF_INET
    udp = protocol is Transport.UDP
    try:
        bound = socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
    except OSError as error:
        raise ResourceExhausted(
            f"no socket can be opened ({error.strerror}); release sessions, or raise LimitNOFILE of this service"
        ) from None
    try:
        if udp:  # never with SO_REUSEADDR: others could bind the port, too, and take the datagrams
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, DATAGRAMS)
            bound.setblocking(False)
            take_only(bound, ())
            bound.bind((interface.bind, port))
            return bound
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
