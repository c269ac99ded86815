"""A flood of refusals fills no disk: the first of each minute and address are recorded, the others counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from s2cs.bounds import Peer

_WINDOW_S = 60.0
_MOST_KEYS = 1000  # of what is told apart in one window; the others are counted together
_OTHERS = ("", "others", "")


class Flood:
    """Say what is recorded by itself, and keep count of what is not."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Admit so many of a kind in a minute."""
        self._most = most
        self._clock = clock
        self._counts: dict[tuple[str, str, str], int] = {}
        self._ends = 0.0
        self._lock = threading.Lock()

    @property
    def counting(self) -> bool:
        """True while there is something that will be due."""
        return bool(self._counts)

    def admits(self, event: str, host: str, user: str) -> bool:
        """Tell whether one more is to be recorded by itself; if not, it is counted."""
        key = (event, Peer.at(host.strip("[]"), 0).network, user)
        with self._lock:
            if not self._counts:
                self._ends = self._clock() + _WINDOW_S
            if key not in self._counts and len(self._counts) >= _MOST_KEYS:
                key = _OTHERS
            self._counts[key] = count = self._counts.get(key, 0) + 1
        return count <= self._most

    def due(self, ending: bool = False) -> list[dict[str, Any]]:
        """Give what was counted and not admitted, when the minute is over or everything ends."""
        with self._lock:
            if not self._counts or (self._clock() < self._ends and not ending):
                return []
            counts, self._counts = self._counts, {}
        return [
            {"of": event, "peer": host, "user": user, "count": count - self._most}
            for (event, host, user), count in counts.items()
            if count > self._most
        ]
