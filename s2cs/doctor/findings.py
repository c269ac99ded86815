"""What the doctor is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from scistream.vocabulary import PortRange, Rate


class Level(StrEnum):
    """How a finding matters."""

    OK = "ok"
    ADVICE = "advice"  # it works, and would work better
    FAULT = "fault"  # what was asked for cannot be reached, or will fail


@dataclass(frozen=True, slots=True)
class Need:
    """What the gateway is to carry."""

    bandwidth: Rate  # of the WAN, for one connection that has it alone
    rtt_s: float  # round trip to the other facility, seconds
    stated: bool  # by the operator; else assumed, and what falls short of it is no fault
    connections: int  # of all sessions together
    sessions: int
    ports: PortRange

    @property
    def in_flight(self) -> int:
        """Bytes on the way when the WAN is full."""
        return round(self.bandwidth.bytes_per_s * self.rtt_s)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    level: Level
    value: str  # as found
    target: str = ""  # as it should be
    why: str = ""
    mend: str = ""  # the command, or what to do where there is none; empty when all is well


def finding(
    name: str, value: object, target: str, why: str, mend: str, *, well: bool, level: Level = Level.ADVICE
) -> Finding:
    """Make a finding: of that level, or ok when all is well, and then with nothing to mend."""
    return Finding(name, Level.OK if well else level, str(value), target, why, "" if well else mend)


def size(amount: float) -> str:
    """Show bytes as an engineer does."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if amount >= factor:
            return f"{amount / factor:.3g} {unit}"
    return f"{amount:.0f} bytes"
