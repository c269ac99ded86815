"""A producer and a consumer in one program, for a place where only Python is: `stream.py PORT`.

It listens on PORT of loopback as ProdApp, and obeys lines on standard input: `connect HOST:PORT` opens ConsApp's
connection, `count` says how many bytes have come, `end` ends the stream and says what was sent and what came.
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import sys
import threading
import time

CHUNK, PAUSE_S = 65536, 0.01  # some MB a second: enough to tell a stream that goes on from one that does not


class Stream:
    """One stream from a producer to a consumer."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._sent, self._got = hashlib.sha256(), hashlib.sha256()
        self.bytes_sent = self.bytes_got = 0
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []

    def connect(self, place: str) -> None:
        host, _, port = place.rpartition(":")
        consumer = socket.create_connection((host, int(port)), 30)
        self._listener.settimeout(30)
        producer, _ = self._listener.accept()
        self._threads = [
            threading.Thread(target=self._send, args=(producer,), daemon=True),
            threading.Thread(target=self._receive, args=(consumer,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> dict[str, object]:
        self._ending.set()
        for thread in self._threads:
            thread.join(30)
        return {
            "sent": self.bytes_sent,
            "got": self.bytes_got,
            "equal": self._sent.hexdigest() == self._got.hexdigest(),
            "sha256": self._got.hexdigest(),
        }

    def _send(self, connection: socket.socket) -> None:
        noise = random.Random(7)
        try:
            while not self._ending.is_set():
                chunk = noise.randbytes(CHUNK)
                connection.sendall(chunk)
                self._sent.update(chunk)
                self.bytes_sent += len(chunk)
                time.sleep(PAUSE_S)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def _receive(self, connection: socket.socket) -> None:
        try:
            while chunk := connection.recv(CHUNK):
                self._got.update(chunk)
                self.bytes_got += len(chunk)
        except OSError:
            pass


def main() -> None:
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    stream = Stream(listener)
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        answer: object = "connected"
        if word == "connect":
            stream = Stream(listener)
            stream.connect(rest)
        else:
            answer = stream.bytes_got if word == "count" else stream.end()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
