"""Servers that are no gateways, or no good ones: what a user's client may meet."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from s2uc.gateway import Gateway
from scistream.proto.scistream_pb2_grpc import ControlServicer, add_ControlServicer_to_server
from scistream.vocabulary import Endpoint
from scistream.wire import grpc
from scistream.x509 import DevelopmentCA
from tests.support.sessions import in_an_hour

Answers = Mapping[str, Callable[[Any, Any], Any]]


class _Servicer(ControlServicer):
    """Answers each method with what it is given for it; what raises is a status of its own."""

    def __init__(self, answers: Answers) -> None:
        for method, answer in answers.items():
            setattr(self, method, answer)


def refusing(code: grpc.StatusCode, details: str) -> Callable[[Any, Any], Any]:
    """Refuse a call in these words."""

    def refuse(request: Any, context: Any) -> Any:
        context.abort(code, details)

    return refuse


@contextmanager
def hostile_gateway(name: str, answers: Answers) -> Iterator[Gateway]:
    """Serve the protocol with answers of the test's own, under a certificate that its user trusts."""
    ca = DevelopmentCA.create(name)
    certificate, key = ca.issue_server(["127.0.0.1"], in_an_hour() + timedelta(hours=1))
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool)
        add_ControlServicer_to_server(_Servicer(answers), server)
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key.pem, certificate.pem)]))
        server.start()
        try:
            yield Gateway(name, Endpoint("127.0.0.1", port), ca.certificate.pem, "token")
        finally:
            server.stop(0).wait()


@contextmanager
def listener(serve: Callable[[socket.socket], None]) -> Iterator[Endpoint]:
    """Take TCP connections and do with each as the test says; they are closed at the end."""
    accepted: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            accepted.append(connection)
            threading.Thread(target=attend, args=(connection,), daemon=True).start()

    def attend(connection: socket.socket) -> None:
        with suppress(OSError):
            serve(connection)

    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield Endpoint("127.0.0.1", server.getsockname()[1])
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            for connection in accepted:
                connection.close()
