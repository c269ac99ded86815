"""A producer that sends as fast as it can or sends back, and a consumer that counts what it gets.

`python -m bench.traffic ADDRESS` is the producer: it prints its port. The first 8 bytes of a connection say
what is wanted: a number of bytes to send, or, with the top bit set, to have everything sent back.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.place import Node, cpu_seconds, pss_bytes, running

_BLOCK = bytes(1 << 20)
_ECHO = 1 << 63
_ENDLESS = 1 << 62
Address = tuple[str, int]


def _feed(connection: socket.socket) -> None:
    with connection:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while asked := connection.recv(8, socket.MSG_WAITALL):
                left = int.from_bytes(asked, "big")
                if left & _ECHO:
                    while data := connection.recv(65536):
                        connection.sendall(data)
                    return
                while left:
                    left -= connection.send(_BLOCK if left >= len(_BLOCK) else _BLOCK[:left])
        except OSError:
            return


def serve(address: str) -> None:
    """Be a producer until somebody ends this process."""
    with socket.create_server((address, 0), backlog=1024) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            connection, _ = server.accept()
            threading.Thread(target=_feed, args=(connection,), daemon=True).start()


@contextmanager
def producer(node: Node, directory: Path) -> Iterator[int]:
    """Run a producer on a node; its port."""
    log = directory / "producer.log"
    with running(node, [sys.executable, "-m", "bench.traffic", node.address], log) as process:
        deadline = time.monotonic() + 20
        while not (said := log.read_text()).endswith("\n"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the producer does not start: {said}")
            time.sleep(0.01)
        yield int(said)


def connect(address: Address, timeout_s: float = 30.0) -> socket.socket:
    """Connect, without delay for small messages."""
    connection = socket.create_connection(address, timeout_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def ask(connection: socket.socket, count: int) -> None:
    """Ask for bytes, and read them."""
    connection.sendall(count.to_bytes(8, "big"))
    buffer = bytearray(1 << 20)
    while count:
        got = connection.recv_into(buffer, min(count, len(buffer)))
        if not got:
            raise ConnectionError("the stream ended early")
        count -= got


@dataclass(frozen=True)
class Transfer:
    """What went through in a window of time."""

    gbps: float
    cpu_s_per_gb: tuple[float, ...] = ()  # of each group of processes
    pss_bytes: tuple[int, ...] = ()  # of each group, while it streams


def transfer(
    addresses: Iterable[Address],
    groups: Callable[[], Iterable[Iterable[int]]],
    seconds: float,
    warm_up_s: float = 0.2,
) -> Transfer:
    """Stream over all connections at once, and look at a window of time after the warm-up.

    Args:
        addresses: where each connection goes to.
        groups: gives the processes that are looked at, asked when all connections are open: some fork for each.
        seconds: the window.
        warm_up_s: for slow start.
    """
    connections = [connect(address) for address in addresses]
    counts = [0] * len(connections)

    def read(i: int) -> None:
        buffer = bytearray(1 << 20)
        try:
            while got := connections[i].recv_into(buffer):
                counts[i] += got
        except OSError:
            return

    threads = [threading.Thread(target=read, args=(i,)) for i in range(len(connections))]
    try:
        for connection in connections:
            ask(connection, 1)  # handshakes are no part of the rate
            connection.sendall(_ENDLESS.to_bytes(8, "big"))
        for thread in threads:
            thread.start()
        time.sleep(warm_up_s)
        processes = [list(group) for group in groups()]
        cpu, begin, received = [cpu_seconds(group) for group in processes], time.perf_counter(), sum(counts)
        time.sleep(seconds)
        received, elapsed = sum(counts) - received, time.perf_counter() - begin
        used = [cpu_seconds(group) - before for group, before in zip(processes, cpu, strict=True)]
        memory = tuple(pss_bytes(group) for group in processes)
    finally:
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in threads:
            if thread.ident:
                thread.join()
        for connection in connections:
            connection.close()
    gigabytes = max(received, 1) / 1e9
    return Transfer(received * 8 / elapsed / 1e9, tuple(each / gigabytes for each in used), memory)


def round_trips(address: Address, count: int, size: int = 64, most_s: float = 5.0, warm_up: int = 20) -> list[float]:
    """Send a message and wait for it to come back, again and again; seconds of each, of one at least.

    Args:
        address: of what sends it back.
        count: how often.
        size: of the message, in bytes.
        most_s: after so many seconds fewer have to do.
        warm_up: how many come before, and do not count.
    """
    times = []
    message = bytes(size)
    with connect(address) as connection:
        connection.sendall(_ECHO.to_bytes(8, "big"))
        end = time.perf_counter() + most_s
        for i in range(count + warm_up):
            begin = time.perf_counter()
            connection.sendall(message)
            if len(connection.recv(size, socket.MSG_WAITALL)) != size:
                raise ConnectionError("the stream ended early")
            now = time.perf_counter()
            if i >= warm_up:
                times.append(now - begin)
            if times and now > end:
                break
    return times


def first_bytes(address: Address, count: int) -> list[float]:
    """Connect, ask for one byte and get it, again and again; seconds of each."""

    def once() -> None:
        with connect(address) as connection:
            ask(connection, 1)

    return [timed(once) for _ in range(count + 1)][1:]


def timed(work: Callable[[], object]) -> float:
    """Do something; seconds that it took."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


if __name__ == "__main__":
    try:
        serve(sys.argv[1])
    except KeyboardInterrupt:
        sys.exit(0)
