"""What a set-up cannot be faster than, with these proxies: each part alone, with nothing around it."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from bench.place import Place
from bench.stats import summary
from bench.traffic import Address
from bench.ways import usable_backends
from s2cs.s2ds.contract import Bridge, TunnelSpec
from s2cs.s2ds.local import Interface, LocalConfig, LocalDataServer
from scistream.vocabulary import Endpoint, PortRange, Role, Uid
from scistream.x509 import PrivateKey, SessionCA
from tests.support.ports import BLOCK, port_block


def measure(place: Place, target: Address, runs: int) -> dict[str, Any]:
    """Time parts alone; milliseconds.

    Returns:
        Python-free costs (a shell's and a proxy's start until it serves, a TCP connection) and those of our own
        parts without gRPC (keys and certificates, `reserve`, `start` of a data server on this node).
    """
    found = {
        "a shell that does nothing": summary([_ms(_shell) for _ in range(runs)]),
        "TCP connection": summary([_ms(lambda: socket.create_connection(target).close()) for _ in range(runs)]),
        "session CA, two keys, two leaves": summary([_ms(_certificates) for _ in range(runs)]),
    }
    for backend in usable_backends():
        spans = asyncio.run(_data_server(place, backend, Endpoint(*target), runs))
        for verb, values in spans.items():
            found[f"{backend}: {verb}"] = summary(values)
    return found


def _ms(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) * 1000


def _shell() -> None:
    subprocess.run(["/bin/sh", "-c", ":"], check=True)


def _certificates() -> None:
    uid = Uid("floor")
    ca = SessionCA.create(uid, datetime.now(UTC) + timedelta(hours=1))
    for role in Role:
        ca.issue(PrivateKey.generate().csr(uid, role), role)


async def _data_server(place: Place, backend: str, target: Endpoint, runs: int) -> dict[str, list[float]]:
    """Time the verbs of a data server in this process, with real proxies."""
    first = port_block()
    here = Interface("127.0.0.1")
    directory = place.directory / backend
    server = LocalDataServer(LocalConfig(directory, here, here, PortRange(first, first + BLOCK - 1), grace_s=2.0))
    await server.open()
    spans: dict[str, list[float]] = {"reserve": [], "start": [], "stop": []}
    ca = SessionCA.create(Uid("floor"), datetime.now(UTC) + timedelta(hours=1))

    async def timed(verb: str, work: Awaitable[Any]) -> Any:
        begin = time.perf_counter()
        answer = await work
        spans[verb].append((time.perf_counter() - begin) * 1000)
        return answer

    try:
        for i in range(runs):
            id = f"floor-{i}"
            reserved = await timed("reserve", server.reserve(TunnelSpec(id, Uid("floor"), Role.PROD, 1, backend)))
            await timed("start", server.start(id, Bridge((target,), ca.issue(reserved.csr, Role.PROD))))
            await timed("stop", server.stop(id))
    finally:
        await server.close()
        shutil.rmtree(directory, ignore_errors=True)
    return spans
