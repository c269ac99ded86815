"""Two gateways under attack, with a checked stream through every backend that runs all the while."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from s2cs.s2ds.backends import BACKENDS
from scistream.vocabulary import Endpoint
from tests.support.gateways import Client, GatewayProcess, gateway
from tests.support.page import with_page
from tests.support.sessions import Opened, open_pair

APPLICATIONS = "127.0.0.7"  # the address of the LAN that the gateways forward to; all else is not theirs to reach
STRANGER = "127.0.0.66"  # the address that floods come from
STREAM_BYTES = int(os.environ.get("SCISTREAM_TEST_STREAM_MB", "64")) * 10**6  # of each stream, at the least
_RATE = 8e6  # bytes per second of each stream while attacks run
_BLOCK = 64 * 1024
_MOVED = 16 * _BLOCK


class Stream:
    """Bytes from ProdApp to ConsApp, slowly until told to end; both sides hash what they see."""

    def __init__(self) -> None:
        self.received = 0
        self._sent = hashlib.sha256()
        self._got = hashlib.sha256()
        self._last = threading.Event()
        self._fault = ""
        self._threads: list[threading.Thread] = []

    def write(self, connection: socket.socket) -> None:
        """Be ProdApp on a connection."""
        noise, size, start = os.urandom(_BLOCK - 8), 0, time.monotonic()
        while not self._last.is_set() or size < STREAM_BYTES:
            block = size.to_bytes(8, "big") + noise
            connection.sendall(block)
            self._sent.update(block)
            size += len(block)
            if not self._last.is_set():
                self._last.wait(max(0.0, start + size / _RATE - time.monotonic()))
        connection.shutdown(socket.SHUT_WR)

    def read(self, connection: socket.socket) -> None:
        """Be ConsApp on a connection, in a thread of its own."""

        def take() -> None:
            with connection:
                try:
                    while data := connection.recv(4 * _BLOCK):
                        self._got.update(data)
                        self.received += len(data)
                except OSError as error:
                    self._fault = str(error)

        self._threads.append(threading.Thread(target=take, daemon=True))
        self._threads[0].start()

    def see_it_move(self) -> None:
        """See that more arrives, on the one connection that it has had from the start."""
        before, until = self.received, time.monotonic() + 60
        while self.received < before + _MOVED:
            assert self._threads[0].is_alive(), f"the stream has ended after {self.received} bytes: {self._fault}"
            assert time.monotonic() < until, "the stream rests"
            time.sleep(0.02)

    def finish(self) -> int:
        """Let it end; its size, if all that was sent has arrived."""
        self._last.set()
        self._threads[0].join(100)
        assert not self._threads[0].is_alive()
        assert self._fault == ""
        assert self.received >= STREAM_BYTES
        assert self._got.hexdigest() == self._sent.hexdigest()
        return self.received


class ProdApp:
    """Listens in the LAN: who says `s` and a number gets that stream; who says `e` gets an echo."""

    def __init__(self, streams: list[Stream]) -> None:
        self._streams = streams
        self._socket = socket.create_server((APPLICATIONS, 0), backlog=64)
        self.endpoint = Endpoint(*self._socket.getsockname())
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.accepted += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            word = connection.recv(2, socket.MSG_WAITALL)
            if word[:1] == b"s":
                self._streams[word[1]].write(connection)
            elif word == b"e:":
                while data := connection.recv(_BLOCK):
                    connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Accept no more."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def echoes(connection: socket.socket, word: bytes = b"hello") -> bool:
    """Ask the application at the far end for an echo, and tell whether it came."""
    with connection, suppress(OSError):
        connection.settimeout(20)
        connection.sendall(b"e:" + word)
        answer = b""
        while len(answer) < len(word) and (more := connection.recv(_BLOCK)):
            answer += more
        return answer == word
    return False


@dataclass
class Siege:
    """What is attacked, and by whom."""

    aps: GatewayProcess  # the producer's facility
    alcf: GatewayProcess  # the consumer's
    alice: tuple[str, str]  # her tokens there: the sessions are hers
    mallory: tuple[str, str]  # his, of a user who may open sessions, too
    app: ProdApp
    sessions: dict[str, Opened]  # by backend
    streams: dict[str, Stream]
    page: str  # of the producer's facility

    @property
    def session(self) -> Opened:
        """One of alice's sessions, for attacks that have nothing to do with the backend."""
        return next(iter(self.sessions.values()))

    def see_all_move(self) -> None:
        """See that no stream was disturbed."""
        for stream in self.streams.values():
            stream.see_it_move()

    def open(self, producer: Client, consumer: Client, backend: str = "", **more: object) -> Opened:
        """Open one more session to the application; more is what REQ is to ask for."""
        return open_pair(producer, consumer, [str(self.app.endpoint)], backends=(backend, backend), **more)


def usable() -> list[str]:
    """The backends that this machine has."""
    return [name for name, backend in BACKENDS.items() if not backend.find(None).reason]


_AS_USUAL = ("env",)  # what is attacked is started as it is at a facility
# What bounds the rate of attacks has tests of its own; here they come as fast as they can.
_SETTINGS = {
    "SCISTREAM_LIMITS__CALL_RATE": "100000",
    "SCISTREAM_LIMITS__FAILURE_RATE": "10000",
    "SCISTREAM_POLICY__TARGETS": f'["{APPLICATIONS}/32"]',
    "SCISTREAM_POLICY__PEERS": '["127.0.0.1/32"]',
}


@contextmanager
def siege(directory: Path) -> Iterator[Siege]:
    """Run the gateways and the streams; at the end every stream has arrived whole, and nothing is left."""
    names = usable()
    streams = {name: Stream() for name in names}
    with ExitStack() as stack:
        page, settings = with_page()
        aps = stack.enter_context(gateway(directory / "aps", wrapper=_AS_USUAL, **_SETTINGS, **settings))
        alcf = stack.enter_context(gateway(directory / "alcf", wrapper=_AS_USUAL, **_SETTINGS))
        alice = aps.add_user("alice"), alcf.add_user("alice")
        mallory = aps.add_user("mallory"), alcf.add_user("mallory")
        app = ProdApp(list(streams.values()))
        stack.callback(app.close)
        producer = stack.enter_context(aps.client(alice[0]))
        consumer = stack.enter_context(alcf.client(alice[1]))
        sessions = {}
        for number, name in enumerate(names):
            opened = open_pair(producer, consumer, [str(app.endpoint)], backends=(name, name))
            connection = opened.connect()
            connection.sendall(b"s" + bytes([number]))
            streams[name].read(connection)
            sessions[name] = opened
        yield Siege(aps, alcf, alice, mallory, app, sessions, streams, f"http://{page}")
        total = sum(stream.finish() for stream in streams.values())
        print(f"\n{len(names)} streams of {total / 1e6:.0f} MB together arrived whole")
        for opened in sessions.values():
            opened.release()
        for running in (aps, alcf):
            assert running.process.poll() is None
            assert running.leftovers() == {}
            assert "Traceback" not in running.log
            _see_no_token(running.directory, [*alice, *mallory, running.token])


def _see_no_token(directory: Path, tokens: list[str]) -> None:
    """See that, after all of it, the log, the audit log and the store hold no token; the admin's own file does."""
    for file in directory.rglob("*"):
        if file.is_file() and file != directory / "token":
            content = file.read_bytes()
            assert not any(token.encode() in content for token in tokens), file


def client_hello() -> bytes:
    """Give the first flight of a real TLS client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


def cut(connection: socket.socket) -> bool:
    """Tell whether the other side has ended a connection."""
    try:
        return connection.recv(65536, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
