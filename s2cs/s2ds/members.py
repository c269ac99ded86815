"""The nodes of a gateway: this host and others, which come and go while it runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping

from s2cs.s2ds.contract import TunnelStatus
from s2cs.s2ds.local import LocalDataServer
from s2cs.s2ds.remote.client import RemoteDataServer
from s2cs.s2ds.remote.link import Link
from s2cs.s2ds.spread import Server
from scistream.errors import ScistreamError
from scistream.vocabulary import Rate

log = logging.getLogger(__name__)

LOCAL = "local"  # how this host is called among the nodes
Back = Callable[[Mapping[str, TunnelStatus]], None]


class Members:
    """Name the data servers of all nodes. One that is left out of the settings stays until it is let go."""

    def __init__(
        self, local: LocalDataServer, here: bool, drained: Callable[[str], bool], back: Callable[[str], Back]
    ) -> None:
        """Begin with this host.

        Args:
            local: its data server.
            here: it takes sessions, too.
            drained: tells whether a node takes no new sessions.
            back: gives what is to be told, by a node, all of its tunnels whenever it is in touch.
        """
        self.servers: dict[str, Server] = {LOCAL: local}
        self.local = local
        self._here = here
        self._drained = drained
        self._back = back
        self._capacity: dict[str, int] = {}
        self._leaving: set[str] = set()

    def __iter__(self) -> Iterator[tuple[str, Server]]:
        return iter(tuple(self.servers.items()))

    @property
    def remote(self) -> list[RemoteDataServer]:
        """Those on other hosts."""
        return [server for server in self.servers.values() if isinstance(server, RemoteDataServer)]

    def get(self, name: str) -> Server | None:
        """Give a node's data server; None if it is none of this gateway's any more."""
        return self.servers.get(name)

    def lost(self, name: str) -> str:
        """Say why nothing can be asked of a node; empty while it is in touch."""
        server = self.servers.get(name)
        return server.lost if isinstance(server, RemoteDataServer) else ""

    def capacity(self, name: str) -> int:
        """Say what rate a node can carry, in bytes per second; 0 is no limit."""
        return self._capacity.get(name, 0)

    def is_drained(self, name: str) -> bool:
        """Tell whether a node takes no new sessions."""
        if name in self._leaving or (name == LOCAL and not self._here):
            return True
        try:
            return self._drained(name)
        except ScistreamError:  # the store cannot be used: then no session is taken anyway
            return False

    def be(self, links: Mapping[Link, Rate], here: bool) -> tuple[list[str], list[RemoteDataServer]]:
        """Have these further nodes from now on; name those that are to be left, and give those that are new.

        Args:
            links: how they are reached, and what rate each can carry; 0 is no limit.
            here: this host takes sessions, too.
        """
        self._here = here
        left = sorted(self.servers.keys() - {LOCAL, *(link.name for link in links)} - self._leaving)
        self._leaving.update(left)
        added = []
        for link, rate in links.items():
            self._capacity[link.name] = rate.bytes_per_s
            known = self.servers.get(link.name)
            if isinstance(known, RemoteDataServer):
                self._leaving.discard(link.name)
                known.relink(link)
            else:
                added.append(RemoteDataServer(link, self._back(link.name)))
                self.servers[link.name] = added[-1]
        return left, added

    def let_go(self, name: str) -> Server | None:
        """Give the data server of a node that is to be left, and know it no more; None if it is not to be left."""
        if name not in self._leaving:
            return None
        self._leaving.discard(name)
        self._capacity.pop(name, None)
        return self.servers.pop(name)
