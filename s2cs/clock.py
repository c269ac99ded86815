"""Time for leases: it neither jumps nor stops, and goes on over a restart of this program.

The wall clock is set by people and by NTP; a lease must not end a day early or a day late for that. So
time here is the wall clock's once, and from then on what the kernel counts since boot. Users are told
wall-clock times: `wall` translates as of now.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from s2cs.store import Store

_FACT = "clock"
_NOTICED_S = 1.0  # smaller adjustments are not passed on: the same question gets the same answer


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # goes on in suspend, as leases do


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Clock:
    """Steady seconds since the epoch."""

    def __init__(self, offset: float, since_boot: Callable[[], float] = _since_boot) -> None:
        """Make a clock that is `offset` seconds ahead of the time since boot."""
        self._offset = offset
        self._since_boot = since_boot
        self._ahead = 0.0  # the wall clock, of this one

    @classmethod
    def of(cls, store: Store, boot_id: str = "", since_boot: Callable[[], float] = _since_boot) -> Self:
        """Go on with the clock that was noted in this boot, or begin one at the wall clock's time."""
        boot_id = boot_id or _boot_id()
        noted = json.loads(store.fact(_FACT) or "{}")
        if noted.get("boot_id") == boot_id:
            return cls(noted["offset"], since_boot)
        offset = time.time() - since_boot()
        store.note(_FACT, json.dumps({"boot_id": boot_id, "offset": offset}))
        return cls(offset, since_boot)

    def now(self) -> float:
        """Steady time, in seconds since the epoch."""
        return self._since_boot() + self._offset

    def wall(self, steady: float) -> float:
        """Give what the wall clock shows, or showed, at a steady time, if it was right as it is now."""
        ahead = time.time() - self.now()
        if abs(ahead - self._ahead) > _NOTICED_S:
            self._ahead = ahead
        return steady + self._ahead
