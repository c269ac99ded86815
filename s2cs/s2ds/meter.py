"""How much a tunnel has moved: connections that are open by the kernel's counters, closed ones by the proxy's record.

The kernel knows what is open, and for every proxy alike. What is closed it has forgotten; it can tell of each end to
who has CAP_NET_ADMIN, but then not whose connection it was, nor whether the last byte was a FIN. The proxy writes a
line for every connection that ends, with the bytes of both directions, also while S2CS is down. So both are needed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from s2cs.s2ds import procfs
from s2cs.s2ds.contract import Leg, Traffic
from s2cs.s2ds.sockdiag import Connection, connections, flows
from scistream.vocabulary import Role

MOST_MOVED = 2**56
"""Bytes that a tunnel is counted for at most: years at half a gigabyte a second. Sums of it have room on the wire."""

_RATE_S = 0.5  # a rate is the mean over so long at least


@dataclass(frozen=True, slots=True)
class Group:
    """A proxy: its processes, and how its sockets are told apart."""

    leader: int
    role: Role
    ports: frozenset[int]  # of the listeners
    udp: bool = False  # it has flows: the kernel knows how many there are, and counts no bytes of them

    def pids(self) -> tuple[int, ...]:
        """The processes that may hold its sockets."""
        return (self.leader, *procfs.children(self.leader))


@dataclass(slots=True)
class Live:
    """The open connections of a proxy."""

    up: int = 0  # bytes from the consumer's application to the producer's
    down: int = 0
    open: int = 0
    lan: list[Connection] = field(default_factory=list)
    wan: list[Connection] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Rest:
    """A process that had no open connection when it was looked at."""

    full: tuple[int, int]  # see `procfs.fullness`
    sockets: frozenset[int]
    sure: bool = False  # it had the same sockets twice: none of them was a connection that ended in that moment


Resting = dict[int, Rest]
"""Such processes by their ids."""

_MOST_RESTING = 65536


def measure(groups: Iterable[Group], resting: Resting | None = None) -> dict[int, Live]:
    """Look at the open connections of proxies, by their leaders: one dump for all.

    Args:
        groups: the proxies.
        resting: what is remembered from look to look, so that those with nothing open cost next to nothing.

    Raises:
        OSError: the kernel does not tell.
    """
    resting = {} if resting is None else resting
    found: dict[int, Live] = {}
    owners: dict[int, Group] = {}
    looked: dict[int, Rest] = {}
    for group in groups:
        for pid in group.pids():
            full = procfs.fullness(pid)  # before its sockets: one that comes meanwhile makes it another the next time
            before = resting.get(pid)
            if before and before.sure and before.full == full:
                found[group.leader] = Live()
            elif inodes := procfs.sockets(pid):
                found[group.leader] = Live()
                owners |= dict.fromkeys(inodes, group)
                if full[0] and not group.udp:
                    looked[pid] = Rest(full, inodes, bool(before and (before.full, before.sockets) == (full, inodes)))
    busy = _count(owners, found)
    if len(resting) > _MOST_RESTING:
        resting.clear()  # most of them have ended
    resting |= {pid: rest for pid, rest in looked.items() if not rest.sockets & busy}
    return found


def _count(owners: Mapping[int, Group], found: Mapping[int, Live]) -> set[int]:
    """Count the open connections of proxies; the inodes of their sockets."""
    busy = set()
    if any(group.udp for group in owners.values()):
        for inode in flows(owners):
            found[owners[inode].leader].open += 1
    for each in connections(owners):
        busy.add(each.inode)
        group = owners[each.inode]
        live = found[group.leader]
        if (each.port in group.ports) is (group.role is Role.PROD):
            live.wan.append(each)
            continue
        # The application's leg is plain: its bytes are what is moved.
        live.lan.append(each)
        live.open += 1
        received_is_down = group.role is Role.PROD
        live.up += each.sent if received_is_down else each.received
        live.down += each.received if received_is_down else each.sent
    return busy


@dataclass(frozen=True, slots=True)
class Look:
    """A look at the kernel's counters: when it began, what was closed by then, and of which proxies."""

    at: float
    closed: Moved
    groups: tuple[Group, ...] = ()


@dataclass(frozen=True, slots=True)
class Moved:
    """Bytes and connections."""

    up: int = 0
    down: int = 0
    connections: int = 0

    def __add__(self, other: Moved) -> Moved:
        sums = (self.up + other.up, self.down + other.down, self.connections + other.connections)
        return Moved(*(min(each, MOST_MOVED) for each in sums))


