"""Bytes that a session has moved: equal to what the applications sent, for every backend, to the end."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from s2cs.s2ds.contract import Traffic
from s2cs.s2ds.local import LocalDataServer
from scistream.vocabulary import Endpoint
from tests.support.ports import ports
from tests.support.tunnels import FLAVOURS, Way, application, config, flavour, hang_up, local, open_way

_ASK = struct.Struct(">QQ?")  # bytes that come after this, bytes wanted back, who closes first
_PIECE = bytes(64 * 1024)


async def _produce(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """ProdApp: takes so much, sends so much, as often as it is asked."""
    while True:
        try:
            up, down, ends = _ASK.unpack(await reader.readexactly(_ASK.size))
        except asyncio.IncompleteReadError:
            return
        while up:
            up -= len(await reader.read(min(up, len(_PIECE))))
        for at in range(0, down, len(_PIECE)):
            writer.write(_PIECE[: min(len(_PIECE), down - at)])
            await writer.drain()
        if ends:
            return


@dataclass
class Sent:
    """What the applications have sent."""

    up: int = 0
    down: int = 0
    connections: int = 0


class Consumer:
    """ConsApp's one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: Sent) -> None:
        self.reader, self.writer, self.sent = reader, writer, sent

    async def move(self, up: int, down: int, ends: bool = False) -> None:
        """Send so much and take so much."""
        self.writer.write(_ASK.pack(up, down, ends))
        for at in range(0, up, len(_PIECE)):
            self.writer.write(_PIECE[: min(len(_PIECE), up - at)])
            await self.writer.drain()
        await self.reader.readexactly(down)
        self.sent.up += _ASK.size + up
        self.sent.down += down
        if ends:
            assert not await self.reader.read()


@asynccontextmanager
async def consumer(to: Endpoint, sent: Sent) -> AsyncIterator[Consumer]:
    """Connect as ConsApp does."""
    reader, writer = await asyncio.open_connection(to.host, to.port)
    sent.connections += 1
    try:
        yield Consumer(reader, writer, sent)
    finally:
        await hang_up(writer)


async def shorts(way: Way, sent: Sent, count: int) -> None:
    """Make short connections, some at once; either side ends them."""
    places = asyncio.Semaphore(8)

    async def one(number: int) -> None:
        async with places, consumer(way.listeners[number % len(way.listeners)], sent) as connection:
            await connection.move(random.randrange(3000), random.randrange(3000), ends=bool(number % 2))

    await asyncio.gather(*(one(number) for number in range(count)))


async def until(server: LocalDataServer, id: str, good: Callable[[Traffic], bool]) -> Traffic:
    """Ask until it is told, for some seconds."""
    for _ in range(60):
        (status,) = await server.list(id)
        if good(status.traffic):
            break
        await asyncio.sleep(0.2)
    return status.traffic


def told(traffic: Traffic | None) -> tuple[int, int, int]:
    assert traffic is not None
    return traffic.from_consumer, traffic.from_producer, traffic.total


async def exact(directory: Path, name: str, count: int, long: int, long_bytes: int) -> None:
    """Compare what both gateways say with what was sent: while streams run, after a restart, at the end."""
    kind = flavour(name)
    with ports() as first, ports() as second:
        settings = config(directory / "p", first, kind), config(directory / "c", second, kind)
        async with application(_produce) as target, local(settings[1]) as consuming:
            producing = LocalDataServer(settings[0])
            await producing.open()
            try:
                way, sent = await open_way(producing, consuming, (target,), 4), Sent()
                ids = f"{way.session.uid}-PROD", f"{way.session.uid}-CONS"
                streams = [consumer(way.listeners[n % 4], sent) for n in range(long)]
                running = [await stream.__aenter__() for stream in streams]
                await asyncio.gather(*(each.move(long_bytes, long_bytes // 3) for each in running))
                await shorts(way, sent, count)
                expected = (sent.up, sent.down, sent.connections)
                for server, id in zip((producing, consuming), ids, strict=True):
                    traffic = await until(server, id, lambda t: (told(t), t.open) == (expected, long))
                    assert (told(traffic), traffic.open) == (expected, long)
                    assert traffic.lan.rtt_us
                    assert traffic.wan.rtt_us
                    assert min(traffic.lan.window, traffic.wan.window) >= long * 1000

                producing.let_go()  # as kill -9 of the control server would
                await asyncio.gather(*(each.move(1000, 2000) for each in running))
                await streams.pop().__aexit__(None, None, None)
                await shorts(way, sent, count // 10)
                producing = LocalDataServer(settings[0])
                await producing.open()
                expected = (sent.up, sent.down, sent.connections)
                for server, id in zip((producing, consuming), ids, strict=True):
                    assert told(await until(server, id, lambda t: told(t) == expected)) == expected

                await running[0].move(5000, 5000)
                last = [await producing.stop(ids[0]), await consuming.stop(ids[1])]
                assert [told(each) for each in last] == [(sent.up, sent.down, sent.connections)] * 2
                assert await producing.stop(ids[0]) is None
                for stream in streams:
                    await stream.__aexit__(None, None, None)
            finally:
                await producing.close()


@pytest.mark.parametrize("name", FLAVOURS)
async def test_what_was_moved_is_told_to_the_byte(tmp_path: Path, name: str) -> None:
    await exact(tmp_path, name, count=40, long=3, long_bytes=1_000_001)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", FLAVOURS)
async def test_a_thousand_short_and_twenty_long_connections(tmp_path: Path, name: str) -> None:
    await exact(tmp_path, name, count=1000, long=20, long_bytes=50_000_003)
