"""How many connections one address may have to the control port, and how long without good credentials.

gRPC bounds the connections of all together and has no word for those of one peer. They are this process's own
sockets: so they are looked up among its descriptors, and the ones that are too many are shut down, for gRPC to close.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from s2cs.bounds import Peer

log = logging.getLogger(__name__)

_LOOK_S = 0.5
_REMEMBER_S = 5.0  # a proof may come before the connection is first looked at


class Most(Protocol):
    """What is allowed, as `[limits]` has it."""

    @property
    def peer_connections(self) -> int:
        """Connections of one address."""
        ...

    @property
    def stranger_time(self) -> int:
        """Seconds that a connection may last without good credentials."""
        ...


@dataclass(frozen=True, slots=True)
class _Connection:
    peer: Peer
    since: float


class Connections:
    """Watch the connections of a process to its own ports."""

    def __init__(
        self,
        ports: Iterable[int],
        most: Callable[[], Most],
        bound: int = 2**31,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch some ports.

        Args:
            ports: local ports that are served.
            most: gives the limits in force.
            bound: what no address gets more than, whatever the limits say.
            clock: seconds.
        """
        self._ports = frozenset(ports)
        self._most = most
        self._bound = bound
        self._clock = clock
        self._known: dict[int, _Connection | None] = {}  # by the kernel's number; None is no control connection
        self._proved: dict[Peer, float] = {}
        self._task: asyncio.Task[None] | None = None

    def watch_also(self, ports: Iterable[int]) -> None:
        """Watch further ports."""
        self._ports |= frozenset(ports)

    def start(self) -> None:
        """Begin to watch."""
        self._task = asyncio.create_task(self._watch())

    def stop(self) -> None:
        """Watch no longer."""
        if self._task is not None:
            self._task.cancel()

    def prove(self, peer: Peer) -> None:
        """Note that a connection had good credentials: it may stay."""
        self._proved[peer] = self._clock()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await asyncio.to_thread(self.look)
            except Exception:
                log.exception("connections could not be looked at; they are looked at again")

    def look(self) -> int:
        """Look at all once, and shut down what is too much; how many that were."""
        now = self._clock()
        sockets = _own_sockets()
        self._known = {name: self._known.get(name) for name in sockets if name in self._known} | {
            name: self._connection(fd, name, now) for name, fd in sockets.items() if name not in self._known
        }
        live = {connection.peer for connection in self._known.values() if connection is not None}
        for peer, since in list(self._proved.items()):
            if peer not in live and now - since > _REMEMBER_S:
                self._proved.pop(peer, None)
        by_network: dict[str, list[tuple[int, _Connection]]] = defaultdict(list)
        for name, connection in self._known.items():
            if connection is not None:
                by_network[connection.peer.network].append((name, connection))
        cut = 0
        for network, connections in by_network.items():
            if names := self._too_many(connections, now):
                cut += len(names)
                log.info("%d connections of %s to the control port are ended", len(names), network)
                for name in names:
                    _shut(sockets[name], name)
        return cut

    def _too_many(self, connections: list[tuple[int, _Connection]], now: float) -> list[int]:
        """Choose: strangers before users, old strangers before new ones, which may yet prove themselves."""
        most = self._most()
        strangers = sorted((c.since, name) for name, c in connections if c.peer not in self._proved)
        users = sorted(((c.since, name) for name, c in connections if c.peer in self._proved), reverse=True)
        late = sum(now - since > most.stranger_time for since, _ in strangers)
        excess = len(connections) - min(most.peer_connections, self._bound)
        return [name for _, name in [*strangers, *users][: max(late, excess, 0)]]

    def _connection(self, fd: int, name: int, now: float) -> _Connection | None:
        """Look at a socket that is new."""
        with suppress(OSError), _copy(fd, name) as sock:
            if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.getsockname()[1] in self._ports:
                host, port = sock.getpeername()[:2]
                return _Connection(Peer.at(host, port), now)
        return None


def _own_sockets() -> dict[int, int]:
    """The sockets of this process: the kernel's numbers of them, and their descriptors. There are some a session."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names, and fast
        try:
            status = os.fstat(int(entry))
        except OSError:
            continue
        if stat.S_ISSOCK(status.st_mode):
            found[status.st_ino] = int(entry)
    return found


def _copy(fd: int, name: int) -> socket.socket:
    """Take hold of a socket: the number may mean another by now, and what is done must not be done to that one."""
    copy = os.dup(fd)
    try:
        if os.fstat(copy).st_ino != name:
            raise OSError("it was closed meanwhile")
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise


def _shut(fd: int, name: int) -> None:
    with suppress(OSError), _copy(fd, name) as sock:
        sock.shutdown(socket.SHUT_RDWR)
