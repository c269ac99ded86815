"""A producer that sends as fast as it can, a consumer that reads as fast as it can."""

from __future__ import annotations

import multiprocessing
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import psutil

_BLOCK = bytes(1 << 20)


def _serve(pipe: Connection) -> None:
    """Send to each connection as many bytes as its first 8 bytes ask for."""
    server = socket.create_server(("127.0.0.1", 0), backlog=64)
    pipe.send(server.getsockname()[1])

    def feed(connection: socket.socket) -> None:
        with connection:
            try:
                while asked := connection.recv(8, socket.MSG_WAITALL):
                    left = int.from_bytes(asked, "big")
                    while left:
                        left -= connection.send(_BLOCK[: min(left, len(_BLOCK))])
            except OSError:
                return

    while True:
        connection, _ = server.accept()
        threading.Thread(target=feed, args=(connection,), daemon=True).start()


@contextmanager
def producer() -> Iterator[int]:
    """Run a producer in a process of its own; its port."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()  # so that its death is noticed here
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()


def ask(connection: socket.socket, count: int) -> None:
    """Ask for bytes, and read them."""
    connection.sendall(count.to_bytes(8, "big"))
    buffer = bytearray(1 << 20)
    while count:
        got = connection.recv_into(buffer, min(count, len(buffer)))
        if not got:
            raise ConnectionError("the stream ended early")
        count -= got


def receive(ports: list[int], total: int) -> float:
    """Read `total` bytes over one connection a port, all at once; seconds."""
    connections = [socket.create_connection(("127.0.0.1", port), 30) for port in ports]
    for connection in connections:
        ask(connection, 1)  # handshakes are not part of the rate
    threads = [threading.Thread(target=ask, args=(c, total // len(connections))) for c in connections]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    for connection in connections:
        connection.close()
    return seconds


def cpu_seconds(pids: list[int]) -> float:
    """CPU time that these processes and their children have used."""
    processes = {each for pid in pids for each in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))}
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))
