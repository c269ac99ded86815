"""Real data through two data servers, every backend, alone and mixed."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

import pytest

from s2cs.s2ds.backends import BACKENDS
from s2cs.s2ds.backends.base import HANDSHAKE_S, IDLE_S
from s2cs.s2ds.local import LocalDataServer
from scistream.vocabulary import Endpoint, Rate
from tests.support.ports import ports
from tests.support.streams import Recorder, connect, listener, receive, send, send_last
from tests.support.tunnels import FLAVOURS, Way, config, flavour, local, open_way, tcp_sockets

GIB = 2**30
IDLE_SETTINGS = {
    "nginx": [f"proxy_timeout {IDLE_S}s;", "proxy_half_close on;"],
    "haproxy": [f"timeout {name} {IDLE_S}s" for name in ("tunnel", "client-fin", "server-fin")],
    "stunnel": [f"TIMEOUTidle = {IDLE_S}", f"TIMEOUTclose = {IDLE_S}"],
}
POOL = ThreadPoolExecutor(64)  # blocking ends of 16 channels, two directions each
ALL = pytest.mark.parametrize("backends", [(name, name) for name in FLAVOURS], ids=FLAVOURS)
MIXED = pytest.mark.parametrize(
    "backends",
    [(p, c) for p in FLAVOURS for c in FLAVOURS],
    ids=[f"producer-{p}-consumer-{c}" for p in FLAVOURS for c in FLAVOURS],
)


class Facilities:
    """A producer's and a consumer's data server."""

    def __init__(self, producer: LocalDataServer, consumer: LocalDataServer, directory: Path) -> None:
        self.producer, self.consumer, self.directory = producer, consumer, directory

    async def way(
        self,
        *targets: Endpoint,
        num_conn: int = 1,
        rate: int = 0,
        wiretap: Recorder | None = None,
    ) -> Way:
        """Open a session's way to these targets."""

        async def relay(to: Endpoint) -> Endpoint:
            assert wiretap is not None
            return wiretap.relay(to)

        return await open_way(
            self.producer, self.consumer, targets, num_conn, rate=Rate(rate), relay=relay if wiretap else None
        )


class Open(Protocol):
    """Opens two facilities."""

    async def __call__(self, address: str = "127.0.0.1", **more: object) -> Facilities: ...


@pytest.fixture
async def facilities(backends: tuple[str, str], tmp_path: Path) -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        async def opened(address: str = "127.0.0.1", **more: object) -> Facilities:
            servers = [
                await stack.enter_async_context(
                    local(config(tmp_path / side, stack.enter_context(ports(50)), flavour(backend), address, **more))
                )
                for side, backend in zip(("prod", "cons"), backends, strict=True)
            ]
            return Facilities(*servers, tmp_path)

        yield opened


async def exchange(at: Endpoint, server: socket.socket, up: int, down: int, channel: int = 0) -> None:
    """Move data through one channel in both directions at once, and compare what came with what was sent."""

    def move(connection: socket.socket, size: int, expected: int) -> tuple[str, tuple[int, str]]:
        sending = POOL.submit(send, connection, size, channel)
        received = receive(connection, expected)
        sent = sending.result()
        connection.shutdown(socket.SHUT_WR)
        assert receive(connection)[0] == 0  # nothing after it, and the end is passed on
        return sent, received

    def consumer() -> tuple[str, tuple[int, str]]:
        with connect(at) as connection:
            return move(connection, up, down)

    def producer() -> tuple[str, tuple[int, str]]:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(60)
            return move(connection, down, up)

    consuming, producing = POOL.submit(consumer), POOL.submit(producer)
    sent_up, got_down = await asyncio.wrap_future(consuming)
    sent_down, got_up = await asyncio.wrap_future(producing)
    assert got_up == (up, sent_up)
    assert got_down == (down, sent_down)


@pytest.mark.parametrize(
    ("backends", "direction"),
    [
        pytest.param((name, name), direction, id=f"{direction}-{name}", marks=() if often else pytest.mark.soak)
        for name in FLAVOURS
        for direction, often in (("to-consumer", name in BACKENDS), ("to-producer", name == "nginx"))
    ],
)
async def test_two_gib_arrive_whole(facilities: Open, direction: str) -> None:
    both = await facilities()
    up, down = (0, 2 * GIB) if direction == "to-consumer" else (2 * GIB, 0)
    with listener() as (server, target):
        way = await both.way(target)
        await exchange(way.listeners[0], server, up, down)
    assert (await both.producer.list())[0].restarts == 0


@ALL
@pytest.mark.parametrize("num_conn", [1, 4, 16])
async def test_each_channel_arrives_at_its_own_end(facilities: Open, num_conn: int) -> None:
    both = await facilities()
    async with AsyncExitStack() as stack:
        ends = [stack.enter_context(listener()) for _ in range(num_conn)]
        way = await both.way(*(target for _, target in ends), num_conn=num_conn)
        assert len(set(way.listeners)) == num_conn
        await asyncio.gather(
            *(
                exchange(at, server, 300_000 + i, 5_000_000 + i, channel=i)
                for i, (at, (server, _)) in enumerate(zip(way.listeners, ends, strict=True))
            )
        )


