"""EPICS pvAccess: get and put of a scalar, and a monitor of waveforms, over TCP with a name server's address.

`python -m bench.programs.epics ADDRESS PORT` is the server.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.place import Place
from bench.programs.base import SIZES, module, needs, pings, rates, served
from bench.traffic import Address


@contextmanager
def serve(place: Place) -> Iterator[list[Address]]:
    """Run the server."""
    needs("p4p")
    host = place.producer.address
    with served(place, "epics", lambda port: module("epics", host, port)) as addresses:
        yield addresses


def measure(addresses: list[Address], seconds: float) -> dict[tuple[str, str, str], float]:
    """Get a scalar, and follow waveforms."""
    from p4p.client.thread import Context  # noqa: PLC0415 - of the extra

    host, port = addresses[0]
    conf = {
        "EPICS_PVA_NAME_SERVERS": f"{host}:{port}",
        "EPICS_PVA_ADDR_LIST": "",
        "EPICS_PVA_AUTO_ADDR_LIST": "NO",
    }
    with Context("pva", conf=conf, useenv=False, nt=False) as context:
        context.get("bench:scalar", timeout=10)
        found = pings(lambda: context.get("bench:scalar", timeout=10), seconds / 2)
        for size, label in SIZES.items():
            found |= rates(f"monitor, {label}", *_monitored(context, size, seconds / 2))
    return found


def _monitored(context: Any, size: int, seconds: float) -> tuple[float, float]:
    """Follow a waveform that is posted anew as soon as the last one was taken; updates and bytes per second."""
    updates: queue.Queue[int] = queue.Queue()
    subscription = context.monitor(
        f"bench:wave{size}", lambda value: updates.put(len(value.value)), request="record[queueSize=8]field(value)"
    )
    try:
        updates.get(timeout=10)
        begin = time.perf_counter()
        count = volume = 0
        while time.perf_counter() < begin + seconds:
            volume += updates.get(timeout=10)
            count += 1
        elapsed = time.perf_counter() - begin
    finally:
        subscription.close()
    return count / elapsed, volume / elapsed


def main(host: str, port: int) -> None:
    """Be the server."""
    import numpy as np  # noqa: PLC0415 - of the extra
    from p4p.nt import NTScalar  # noqa: PLC0415
    from p4p.server import Server  # noqa: PLC0415
    from p4p.server.thread import SharedPV  # noqa: PLC0415

    class Watched:
        """Say whether somebody follows a waveform."""

        def __init__(self) -> None:
            self.there = threading.Event()

        def onFirstConnect(self, pv: Any) -> None:
            self.there.set()

        def onLastDisconnect(self, pv: Any) -> None:
            self.there.clear()

    def post(pv: Any, watched: Watched, body: Any, pause: float) -> None:
        while True:
            watched.there.wait()
            pv.post(body)
            time.sleep(pause)

    provider = {"bench:scalar": SharedPV(nt=NTScalar("d"), initial=1.0)}
    for size in SIZES:
        body, watched = np.zeros(size, np.uint8), Watched()
        provider[f"bench:wave{size}"] = pv = SharedPV(nt=NTScalar("aB"), initial=body, handler=watched)
        pause = max(1e-5, size / 2e9)  # faster than it can be taken: the queue keeps the newest
        threading.Thread(target=post, args=(pv, watched, body, pause), daemon=True).start()
    conf = {
        "EPICS_PVAS_INTF_ADDR_LIST": host,
        "EPICS_PVAS_SERVER_PORT": str(port),
        "EPICS_PVAS_BROADCAST_PORT": str(port + 1),
        "EPICS_PVAS_AUTO_BEACON_ADDR_LIST": "NO",
    }
    with Server(providers=[provider], conf=conf, useenv=False):
        threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