class Ledger:
    """What a tunnel's closed connections have moved, and up to where each log has been read; kept in its directory."""

    def __init__(self, file: Path) -> None:
        """Go on with what an earlier server kept, if any."""
        self.closed = Moved()
        self.offsets: dict[str, int] = {}
        self.tls = ("", "")
        self.peak = 0  # bytes per second
        self._file = file
        self._saved = ""
        with suppress(OSError, ValueError, KeyError, TypeError):
            body = json.loads(file.read_text())
            closed, offsets, tls = Moved(**body["closed"]), body["offsets"], tuple(body["tls"])
            self.closed, self.offsets, self.tls, self.peak = closed, offsets, tls, int(body.get("peak", 0))

    def save(self) -> None:
        """Keep it; on a full disk the next time."""
        text = json.dumps({"closed": asdict(self.closed), "offsets": self.offsets, "tls": self.tls, "peak": self.peak})
        if text == self._saved:
            return
        made = self._file.with_suffix(".new")
        with suppress(OSError):
            with open(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:  # noqa: PTH123
                file.write(text)
            made.replace(self._file)
            self._saved = text


class Meter:
    """What one tunnel has moved in all."""

    def __init__(self, ledger: Ledger, rates: bool = True) -> None:
        """Count; without rates where bytes are known only of what has ended."""
        self.ledger = ledger
        self._rates = rates
        self._live: dict[int, Live] = {}
        self._gone: set[int] = set()  # proxies that have ended
        self._closed_then = ledger.closed  # when the kernel was last looked at
        self.looked_at = 0.0  # when that was
        self._sum: tuple[Moved, Traffic] | None = None  # with what was closed then; none when it is to be made anew
        self._mark: tuple[float, int] | None = None  # when the rate was last taken, and the bytes that were moved then
        self._rate = 0

    def begin(self) -> None:
        """Know that nothing was moved before now."""
        self._mark = time.monotonic(), 0

    def take(self, look: Look, live: Mapping[int, Live]) -> None:
        """Take what the kernel says of the tunnel's proxies.

        An earlier look that comes later means nothing. Nor does one that misses a proxy: that has just ended, and what
        was seen of it before is needed to `lose` it.
        """
        if look.at <= self.looked_at or self._live.keys() - live.keys():
            return
        self._live = {leader: each for leader, each in live.items() if leader not in self._gone}
        self._closed_then = look.closed
        self.looked_at = look.at
        self._sum = None
        self._take_rate(look.at)

    def _take_rate(self, now: float) -> None:
        """Take the mean rate since it was last taken: over a few milliseconds it would say nothing."""
        since, before = self._mark or (now, 0)
        if not self._rates:
            return
        if self._mark is not None and now - since < _RATE_S:
            return
        traffic = self.traffic
        moved = traffic.from_producer + traffic.from_consumer
        if self._mark is not None:
            self._rate = max(0, round((moved - before) / (now - since)))
            self.ledger.peak = max(self.ledger.peak, self._rate)
            self._sum = None
        self._mark = now, moved

    def lose(self, leader: int) -> None:
        """Count what a proxy had open that has ended without a record of it, as of the last look."""
        self._gone.add(leader)
        self._sum = None
        if (live := self._live.pop(leader, None)) is None:
            return
        closed, then = self.ledger.closed, self._closed_then
        rest = (live.up - closed.up + then.up, live.down - closed.down + then.down)
        open = live.open - closed.connections + then.connections
        self.ledger.closed += Moved(max(0, rest[0]), max(0, rest[1]), max(0, open))
        self._closed_then = self.ledger.closed

    def forget(self, leader: int) -> None:
        """Know no open connections of a proxy any more: its record has them."""
        self._gone.add(leader)
        self._sum = None
        if (live := self._live.pop(leader, None)) is not None:  # what it had open has been closed since
            self._closed_then += Moved(live.up, live.down, live.open)

    @property
    def traffic(self) -> Traffic:
        """Closed and open connections together."""
        closed = self.ledger.closed
        if self._sum is None or self._sum[0] is not closed:
            self._sum = closed, self._added_up()
        return self._sum[1]

    def _added_up(self) -> Traffic:
        closed, lives = self.ledger.closed, self._live.values()
        # What was closed since the last look is in both.
        since = replace(closed, up=closed.up - self._closed_then.up, down=closed.down - self._closed_then.down)
        ended = closed.connections - self._closed_then.connections
        open = max(0, sum(live.open for live in lives) - ended)
        up, down = sum(live.up for live in lives), sum(live.down for live in lives)
        return Traffic(
            from_producer=closed.down + max(0, down - since.down),
            from_consumer=closed.up + max(0, up - since.up),
            open=open,
            total=closed.connections + open,
            bytes_per_s=self._rate if open else 0,
            peak_bytes_per_s=self.ledger.peak,
            lan=_leg([each for live in lives for each in live.lan]),
            wan=_leg([each for live in lives for each in live.wan]),
        )


def _leg(found: list[Connection]) -> Leg:
    if not found:
        return Leg()
    return Leg(
        rtt_us=round(sum(each.rtt_us for each in found) / len(found)),
        retransmitted=sum(each.retransmitted for each in found),
        window=sum(each.window for each in found),
    )
