"""ZeroMQ: PUSH/PULL and PUB/SUB of detectors' frames, and REQ/REP for the latency.

`python -m bench.programs.zeromq ADDRESS PORT` is the producer: a port for each pattern and size, from that one on.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.place import Place
from bench.programs.base import SIZES, module, needs, pings, rate_of, rates, served
from bench.traffic import Address

_PORTS = 1 + 2 * len(SIZES)
_HIGH_WATER = 64  # messages: what a detector would buffer of large frames
_PATIENCE_MS = 10_000


@contextmanager
def serve(place: Place) -> Iterator[list[Address]]:
    """Run the producer."""
    needs("zmq")
    host = place.producer.address
    with served(place, "zeromq", lambda port: module("zeromq", host, port), _PORTS) as addresses:
        yield addresses


def measure(addresses: list[Address], seconds: float) -> dict[tuple[str, str, str], float]:
    """Receive with each pattern and size."""
    import zmq  # noqa: PLC0415 - of the extra

    context = zmq.Context()
    context.linger = 0
    found: dict[tuple[str, str, str], float] = {}
    try:
        with _socket(context, zmq.REQ, addresses[0]) as request:

            def once() -> None:
                request.send(b"x" * 64)
                request.recv()

            found |= pings(once, seconds / 2)
        places = iter(addresses[1:])
        for kind, name in ((zmq.PULL, "PUSH/PULL"), (zmq.SUB, "PUB/SUB")):
            for size, label in SIZES.items():
                with _socket(context, kind, next(places)) as reader:
                    if kind == zmq.SUB:
                        reader.subscribe(b"")
                    messages, volume = rate_of(lambda reader=reader: len(reader.recv(copy=False).buffer), seconds / 2)
                    found |= rates(f"{name}, {label}", messages, volume or size)
    finally:
        context.term()
    return found


def _socket(context: Any, kind: int, address: Address) -> Any:
    reader = context.socket(kind)
    reader.rcvhwm = _HIGH_WATER
    reader.rcvtimeo = _PATIENCE_MS
    reader.connect(f"tcp://{address[0]}:{address[1]}")
    return reader


def _reply(socket: Any) -> None:
    while True:
        socket.send(socket.recv())


def _push(socket: Any, size: int) -> None:
    frame = bytes(size)
    while True:
        socket.send(frame, copy=size < 65_536)  # waits while nobody takes it


def _publish(socket: Any, size: int) -> None:
    """Publish while somebody listens: what nobody takes would be thrown away as fast as it can be."""
    frame = bytes(size)
    listeners = 0
    while True:
        if not listeners or socket.poll(0):
            listeners += 1 if socket.recv()[0] else -1
            continue
        socket.send(frame, copy=size < 65_536)


def main(host: str, first: int) -> None:
    """Be the producer."""
    import zmq  # noqa: PLC0415 - of the extra

    context = zmq.Context()

    def bound(kind: int, port: int) -> Any:
        socket = context.socket(kind)
        socket.sndhwm = _HIGH_WATER
        if kind == zmq.XPUB:
            socket.setsockopt(zmq.XPUB_NODROP, 1)  # waits for a slow reader, as the other patterns do
            socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        socket.bind(f"tcp://{host}:{port}")
        return socket

    sizes = list(SIZES)
    work = [threading.Thread(target=_reply, args=(bound(zmq.REP, first),))]
    for i, size in enumerate(sizes):
        work.append(threading.Thread(target=_push, args=(bound(zmq.PUSH, first + 1 + i), size)))
        work.append(threading.Thread(target=_publish, args=(bound(zmq.XPUB, first + 1 + len(sizes) + i), size)))
    for thread in work:
        thread.start()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
