"""Sessions opened by hand, message by message, and applications at their two ends."""

from __future__ import annotations

import hashlib
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Endpoint, Role, Uid
from scistream.x509 import SessionCA
from tests.support.gateways import Client


def in_an_hour(hours: float = 1) -> datetime:
    """A time from now (UTC)."""
    return datetime.now(UTC) + timedelta(hours=hours)


@dataclass
class Opened:
    """A session that is ACTIVE on both sides."""

    uid: str
    producer: Client
    consumer: Client
    wan: list[Endpoint]
    lan: list[Endpoint]
    ca: SessionCA

    def release(self) -> None:
        """Release both sides."""
        for client in (self.producer, self.consumer):
            client.release(pb.Release(uid=self.uid))

    def connect(self, i: int = 0) -> socket.socket:
        """Connect as ConsApp to listener i."""
        return socket.create_connection((self.lan[i].host, self.lan[i].port), 30)


def open_pair(
    producer: Client,
    consumer: Client,
    targets: list[str],
    /,
    num_conn: int = 1,
    backends: tuple[str, str] = ("", ""),
    uid: str = "",
    **more: Any,
) -> Opened:
    """Run the protocol's steps 1 to 7 through bare clients; more is what REQ is to ask for."""
    uid = uid or str(uuid.uuid4())
    ca = SessionCA.create(Uid(uid), in_an_hour())
    sides: list[tuple[Client, Role, str]] = [(producer, Role.PROD, backends[0]), (consumer, Role.CONS, backends[1])]
    answers: dict[Role, Any] = {}
    for client, role, backend in sides:
        request = pb.Request(uid=uid, role=role, num_conn=num_conn, immediate=True, backend=backend, **more)
        answers[role] = client.req(request)
        client.hello(pb.Hello(uid=uid, role=role, prod_listeners=targets))
    for client, role, _ in sides:
        leaf = ca.issue(answers[role].csr, role)
        onward = targets if role is Role.PROD else answers[Role.PROD].listeners
        answer = client.update(
            pb.UpdateTargets(
                uid=uid,
                role=role,
                remote_listeners=onward,
                certificate=leaf.certificate.der,
                trust_anchor=leaf.trust_anchor.der,
            )
        )
        assert answer.state == "ACTIVE"
    wan, lan = ([Endpoint.parse(text) for text in answers[role].listeners] for role in Role)
    return Opened(uid, producer, consumer, wan, lan, ca)


class Echo:
    """A producer that sends back what it gets, and closes when the other side has."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, 0), family=family, backlog=64)
        self.endpoint = Endpoint(host, self._socket.getsockname()[1])
        self.accepted = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass

    def close(self) -> None:
        """Stop accepting."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)


@contextmanager
def echo(host: str = "127.0.0.1") -> Iterator[Echo]:
    """Run an echoing producer."""
    server = Echo(host)
    try:
        yield server
    finally:
        server.close()


def exchange(connection: socket.socket, data: bytes) -> None:
    """Send data to an echo, see that all of it comes back, then end the stream from this side.

    Half-closing while data is on its way back is a test of its own: not every Stunnel carries that to the end.
    """
    received = bytearray()

    def read() -> None:
        while len(received) < len(data) and (chunk := connection.recv(65536)):
            received.extend(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    connection.sendall(data)
    reader.join(60)
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
    connection.shutdown(socket.SHUT_WR)
    assert connection.recv(1) == b""
