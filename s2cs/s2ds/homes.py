"""Which gateway node each tunnel is on, and the rate that its session reserved there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Home:
    """Where a tunnel is."""

    id: str
    node: str
    rate: int  # that its session reserved, in bytes per second


class Homes:
    """Remember where the tunnels are; a rate is counted for as long as its tunnel has a home."""

    def __init__(self) -> None:
        self._homes: dict[str, Home] = {}
        self._reserved: Counter[str] = Counter()  # rate, by node

    def __iter__(self) -> Iterator[Home]:
        return iter(tuple(self._homes.values()))

    def get(self, id: str) -> Home | None:
        """Say where a tunnel is; None if it is not known."""
        return self._homes.get(id)

    def node(self, id: str) -> str | None:
        """Name the node that a tunnel is on; None if it is not known."""
        home = self._homes.get(id)
        return home.node if home is not None else None

    def settle(self, home: Home) -> None:
        """Take note of where a tunnel is."""
        self.leave(home.id)
        self._homes[home.id] = home
        self._reserved[home.node] += home.rate

    def leave(self, id: str) -> None:
        """Take note that a tunnel is nowhere any more."""
        if (home := self._homes.pop(id, None)) is not None:
            self._reserved[home.node] -= home.rate

    def at(self, node: str) -> tuple[str, ...]:
        """Name the tunnels of a node."""
        return tuple(home.id for home in self._homes.values() if home.node == node)

    def reserved(self, node: str) -> int:
        """Say what rate a node's sessions have reserved together, in bytes per second."""
        return self._reserved[node]