@MIXED
async def test_half_close_both_ways(facilities: Open, backends: tuple[str, str]) -> None:
    """One direction ends, rests, and the other still carries data: on every pair of backends."""
    both = await facilities()
    with listener() as (server, target):
        way = await both.way(target)
        for first_is_consumer in (True, False):
            consumer = await asyncio.to_thread(connect, way.listeners[0], 20)
            with consumer:
                if first_is_consumer:
                    consumer.sendall(b"x")
                producer, _ = await asyncio.to_thread(server.accept)
                with producer:
                    producer.settimeout(20)
                    first, second = (consumer, producer) if first_is_consumer else (producer, consumer)
                    first.sendall(b"question")
                    first.shutdown(socket.SHUT_WR)
                    asked = await asyncio.to_thread(receive, second)
                    assert asked[0] == len(b"question") + first_is_consumer
                    await asyncio.sleep(0.2)
                    # Stunnel loses the rest when both directions of a plain connection have ended while it waits
                    # to send, at whichever gateway: what it gets has to fit into one go.
                    size = 10_000 if "stunnel" in backends else 3_000_000
                    answer = asyncio.create_task(asyncio.to_thread(send_last, second, size))
                    assert await asyncio.to_thread(receive, first) == (size, await answer)


@MIXED
async def test_mixed_backends_carry_data_both_ways(facilities: Open) -> None:
    both = await facilities()
    with listener() as (server, target):
        way = await both.way(target, num_conn=2)
        for at in way.listeners:
            await exchange(at, server, 20_000_001, 20_000_002)
    for _ in range(100):
        statuses = [*await both.producer.list(), *await both.consumer.list()]
        negotiated = [
            (s.tls_version, s.tls_cipher) for s in statuses if not (s.backend == "nginx" and s is statuses[1])
        ]
        if all(version for version, _ in negotiated):
            break
        await asyncio.sleep(0.05)
    assert set(negotiated) == {("TLSv1.3", "TLS_AES_128_GCM_SHA256")}


@ALL
async def test_ipv6_end_to_end(facilities: Open) -> None:
    both = await facilities("::1")
    with listener("::1") as (server, target):
        way = await both.way(target, num_conn=2)
        assert {e.host for e in (*way.listeners, *way.producer.listeners)} == {"::1"}
        for at in way.listeners:
            await exchange(at, server, 1_000_000, 1_000_001)


@pytest.mark.parametrize(
    "backends",
    [pytest.param((name, name), id=name, marks=() if name in BACKENDS else pytest.mark.soak) for name in FLAVOURS],
)
async def test_a_stream_may_rest_and_stay_half_closed(facilities: Open) -> None:
    """Longer than what bounds handshakes, which must not hold for streams, and with the settings it should have."""
    both = await facilities()
    with listener() as (server, target):
        way = await both.way(target)
        for gateway in (both.producer, both.consumer):
            (status,) = await gateway.list()
            backend = BACKENDS[status.backend]
            (written,) = both.directory.glob(f"*/{status.id}/{backend.config}")
            for setting in IDLE_SETTINGS[status.backend]:
                assert re.search(rf"^ *{setting}", written.read_text(), re.MULTILINE), setting
        with await asyncio.to_thread(connect, way.listeners[0]) as consumer:
            consumer.sendall(b"begin")
            producer, _ = await asyncio.to_thread(server.accept)
            with producer:
                await asyncio.sleep(HANDSHAKE_S + 1)
                producer.sendall(b"still here")
                assert await asyncio.to_thread(consumer.recv, 100) == b"still here"
                consumer.shutdown(socket.SHUT_WR)
                assert (await asyncio.to_thread(receive, producer))[0] == 5
                await asyncio.sleep(HANDSHAKE_S + 1)
                sending = asyncio.create_task(asyncio.to_thread(send_last, producer, 10_000))
                assert await asyncio.to_thread(receive, consumer) == (10_000, await sending)


@ALL
async def test_a_silent_peer_is_asked_for_a_sign_of_life(facilities: Open, backends: tuple[str, str]) -> None:
    """On every connection, and nothing waits to fill a packet. Nginx has no say in when, where it connects itself."""
    both = await facilities()
    with listener() as (server, target):
        way = await both.way(target)
        with await asyncio.to_thread(connect, way.listeners[0]) as consumer:
            consumer.sendall(b"begin")
            producer, _ = await asyncio.to_thread(server.accept)
            with producer:
                producer.sendall(b"here")
                assert await asyncio.to_thread(consumer.recv, 100) == b"here"
                found = set()
                for gateway in (both.producer, both.consumer):
                    (status,) = await gateway.list()
                    for each in tcp_sockets(status.pids):
                        assert each.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                        assert each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                        names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
                        found.add(tuple(each.getsockopt(socket.IPPROTO_TCP, name) for name in names))
    assert (60, 15, 8) in found
    assert len(found) == (2 if "nginx" in backends[0] else 1)


@ALL
async def test_the_wan_sees_nothing_of_the_payload(facilities: Open) -> None:
    both = await facilities()
    secret = os.urandom(64)
    wiretap = Recorder()
    try:
        with listener() as (server, target):
            way = await both.way(target, wiretap=wiretap)
            with await asyncio.to_thread(connect, way.listeners[0]) as consumer:
                consumer.sendall(secret * 1000)
                producer, _ = await asyncio.to_thread(server.accept)
                with producer:
                    producer.sendall(secret[::-1] * 1000)
                    for end in (producer, consumer):
                        end.shutdown(socket.SHUT_WR)
                        assert (await asyncio.to_thread(receive, consumer if end is producer else producer))[
                            0
                        ] == 64_000
    finally:
        wiretap.close()
    seen = bytes(wiretap.seen)
    assert len(seen) > 128_000
    for piece in (secret[:16], secret[::-1][:16]):
        assert piece not in seen
