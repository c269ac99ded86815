"""A short stream of real data through two gateways, to see how fast the way is before a beam time."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from s2uc.frames import Amount, BadFrame, Producer, RoundTrips, Tally, check
from s2uc.gateway import Gateway
from s2uc.saga import silent
from s2uc.session import Session, request
from s2uc.side import Report
from scistream.errors import InvalidArgument, Unavailable
from scistream.vocabulary import Rate

_ROUND_TRIPS = 200
_LEASE_S = 300  # should this program be killed, nothing is left for longer


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the way did. Times of round trips are milliseconds."""

    uid: str
    producer: str
    consumer: str
    backends: tuple[str, str]
    num_conn: int
    setup_s: float
    seconds: float
    bytes: int
    gbit_per_s: float
    frames: int
    round_trip_ms: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Give what `s2uc test --json` prints."""
        return asdict(self)

    def __str__(self) -> str:
        trip = self.round_trip_ms
        rows = [
            ("way", f"{self.producer} ({self.backends[0]}) to {self.consumer} ({self.backends[1]})"),
            ("set-up", f"{self.setup_s * 1000:.0f} ms from REQ until the way was open"),
            ("throughput", f"{self.gbit_per_s:.2f} Gb/s: {self.bytes / 1e9:.2f} GB in {self.seconds:.2f} s"),
            ("connections", str(self.num_conn)),
            ("round trip", f"{trip['median']} ms ({trip['min']} to {trip['max']}), 64 bytes"),
            ("frames checked", str(self.frames)),
        ]
        return "\n".join(f"{name:<15} {text}" for name, text in rows)


async def trial(
    producer: Gateway,
    consumer: Gateway,
    *,
    host: str = "",
    num_conn: int = 1,
    seconds: float = 5.0,
    rate: Rate | str = "0",
    backend: str = "",
    timeout: float = 30.0,
    on_step: Report = silent,
) -> Outcome:
    """Open a session, stream detector frames from this program to this program through it, and release it.

    Args:
        producer: the producer's gateway; it has to reach this computer.
        consumer: the consumer's; this computer has to reach where it listens for applications.
        host: this computer's address that the producer's gateway connects to; empty is the one that leads there.
        num_conn: connections.
        seconds: how long to stream.
        rate: the session's; 0 is no limit.
        backend: as for a request.
        timeout: seconds for each call.
        on_step: called with each step.

    Raises:
        ScistreamError: what did not go; nothing is left of the session.
    """
    trips = RoundTrips(_ROUND_TRIPS)
    frames = _listen(num_conn, Amount(seconds=seconds), host or await own_address(producer))
    try:
        begin = time.monotonic()
        session = await request(
            producer,
            consumer,
            prod_listeners=frames.listeners,
            num_conn=num_conn,
            rate=rate,
            lease_s=_LEASE_S + round(seconds),
            backend=backend,
            labels={"purpose": "test"},
            timeout=timeout,
            on_step=on_step,
        )
        setup_s = time.monotonic() - begin
        async with session:
            tallies = await stream(frames, session, num_conn, trips)
    finally:
        frames.close()
    taken = max(tally.end for tally in tallies) - min(tally.begin for tally in tallies)
    size = sum(tally.bytes for tally in tallies)
    return Outcome(
        uid=session.uid,
        producer=producer.name,
        consumer=consumer.name,
        backends=(session.producer.backend, session.consumer.backend),
        num_conn=num_conn,
        setup_s=round(setup_s, 4),
        seconds=round(taken, 4),
        bytes=size,
        gbit_per_s=gbit_per_s(size, taken),
        frames=sum(tally.frames for tally in tallies),
        round_trip_ms={
            name: round(of(trips.seconds) * 1000, 3) for name, of in (("min", min), ("median", median), ("max", max))
        },
    )


def gbit_per_s(size: int, seconds: float) -> float:
    """Give bytes in a time as Gb/s."""
    return round(size * 8 / 1e9 / max(seconds, 1e-9), 3)


async def own_address(gateway: Gateway) -> str:
    """Find this computer's address on the way to a gateway. Nothing is sent.

    Raises:
        Unavailable: no way leads there.
    """
    endpoint = gateway.endpoint
    try:
        found = await asyncio.get_running_loop().getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as sock:
            sock.connect(address)
            return str(sock.getsockname()[0])
    except OSError as error:
        raise Unavailable(
            f"no way leads to gateway {gateway}: {error.strerror}; name your address with --host"
        ) from None


def _listen(num_conn: int, amount: Amount, host: str) -> Producer:
    try:
        return Producer(num_conn, amount, host, _ROUND_TRIPS)
    except OSError as error:
        raise InvalidArgument(
            f"this computer cannot listen on {host}: {error.strerror}; name one of its addresses"
        ) from None


async def stream(producer: Producer, session: Session, num_conn: int, trips: RoundTrips | None = None) -> list[Tally]:
    """Run all channels, both ends of each in a thread of its own.

    Raises:
        BadFrame: a frame is missing or damaged, or the stream broke.
    """
    loop = asyncio.get_running_loop()
    pool = ThreadPoolExecutor(2 * num_conn, thread_name_prefix="frames")
    sending = [loop.run_in_executor(pool, producer.serve, i) for i in range(num_conn)]
    checking = [
        loop.run_in_executor(
            pool, check, session.listeners[i % len(session.listeners)], i, num_conn, None if i else trips
        )
        for i in range(num_conn)
    ]
    try:
        tallies = await asyncio.gather(*checking)
        sent = await asyncio.gather(*sending)
    except OSError as error:
        raise BadFrame(f"the stream broke: {error}") from None
    finally:
        producer.close()
        pool.shutdown(wait=False)
        _hush([*checking, *sending])
    for channel, (count, tally) in enumerate(zip(sent, tallies, strict=True)):
        if count != tally.frames:
            raise BadFrame(f"channel {channel}: {count} frames were sent and {tally.frames} came")
    return tallies


def _hush(futures: Sequence[asyncio.Future[Any]]) -> None:
    """Let the faults that follow from the first one be."""
    for future in futures:
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
