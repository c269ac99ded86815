"""A session's rate: what the kernel was told of each socket, and what then comes through."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from s2cs.s2ds.contract import Change, DataServer
from scistream.vocabulary import Endpoint, PortRange, Rate, Role
from tests.support.ports import ports
from tests.support.streams import connect, listener
from tests.support.tunnels import (
    FLAVOURS,
    Flavour,
    Session,
    answering,
    application,
    calling,
    config,
    flavour,
    local,
    open_way,
    tcp_sockets,
)

SO_MAX_PACING_RATE = 47
UNLIMITED = 2**64 - 1
RATE = 20_000_000
SETTLED_S, MEASURED_S = 0.5, 1.0
BUFFER = 128 * 1024  # of the measuring end, so that a pause of this machine piles up little that comes at once after it
BLOCK = bytes(256 * 1024)


@pytest.fixture
def range_() -> Iterator[PortRange]:
    with ports(50) as held:
        yield held


@pytest.fixture(params=FLAVOURS)
def kind(request: pytest.FixtureRequest) -> Flavour:
    return flavour(request.param)


def paces(pids: tuple[int, ...]) -> dict[str, set[int]]:
    """Ask the kernel what it holds the TCP sockets of processes to, in bytes per second."""
    found: dict[str, set[int]] = {"listening": set(), "connected": set()}
    for each in tcp_sockets(pids):
        listens = each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        (pace,) = struct.unpack("@L", each.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 8))
        found["listening" if listens else "connected"].add(pace)
    return found


async def test_each_connection_keeps_its_share_after_a_death_and_a_restart(
    kind: Flavour, tmp_path: Path, range_: PortRange
) -> None:
    """Nginx limits by itself what it sends on connections that it opens."""
    session, settings, share = Session(), config(tmp_path, range_, kind), 333_334
    connected = {share, UNLIMITED} if kind.backend == "nginx" else {share}

    async def paced(server: DataServer, at: Endpoint) -> None:
        async with calling(at, session) as caller:
            assert await caller.ask(b"1") == b"app 1"
            for _ in range(100):
                (status,) = await server.list()
                if (found := paces(status.pids))["connected"] == connected:
                    break
                await asyncio.sleep(0.05)
            assert found == {"listening": {share}, "connected": connected}

    async with application(answering(b"app")) as target:
        async with local(settings) as server:
            spec = session.spec(Role.PROD, 3, rate=Rate(1_000_000))
            reserved = await server.reserve(spec)
            await server.start(spec.id, session.bridge(reserved, Role.PROD, target))
            await paced(server, reserved.listeners[0])
            watch = server.watch()
            os.kill((await server.list())[0].pids[0], signal.SIGKILL)
            assert [(await asyncio.wait_for(anext(watch), 10)).change for _ in "12"] == [Change.EXITED, Change.RUNNING]
            await paced(server, reserved.listeners[0])
            server.let_go()
        async with local(settings) as server:
            await paced(server, reserved.listeners[0])


async def test_without_a_rate_no_socket_is_held_back(kind: Flavour, tmp_path: Path, range_: PortRange) -> None:
    session = Session()
    async with application(answering(b"app")) as target, local(config(tmp_path, range_, kind)) as server:
        spec = session.spec(Role.PROD)
        reserved = await server.reserve(spec)
        await server.start(spec.id, session.bridge(reserved, Role.PROD, target))
        async with calling(reserved.listeners[0], session) as caller:
            assert await caller.ask(b"1") == b"app 1"
            await asyncio.sleep(0.3)
            (status,) = await server.list()
            assert paces(status.pids) == {"listening": {UNLIMITED}, "connected": {UNLIMITED}}


def pour(connection: socket.socket) -> None:
    """Send as much as goes, until the connection ends."""
    with suppress(OSError):
        while True:
            connection.sendall(BLOCK)


def measure(connection: socket.socket) -> float:
    """Take what comes; give its rate in bytes per second after the first moments."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    buffer = bytearray(len(BLOCK))
    begin = now = time.monotonic()
    since, size = None, 0
    while now - begin < SETTLED_S + MEASURED_S:
        size += connection.recv_into(buffer)
        now = time.monotonic()
        if since is None and now - begin > SETTLED_S:
            since, size = now, 0
    assert since is not None
    return size / (now - since)


@pytest.mark.parametrize("num_conn", [1, 4])
async def test_the_rate_is_kept_in_each_direction(
    kind: Flavour, num_conn: int, tmp_path: Path, range_: PortRange
) -> None:
    """Within 5% above; how far below depends on what else runs on this machine. Without a limit it is 20 times that."""
    pool = ThreadPoolExecutor(4 * num_conn)
    async with AsyncExitStack() as stack:
        halves = (PortRange(range_.first, range_.first + 24), PortRange(range_.first + 25, range_.last))
        producer, consumer = [
            await stack.enter_async_context(local(config(tmp_path / str(half), half, kind))) for half in halves
        ]
        server, target = stack.enter_context(listener())
        way = await open_way(producer, consumer, (target,), num_conn, rate=Rate(RATE))
        pairs = []
        for at in way.listeners:
            near = stack.enter_context(connect(at))
            pairs.append((near, stack.enter_context((await asyncio.to_thread(server.accept))[0])))
        for each in (end for pair in pairs for end in pair):
            pool.submit(pour, each)
        measured = [
            [asyncio.wrap_future(pool.submit(measure, end)) for end in side] for side in zip(*pairs, strict=True)
        ]
        to_consumer, to_producer = [sum(await asyncio.gather(*side)) for side in measured]
    pool.shutdown()
    assert 0.5 * RATE < to_consumer < 1.05 * RATE
    assert 0.5 * RATE < to_producer < 1.05 * RATE
