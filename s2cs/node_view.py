"""The nodes of a gateway as an operator sees them: asked now, each by itself, whether the gateway runs or not."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from typing import Any

from s2cs.data_server import drained_fact, link
from s2cs.s2ds.remote.link import describe
from s2cs.settings import LOCAL, Node, Settings
from s2cs.store import Store
from scistream.errors import ScistreamError
from scistream.machine import Session
from scistream.vocabulary import Rate, Role


@dataclass(frozen=True, slots=True)
class View:
    """One node. Rates in words; empty is none."""

    name: str
    state: str  # up, draining or lost
    sessions: int
    rate: str  # that its sessions may reserve together
    rate_reserved: str
    free_ports: dict[str, int] | None = None  # by side; None: not known
    version: str = ""
    reason: str = ""  # why it is lost

    @property
    def facts(self) -> dict[str, Any]:
        """All of it, for programs."""
        return asdict(self)


async def look(settings: Settings, store: Store) -> list[View]:
    """Ask all nodes, at the same time."""
    running = [session for session in store.sessions() if not session.state.ended]

    def at(name: str) -> list[Session]:
        return [session for session in running if (session.node or LOCAL) == name]

    remote = [_ask(settings, store, node, at(node.name)) for node in settings.s2ds.nodes]
    return [_local(settings, store, at(LOCAL)), *await asyncio.gather(*remote)]


def lost(settings: Settings, name: str) -> str:
    """Say why a further node does not answer; empty if it does, or is none."""
    for node in settings.s2ds.nodes:
        if node.name == name:
            try:
                asyncio.run(describe(link(settings, node)))
            except ScistreamError as error:
                return str(error)
    return ""


def _local(settings: Settings, store: Store, sessions: list[Session]) -> View:
    network = settings.network
    held = {role: sum(s.request.num_conn for s in sessions if s.role is role) for role in Role}
    if network.lan == network.wan:  # one range for both
        held = dict.fromkeys(Role, sum(held.values()))
    size = len(network.ports)
    free = {"wan": max(0, size - held[Role.PROD]), "lan": max(0, size - held[Role.CONS])}
    drained = not settings.s2ds.local or _drained(store, LOCAL)
    return View(LOCAL, "draining" if drained else "up", len(sessions), "", _reserved(sessions), free)


async def _ask(settings: Settings, store: Store, node: Node, sessions: list[Session]) -> View:
    rate = str(node.rate) if node.rate.bytes_per_s else ""
    try:
        info = await describe(link(settings, node))
    except ScistreamError as error:
        return View(node.name, "lost", len(sessions), rate, _reserved(sessions), reason=str(error))
    free = {"wan": info.free_ports[Role.PROD], "lan": info.free_ports[Role.CONS]}
    state = "draining" if _drained(store, node.name) else "up"
    return View(node.name, state, len(sessions), rate, _reserved(sessions), free, info.version)


def _drained(store: Store, name: str) -> bool:
    return store.fact(drained_fact(name)) == "yes"


def _reserved(sessions: list[Session]) -> str:
    total = sum(session.request.rate.bytes_per_s for session in sessions)
    return str(Rate(total)) if total else "0"
