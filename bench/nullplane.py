"""`python -m bench.nullplane serve --config F`: a gateway whose data server takes everything and carries nothing.

Gateway, store, rules, credentials and gRPC are the product's own, wired as it wires them. Only the data server is
another: what remains is the cost of the control plane.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

from s2cs import data_server, server
from s2cs.s2ds.contract import (
    BackendInfo,
    Bridge,
    DataServer,
    LegCheck,
    Printed,
    Reservation,
    Traffic,
    TunnelEvent,
    TunnelSpec,
    TunnelState,
    TunnelStatus,
)
from s2cs.s2ds.local import LocalConfig
from scistream.errors import NotFound
from scistream.vocabulary import Endpoint, Role
from scistream.x509 import PrivateKey


class NullDataServer(DataServer):
    """Stand for a data server: six verbs that answer at once. One key serves all."""

    def __init__(self, config: LocalConfig | None = None) -> None:
        self._tunnels: dict[str, TunnelStatus] = {}
        self._key = PrivateKey.generate()
        self._numbers = count()
        self._ended = asyncio.Event()

    async def open(self) -> None:
        """Nothing to take up."""

    async def close(self) -> None:
        """Nothing to end."""
        self._ended.set()

    async def leave(self) -> None:
        """Nothing to let go."""
        self._ended.set()

    def configure(self, config: LocalConfig) -> None:
        """Nothing to change."""

    async def reserve(self, spec: TunnelSpec) -> Reservation:
        """Name a listener, and ask for a certificate."""
        port = 1024 + next(self._numbers) % 60_000
        listeners = tuple(Endpoint("127.0.0.1", port) for _ in range(spec.num_conn))
        self._tunnels[spec.id] = TunnelStatus(spec.id, TunnelState.RESERVED, "nginx", "0", listeners)
        return Reservation("nginx", listeners, self._key.csr(spec.uid, spec.role))

    async def start(self, id: str, bridge: Bridge) -> None:
        """Say that the way is open."""
        if id not in self._tunnels:
            raise NotFound(f"there is no tunnel {id}")

    async def update(self, id: str, bridge: Bridge) -> None:
        """Say that the way leads elsewhere."""

    async def stop(self, id: str, cut: bool = False) -> Traffic | None:
        """Forget; nothing was moved."""
        return Traffic() if self._tunnels.pop(id, None) else None

    async def list(self, *ids: str) -> tuple[TunnelStatus, ...]:
        """All there are, or those of these ids."""
        return tuple(self._tunnels[id] for id in ids or self._tunnels if id in self._tunnels)

    def watch(self) -> AsyncIterator[TunnelEvent]:
        """Nothing ever happens."""
        return self._silence()

    async def _silence(self) -> AsyncIterator[TunnelEvent]:
        await self._ended.wait()
        return
        yield  # an iterator with nothing in it

    async def logs(self, id: str, lines: int) -> Printed:
        """Nothing is printed."""
        return Printed()

    async def verify(self, id: str, bridge: Bridge, passive: bool = False) -> tuple[LegCheck, ...]:
        """There is nothing to try."""
        return ()

    def backends(self) -> tuple[BackendInfo, ...]:
        """One that can do anything."""
        return (BackendInfo("nginx", frozenset(), "0"),)

    def most_ports(self) -> int:
        """As many as wanted."""
        return 65_535

    def free_ports(self, role: Role) -> int:
        """As many as wanted."""
        return 65_535


def main(arguments: list[str]) -> None:
    """Serve as `s2cs serve` does."""
    data_server.LocalDataServer = NullDataServer  # type: ignore[assignment, misc]
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    asyncio.run(server.serve(Path(arguments[arguments.index("--config") + 1])))


if __name__ == "__main__":
    main(sys.argv[1:])
