"""What data servers that spread tunnels over others have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

from s2cs.background import Background
from s2cs.s2ds.contract import Bridge, LegCheck
from s2cs.s2ds.events import Events, Watch
from s2cs.s2ds.local import LocalDataServer
from s2cs.s2ds.remote.client import RemoteDataServer

Server = LocalDataServer | RemoteDataServer


class Spread(ABC):
    """Pass what is asked of a tunnel on to the data server that has it. See `s2cs.s2ds.contract.DataServer`."""

    def __init__(self) -> None:
        self._events = Events()
        self._background = Background()

    @abstractmethod
    def _at(self, id: str) -> Server:
        """Give the data server that has a tunnel.

        Raises:
            NotFound: none has it.
            FailedPrecondition: it is no more.
        """

    async def start(self, id: str, bridge: Bridge) -> None:
        """Open the way; return when connections are served."""
        await self._at(id).start(id, bridge)

    async def update(self, id: str, bridge: Bridge) -> None:
        """Lead new connections elsewhere or with new credentials; running streams go on untouched."""
        await self._at(id).update(id, bridge)

    async def verify(self, id: str, bridge: Bridge, passive: bool = False) -> tuple[LegCheck, ...]:
        """Try each leg of a tunnel that is open, from its node."""
        return await self._at(id).verify(id, bridge, passive)

    def watch(self) -> Watch:
        """Follow what happens to tunnels, from this call on."""
        return self._events.watch()
