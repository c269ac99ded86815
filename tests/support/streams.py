"""Applications that move much data, and a WAN that remembers what crossed it."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from scistream.vocabulary import Endpoint

BLOCK = 4 * 2**20
_random = os.urandom(BLOCK)


def blocks(size: int, channel: int = 0) -> Iterator[memoryview]:
    """Give `size` bytes in blocks that are all different, and different for each channel."""
    buffer = bytearray(_random)
    view = memoryview(buffer)
    for number in range(-(-size // BLOCK)):
        buffer[:16] = number.to_bytes(8, "big") + channel.to_bytes(8, "big")
        yield view[: min(BLOCK, size - number * BLOCK)]


def send(connection: socket.socket, size: int, channel: int = 0) -> str:
    """Send that much, and give the SHA-256 of it."""
    digest = hashlib.sha256()
    for block in blocks(size, channel):
        connection.sendall(block)
        digest.update(block)
    return digest.hexdigest()


def receive(connection: socket.socket, most: int | None = None) -> tuple[int, str]:
    """Take all until the direction ends, or that much; give its size and SHA-256."""
    digest, size = hashlib.sha256(), 0
    buffer = bytearray(BLOCK)
    view = memoryview(buffer)
    while size != most and (count := connection.recv_into(buffer)):
        digest.update(view[:count])
        size += count
    return size, digest.hexdigest()


def send_last(connection: socket.socket, size: int) -> str:
    """Send that much and end the direction."""
    digest = send(connection, size)
    connection.shutdown(socket.SHUT_WR)
    return digest


def connect(to: Endpoint, timeout: float = 60) -> socket.socket:
    """Connect as ConsApp does."""
    return socket.create_connection((to.host, to.port), timeout)


@contextmanager
def listener(address: str = "127.0.0.1") -> Iterator[tuple[socket.socket, Endpoint]]:
    """Listen as ProdApp does."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        server.settimeout(60)
        yield server, Endpoint(*server.getsockname()[:2])


class Recorder:
    """Relay TCP and remember every byte, as a wiretap on the WAN would."""

    def __init__(self) -> None:
        self.seen = bytearray()
        self._pool = ThreadPoolExecutor()
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()

    def relay(self, to: Endpoint) -> Endpoint:
        """Listen, and pass each connection on."""
        server = socket.create_server(("127.0.0.1", 0))
        self._sockets.append(server)
        self._pool.submit(self._accept, server, to)
        return Endpoint(*server.getsockname())

    def close(self) -> None:
        """End all connections."""
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._pool.shutdown()

    def _accept(self, server: socket.socket, to: Endpoint) -> None:
        with suppress(OSError):
            while True:
                near, _ = server.accept()
                far = connect(to)
                self._sockets += [near, far]
                self._pool.submit(self._pump, near, far)
                self._pool.submit(self._pump, far, near)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                with self._lock:
                    self.seen += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


class Stream(threading.Thread):
    """Send blocks through a session and see that the same come back, until told to end; then see the end come."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(daemon=True)
        self.connection = connection
        self.ending = threading.Event()
        self.blocks = 0
        self.fault: BaseException | None = None

    def run(self) -> None:
        try:
            with self.connection:
                self.connection.settimeout(120)
                while not self.ending.is_set():
                    block = secrets.token_bytes(16384)
                    self.connection.sendall(block)
                    assert self.connection.recv(len(block), socket.MSG_WAITALL) == block
                    self.blocks += 1
                    time.sleep(0.02)
                self.connection.shutdown(socket.SHUT_WR)
                assert self.connection.recv(1) == b""
        except BaseException as error:
            self.fault = error


def goes_on(stream: Stream) -> None:
    """See that blocks come back, now."""
    then, deadline = stream.blocks, time.monotonic() + 60
    while stream.blocks <= then + 5:
        assert stream.fault is None, stream.fault
        assert time.monotonic() < deadline, "the stream stands still"
        time.sleep(0.02)
