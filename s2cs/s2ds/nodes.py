"""The data servers of several gateway nodes as one: each session on one of them, from its beginning to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from s2cs.s2ds.contract import (
    BackendInfo,
    Change,
    Printed,
    Reservation,
    Traffic,
    TunnelEvent,
    TunnelSpec,
    TunnelState,
    TunnelStatus,
)
from s2cs.s2ds.events import Watch
from s2cs.s2ds.homes import Home, Homes
from s2cs.s2ds.local import LocalConfig, LocalDataServer
from s2cs.s2ds.members import Members
from s2cs.s2ds.placing import Candidate, NodeState, place
from s2cs.s2ds.remote.client import RemoteDataServer
from s2cs.s2ds.remote.link import Link
from s2cs.s2ds.spread import Server, Spread
from scistream.errors import AlreadyExists, FailedPrecondition, NotFound, ResourceExhausted, ScistreamError, Unavailable
from scistream.vocabulary import Rate, Role, shown

log = logging.getLogger(__name__)

_TRY_ELSEWHERE = (Unavailable, ResourceExhausted, FailedPrecondition)


class Nodes(Spread):
    """Carry sessions on several nodes. See `s2cs.s2ds.contract.DataServer` for the verbs.

    What a lost node has is told as LOST; when it is back, what nobody knows any more is stopped there.
    """

    def __init__(
        self,
        links: Mapping[Link, Rate],
        local: LocalDataServer,
        homes: Callable[[], Iterable[Home]],
        drained: Callable[[str], bool],
        here: bool = True,
    ) -> None:
        """Make it; nothing happens before `open`.

        Args:
            links: how further nodes are reached, and what rate each can carry; 0 is no limit.
            local: the data server of this host.
            homes: tells where the tunnels of sessions that run are, by what outlives this process.
            drained: tells whether a node takes no new sessions.
            here: this host takes sessions, too.
        """
        super().__init__()
        self._members = Members(local, here, drained, self._back)
        self._members.be(links, here)
        self._known = homes
        self._homes = Homes()

    async def open(self) -> None:
        """Open all; return when each is in touch, or known to be lost.

        Raises:
            FailedPrecondition: this host's data server cannot be used.
        """
        for home in self._known():
            self._homes.settle(home)
        await self._members.local.open()
        for _, server in self._members:
            self._background.begin(self._pass_on(server.watch()))
        await asyncio.gather(*(self._open(server) for server in self._members.remote))

    def configure(self, config: LocalConfig) -> None:
        """Take other settings for the tunnels to come on this host."""
        self._members.local.configure(config)

    def rearrange(self, links: Mapping[Link, Rate], here: bool) -> None:
        """Have these further nodes from now on. Sessions on one that is left out end with that reason.

        Args:
            links: as at the start.
            here: this host takes sessions, too.
        """
        left, added = self._members.be(links, here)
        for name in left:
            log.info("node %s is not in the settings any more", name)
            for id in self._homes.at(name):
                self._events.publish(TunnelEvent(id, Change.FATAL, _gone(name)))
            self._let_go(name)
        for server in added:
            self._background.begin(self._pass_on(server.watch()))
            self._background.begin(self._open(server))

    async def _open(self, server: RemoteDataServer) -> None:
        await server.open(*self._homes.at(server.name))

    def _let_go(self, name: str) -> None:
        """Leave a node that is not in the settings any more when its sessions have ended, or it is lost."""
        if not self._homes.at(name) or self._members.lost(name):
            server = self._members.let_go(name)
            if server is not None:
                self._background.begin(_left(server))

    def _leave_home(self, id: str) -> None:
        node = self._homes.node(id)
        self._homes.leave(id)
        if node is not None:
            self._let_go(node)

    async def close(self) -> None:
        """End all tunnels, and whatever watches them; those of a lost node are ended when it is in touch again.

        Raises:
            Unavailable: a tunnel of this host could not be ended.
        """
        await asyncio.gather(*(server.close() for server in self._members.remote), return_exceptions=True)
        self._end()
        await self._members.local.close()

    async def leave(self) -> None:
        """Close, and leave all tunnels running."""
        await asyncio.gather(*(server.leave() for _, server in self._members))
        self._end()

    def _end(self) -> None:
        self._background.cancel()
        self._events.end()

    async def reserve(self, spec: TunnelSpec) -> Reservation:
        """Bind `num_conn` listeners on the best node that has them, and make the tunnel's key there."""
        if self._homes.node(spec.id) is not None:
            raise AlreadyExists(f"tunnel {shown(spec.id)} exists; stop it first, or use another id")
        fault: ScistreamError | None = None
        tried: set[str] = set()
        while (name := self._best(spec, tried, fault)) is not None:
            tried.add(name)
            server = self._members.servers[name]
            self._homes.settle(Home(spec.id, name, spec.rate.bytes_per_s))
            try:
                return replace(await server.reserve(spec), node=name)
            except _TRY_ELSEWHERE as error:
                self._leave_home(spec.id)
                fault = error
                log.warning("a session of %s does not go to node %s: %s", spec.uid, name, str(error))
                if isinstance(error, Unavailable):  # the answer was lost, perhaps
                    self._background.begin(self._clear_away(name, spec.id))
            except BaseException:
                self._leave_home(spec.id)
                raise
        try:
            raise fault or Unavailable("the nodes have changed; ask again")
        finally:
            fault = None  # it names this frame, and that the node's connection

    def _best(self, spec: TunnelSpec, tried: set[str], fault: ScistreamError | None) -> str | None:
        """Name the best node that was not tried, as they are now; None when one has refused and there is no other.

        Raises:
            ScistreamError: no node can take it, and none was tried.
        """
        try:
            return place(spec, (node for node in self._candidates(spec.role) if node.name not in tried))[0]
        except ScistreamError:
            if fault is None:
                raise
            return None

    async def stop(self, id: str, cut: bool = False) -> Traffic | None:
        """End the tunnel and give everything back; say what it has moved. Unknown ids are no error.

        Raises:
            Unavailable: its node is lost; ask again when it is back.
        """
        if (home := self._homes.get(id)) is None:
            reached = [server for name, server in self._members if not self._members.lost(name)]
            found = await asyncio.gather(*(server.stop(id, cut) for server in reached))
            return next((traffic for traffic in found if traffic is not None), None)
        server = self._members.get(home.node)
        traffic = await server.stop(id, cut) if server is not None else None
        self._leave_home(id)
        return traffic

    async def list(self, *ids: str) -> tuple[TunnelStatus, ...]:
        """All tunnels there are, or those there are of these ids; on a lost node, as they were last known."""
        wanted = [home for home in (map(self._homes.get, ids) if ids else self._homes) if home is not None]
        asked = [(name, each) for name, each in self._members if not ids or any(h.node == name for h in wanted)]
        answers = await asyncio.gather(*(self._listed(name, each, ids, wanted) for name, each in asked))
        gone = tuple(
            TunnelStatus(home.id, TunnelState.FATAL, "", "", (), reason=_gone(home.node))
            for home in wanted
            if home.node not in self._members.servers
        )
        return (*(status for found in answers for status in found), *gone)

    async def _listed(
        self, name: str, server: Server, ids: tuple[str, ...], wanted: Iterable[Home]
    ) -> Iterable[TunnelStatus]:
        mine = [home.id for home in wanted if home.node == name]
        try:
            found = await server.list(*(mine if ids else ()))
        except ScistreamError as error:
            if not isinstance(server, RemoteDataServer):
                raise
            return [replace(server.last(id), reason=str(error)) for id in mine]
        # What is here and was placed elsewhere after all is about to be stopped.
        return [status for status in found if self._homes.node(status.id) in (None, name)]

    async def logs(self, id: str, lines: int) -> Printed:
        """What a tunnel's proxies printed last; nothing while its node is lost."""
        home = self._homes.get(id)
        nodes = [(name, server) for name, server in self._members if home is None or home.node == name]
        reached = [server for name, server in nodes if not self._members.lost(name)]
        found = await asyncio.gather(*(server.logs(id, lines) for server in reached), return_exceptions=True)
        return max((each for each in found if isinstance(each, Printed)), key=lambda p: p.count, default=Printed())

    def backends(self) -> tuple[BackendInfo, ...]:
        """The backends that a new session could have, and why it could not have the others."""
        found: dict[str, BackendInfo] = {}
        for node in self._candidates(Role.PROD):
            for info in node.backends:
                if node.drained and info.available:
                    info = replace(info, reason=f"node {node.name} is being drained")  # noqa: PLW2901
                known = found.get(info.name)
                if known is None or (info.available and not known.available):
                    found[info.name] = info
                elif not info.available and not known.available and info.reason not in known.reason:
                    found[info.name] = replace(known, reason=f"{known.reason}; {info.reason}")
        return tuple(found.values())

    def most_ports(self) -> int:
        """How many ports there are for each role, on all nodes together that take sessions."""
        return sum(server.most_ports() for name, server in self._members if not self._members.is_drained(name))

    def free_ports(self, role: Role) -> int:
        """How many listeners could still be reserved for a role, on all nodes together."""
        return sum(node.free_ports for node in self._candidates(role) if not node.drained)

    def states(self) -> tuple[NodeState, ...]:
        """Each node as it is now."""
        return tuple(
            NodeState(
                node.name,
                node.lost,
                node.drained,
                len(self._homes.at(node.name)),
                node.reserved,
                node.capacity,
                {role: self._members.servers[node.name].free_ports(role) for role in Role},
            )
            for node in self._candidates(Role.PROD)
        )

    # Where what is

    def _candidates(self, role: Role) -> tuple[Candidate, ...]:
        return tuple(
            Candidate(
                name,
                server.free_ports(role),
                server.backends(),
                self._members.capacity(name),
                self._homes.reserved(name),
                self._members.lost(name),
                self._members.is_drained(name),
            )
            for name, server in self._members
        )

    def _at(self, id: str) -> Server:
        node = self._homes.node(id)
        server = self._members.get(node) if node is not None else None
        if server is None:
            raise NotFound(f"there is no tunnel {shown(id)}; reserve it first")
        return server

    # What happens

    async def _pass_on(self, news: Watch) -> None:
        async for event in news:
            self._events.publish(event)
            if event.change is Change.LOST and (node := self._homes.node(event.id)) is not None:
                self._let_go(node)

    def _back(self, name: str) -> Callable[[Mapping[str, TunnelStatus]], None]:
        """Stop what a node that is in touch again has, and no session does."""

        def back(found: Mapping[str, TunnelStatus]) -> None:
            strange = [id for id in found if self._homes.node(id) != name]
            known = {home.id: home for home in self._known()} if strange else {}
            for id in strange:
                if self._homes.node(id) is None and id in known and known[id].node == name:
                    self._homes.settle(known[id])  # another S2CS of this gateway placed it there
                    continue
                log.warning("tunnel %s on node %s belongs to no session and is stopped", id, name)
                self._background.begin(self._clear_away(name, id))

        return back

    async def _clear_away(self, name: str, id: str) -> None:
        server = self._members.get(name)
        with suppress(Unavailable):  # it is lost again, or still, and looked at when it is back
            if server is not None:
                await server.stop(id, cut=True)


async def _left(server: Server) -> None:
    """End what a node still has, if it can be asked, and leave it."""
    with suppress(ScistreamError):
        await server.close()


def _gone(name: str) -> str:
    return f"its node {name} is not in the settings any more"
