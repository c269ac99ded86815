"""How much anybody may ask of the control channel: calls a second, and failed authentications.

Whose credentials were good lately is counted by these credentials, everybody else by address. So a stranger behind
the same address translation uses up what strangers have there, and nothing of a user who is at work. What is over
the limit waits a little before it is refused, and all is forgotten again at the limit's own rate: nobody is locked out
for longer than an attack lasts.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import unquote

from scistream.errors import ResourceExhausted, Unauthenticated

_MOST_KEYS = 4096  # that are remembered; the least recently used is forgotten first
_BURST_S = 5.0  # a rate may be used up for that long at once
_WAIT_S = 2.0  # how long a call waits for its turn
_POLL_S = 0.05
_MOST_WAITING = 64  # of one address or credential
_MOST_AT_ONCE = 2000  # calls under way of one address or credential; a watch is one
_NONE = hashlib.sha256(b"").digest()  # of no credentials at all
_PREFIX = 12  # characters of a credential that guesses at it have in common


class Rates(Protocol):
    """What is allowed, as `[limits]` has it."""

    @property
    def call_rate(self) -> int:
        """Calls a second of one credential, and of all strangers of one address."""
        ...

    @property
    def failure_rate(self) -> int:
        """Failed authentications a second of one address, and of credentials that begin alike."""
        ...


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a call comes from."""

    host: str
    port: int

    @classmethod
    def of(cls, words: str) -> Peer:
        """Read gRPC's words: `ipv4:192.0.2.1:50000`, `ipv6:%5B2001:db8::1%5D:50000`. What is no address has no host."""
        _, _, place = unquote(words).partition(":")
        host, _, port = place.rpartition(":")
        return cls(_plain(host.strip("[]")), int(port)) if port.isdecimal() else cls("", 0)

    @classmethod
    def at(cls, host: str, port: int) -> Peer:
        """Give the peer of a socket."""
        return cls(_plain(host), port)

    @property
    def network(self) -> str:
        """What is counted together: an IPv4 address, or the 64 bits of IPv6 that one site hands out freely."""
        if ":" in self.host:
            return str(ipaddress.ip_network((self.host, 64), strict=False))
        return self.host or "elsewhere"


def _plain(host: str) -> str:
    """Write an address in one way only; the kernel and gRPC have others for IPv4 over an IPv6 socket."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


class Buckets:
    """A token bucket for each key, in bounded memory."""

    def __init__(self, most: int = _MOST_KEYS) -> None:
        self._most = most
        self._left: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()  # tokens left, and when

    def __len__(self) -> int:
        return len(self._left)

    def has(self, key: Hashable, rate: float, now: float) -> bool:
        """Tell whether there is a token."""
        return self._now(key, rate, now) >= 1

    def take(self, key: Hashable, rate: float, now: float, tokens: float = 1) -> None:
        """Take a token; a negative number of them gives back."""
        self._left[key] = (min(self._now(key, rate, now) - tokens, rate * _BURST_S), now)
        self._left.move_to_end(key)
        if len(self._left) > self._most:
            self._left.popitem(last=False)

    def _now(self, key: Hashable, rate: float, now: float) -> float:
        left, then = self._left.get(key, (rate * _BURST_S, now))
        return min(left + (now - then) * rate, rate * _BURST_S)


class Visit:
    """One call, while it lasts."""

    def __init__(self, bounds: Bounds, peer: Peer, digest: bytes, open_to_all: bool) -> None:
        self.suspects: list[str] = []  # whom a failed authentication would be counted against
        self.peer = peer
        self._open_to_all = open_to_all
        self._bounds = bounds
        self._digest = digest

    def good(self) -> None:
        """Note that its credentials are good, where any are needed."""
        if not self._open_to_all:
            self._bounds.remember(self.peer, self._digest)
            self._bounds.settle(self.suspects)


class Bounds:
    """Let calls in at a bounded rate."""

    def __init__(
        self, rates: Callable[[], Rates], proved: Callable[[Peer], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Keep count.

        Args:
            rates: gives the limits in force.
            proved: is told of connections that had good credentials.
            clock: seconds.
        """
        self._rates = rates
        self._proved = proved
        self._clock = clock
        self._calls, self._failures = Buckets(), Buckets()
        self._good: OrderedDict[bytes, None] = OrderedDict()  # digests of credentials that were good lately
        self._waiting: Counter[str | bytes] = Counter()
        self._inside: Counter[str | bytes] = Counter()

    @asynccontextmanager
    async def visit(self, peer: str, credential: str, open_to_all: bool = False) -> AsyncIterator[Visit]:
        """Hold a call's place while it lasts; an Unauthenticated that it ends with is counted against it.

        Args:
            peer: where it comes from, in gRPC's words.
            credential: what it brings; empty is none.
            open_to_all: it needs none.

        Raises:
            ResourceExhausted: there was no place in time.
        """
        digest = hashlib.sha256(credential.encode(errors="replace")).digest()
        visit = Visit(self, Peer.of(peer), digest, open_to_all)
        network = visit.peer.network
        known = digest in self._good
        key: str | bytes = digest if known else network
        suspects = visit.suspects = (
            [] if known or open_to_all else [network, *([credential[:_PREFIX]] if credential else [])]
        )
        await self._turn(key, suspects, network)
        self._inside[key] += 1
        try:
            yield visit
        except Unauthenticated:
            self._good.pop(digest, None)
            raise
        else:
            self.settle(suspects)
        finally:
            self._leave(self._inside, key)
            if digest in self._good:
                self.settle(suspects)

    def remember(self, peer: Peer, digest: bytes) -> None:
        """Note credentials that are good, and a connection that had them."""
        self._proved(peer)
        if digest == _NONE:
            return  # an old client without any: it is counted with the strangers of its address
        self._good[digest] = None
        self._good.move_to_end(digest)
        if len(self._good) > _MOST_KEYS:
            self._good.popitem(last=False)

    def settle(self, suspects: list[str]) -> None:
        """Give back, once, what was taken in case the authentication fails."""
        while suspects:
            self._failures.take(suspects.pop(), self._rates().failure_rate, self._clock(), -1)

    async def _turn(self, key: str | bytes, suspects: list[str], network: str) -> None:
        """Wait until there are tokens, and take them."""
        if self._inside[key] >= _MOST_AT_ONCE:
            raise ResourceExhausted(f"{_MOST_AT_ONCE} calls of {network} are under way; let some end first")
        rates, now = self._rates(), self._clock()
        deadline = now + _WAIT_S
        while not self._room(key, suspects, rates, now):
            if self._waiting[key] >= _MOST_WAITING or now >= deadline:
                calls = self._calls.has(key, rates.call_rate, now)
                what = "failed authentications" if calls else f"calls, over {rates.call_rate} a second"
                raise ResourceExhausted(f"there are too many {what} from {network}; wait some seconds")
            self._waiting[key] += 1
            try:
                await asyncio.sleep(_POLL_S)
            finally:
                self._leave(self._waiting, key)
            now = self._clock()
        self._calls.take(key, rates.call_rate, now)
        for suspect in suspects:
            self._failures.take(suspect, rates.failure_rate, now)

    def _room(self, key: str | bytes, suspects: list[str], rates: Rates, now: float) -> bool:
        return self._calls.has(key, rates.call_rate, now) and all(
            self._failures.has(suspect, rates.failure_rate, now) for suspect in suspects
        )

    def _leave(self, counts: Counter[str | bytes], key: str | bytes) -> None:
        counts[key] -= 1
        if counts[key] <= 0:
            del counts[key]
