"""UDP applications at the two ends of a session."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from scistream.vocabulary import Endpoint


def _socket(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)


class UdpEcho:
    """A producer that sends each datagram back to where it came from, and keeps what it got."""

    def __init__(self, port: int = 0, host: str = "127.0.0.1") -> None:
        self._socket = _socket(host)
        self._socket.bind((host, port))
        self._socket.settimeout(0.1)
        self.endpoint = Endpoint(host, self._socket.getsockname()[1])
        self.got: list[bytes] = []
        self.peers: set[tuple[str, int]] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._ended.is_set():
            try:
                data, peer = self._socket.recvfrom(65536)
                self.got.append(data)
                self.peers.add(peer)
                self._socket.sendto(data, peer)
            except OSError:  # nothing came, or an earlier answer found nobody
                continue

    def send(self, data: bytes, peer: tuple[str, int]) -> None:
        """Send without being asked."""
        self._socket.sendto(data, peer)

    def close(self) -> None:
        """End."""
        self._ended.set()
        self._thread.join(10)
        self._socket.close()


@contextmanager
def udp_echo(port: int = 0, host: str = "127.0.0.1") -> Iterator[UdpEcho]:
    """Run an echoing producer."""
    server = UdpEcho(port, host)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def flow(to: Endpoint, source: str = "127.0.0.1") -> Iterator[socket.socket]:
    """Be a consumer: a socket that sends to one listener, and hears it alone."""
    with _socket(source) as made:
        made.bind((source, 0))
        made.connect((to.host, to.port))
        made.settimeout(0.5)
        yield made


def ask(consumer: socket.socket, data: bytes, patience_s: float = 20) -> bytes:
    """Send a datagram until an answer comes, as applications of UDP do; what is older than that does not count."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        try:
            consumer.send(data)
            while (answer := consumer.recv(65536)) != data:
                pass
            return answer
        except OSError:
            continue
    raise AssertionError(f"{len(data)} bytes did not come back")


def ask_once(consumer: socket.socket, data: bytes, patience_s: float = 20) -> bytes:
    """Send a datagram where none gets lost, and give the answer: for who counts them."""
    before = consumer.gettimeout()
    consumer.settimeout(patience_s)
    try:
        consumer.send(data)
        return consumer.recv(65536)
    finally:
        consumer.settimeout(before)


def silent(consumer: socket.socket, data: bytes) -> bool:
    """Send a datagram; true when it does not come back. What was asked before may do so only now."""
    try:
        consumer.send(data)
        while consumer.recv(65536) != data:
            pass
    except OSError:
        return True
    return False
