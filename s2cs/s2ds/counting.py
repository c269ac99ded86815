"""Looks at the kernel's counters: one for all tunnels that are asked about at the same time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from s2cs.s2ds.meter import Live, Look, Resting, measure

log = logging.getLogger(__name__)


class Counted(Protocol):
    """A tunnel, as far as it is counted."""

    def look(self) -> Look:
        """Say which proxies are to be looked at."""

    def measured(self, look: Look, live: dict[int, Live]) -> None:
        """Take what the kernel says of their open connections."""


class Counting:
    """Read the kernel's counters for tunnels, in a thread: there may be a hundred thousand connections."""

    def __init__(self) -> None:
        self._waiting: list[Counted] = []
        self._next: asyncio.Task[None] | None = None
        self._resting: Resting = {}

    async def look(self, tunnels: Sequence[Counted]) -> None:
        """Look for all of these now; a kernel that does not tell leaves what was counted before."""
        looks = [(tunnel, tunnel.look()) for tunnel in tunnels]
        try:
            groups = [group for _, look in looks for group in look.groups]
            live = await asyncio.to_thread(measure, groups, self._resting)
        except (OSError, RuntimeError) as error:  # the latter: no thread can be started
            log.warning("open connections are not counted: %s", error)
            return
        for tunnel, look in looks:
            tunnel.measured(look, {group.leader: live[group.leader] for group in look.groups if group.leader in live})

    async def look_soon(self, tunnel: Counted) -> None:
        """Look for a tunnel, together with those who ask at the same time."""
        self._waiting.append(tunnel)
        if self._next is None:
            self._next = asyncio.create_task(self._look_at_those())
        await asyncio.shield(self._next)

    async def _look_at_those(self) -> None:
        tunnels, self._waiting, self._next = self._waiting, [], None
        await self.look(tunnels)
