"""Why a gateway cannot be reached: each cause, on real sockets with real TLS."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from s2uc.gateway import Gateway, GatewayClient
from s2uc.probe import diagnose
from scistream.errors import Unavailable
from scistream.vocabulary import Endpoint
from scistream.x509 import DevelopmentCA
from tests.support.ports import ports

_CA = DevelopmentCA.create("test")
_PEM = _CA.certificate.pem


@contextmanager
def _server(serve: Callable[[socket.socket], None]) -> Iterator[Endpoint]:
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.settimeout(10)
                    serve(connection)
                except OSError:
                    continue

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield Endpoint("127.0.0.1", listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(15)


@pytest.fixture
def tls(tmp_path: Path) -> Callable[..., Callable[[socket.socket], None]]:
    """Make a TLS server's part of the handshake."""

    def make(
        host: str = "127.0.0.1", days: float = 1, version: ssl.TLSVersion | None = None, alpn: str = "h2"
    ) -> Callable[[socket.socket], None]:
        certificate, key = _CA.issue_server([host], datetime.now(UTC) + timedelta(days=days))
        (tmp_path / "crt").write_bytes(certificate.pem)
        (tmp_path / "key").write_bytes(key.pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "crt", tmp_path / "key")
        context.maximum_version = version or ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols([alpn])

        def serve(connection: socket.socket) -> None:
            with context.wrap_socket(connection, server_side=True) as secure:
                secure.recv(1)

        return serve

    return make


async def _sentence(endpoint: Endpoint, ca_pem: bytes = _PEM) -> str:
    found = await diagnose(endpoint, ca_pem)
    assert found is not None
    try:
        async with GatewayClient(Gateway("aps", endpoint, ca_pem, "token"), timeout=1.0) as client:
            await client.describe()
    except Unavailable as error:
        assert found.sentence in str(error)
        assert str(error).startswith("gateway aps (")
    else:
        raise AssertionError("the gateway was reached")
    return found.sentence


async def test_refused() -> None:
    with ports(1) as nobodys:
        found = await diagnose(Endpoint("127.0.0.1", nobodys.first), _PEM)
    assert found is not None
    assert found.passing
    assert "was refused" in found.sentence


async def test_no_such_name() -> None:
    assert "cannot be resolved" in await _sentence(Endpoint("no-such-host.invalid", 5000))


async def test_another_name(tls: Callable[..., Callable[[socket.socket], None]]) -> None:
    with _server(tls(host="other.example")) as endpoint:
        assert "for another name than 127.0.0.1" in await _sentence(endpoint)


async def test_expired(tls: Callable[..., Callable[[socket.socket], None]]) -> None:
    with _server(tls(days=-1)) as endpoint:
        assert "has expired" in await _sentence(endpoint)


async def test_another_ca(tls: Callable[..., Callable[[socket.socket], None]]) -> None:
    with _server(tls()) as endpoint:
        assert "not signed by the CA" in await _sentence(endpoint, DevelopmentCA.create("other").certificate.pem)


async def test_no_certificate_as_ca(tls: Callable[..., Callable[[socket.socket], None]]) -> None:
    with _server(tls()) as endpoint:
        assert "holds no certificate" in await _sentence(endpoint, b"rubbish")


async def test_tls_1_2(tls: Callable[..., Callable[[socket.socket], None]]) -> None:
    with _server(tls(version=ssl.TLSVersion.TLSv1_2)) as endpoint:
        assert "does not speak TLS 1.3" in await _sentence(endpoint)


async def test_a_web_server(tls: Callable[..., Callable[[socket.socket], None]]) -> None:
    with _server(tls(alpn="http/1.1")) as endpoint:
        assert "no SciStream gateway" in await _sentence(endpoint)


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_plain_text(greeting: bytes) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(greeting)
        connection.recv(1000)

    with _server(serve) as endpoint:
        assert "plain-text service" in await _sentence(endpoint)


async def test_an_echo() -> None:
    with _server(lambda connection: connection.sendall(connection.recv(5000))) as endpoint:
        assert "plain-text service" in await _sentence(endpoint)


async def test_silence() -> None:
    def wait(event: threading.Event) -> None:
        event.wait(20)

    stop = threading.Event()
    with _server(lambda connection: wait(stop)) as endpoint:
        try:
            assert "does not answer" in await _sentence(endpoint)
        finally:
            stop.set()


async def test_hanging_up() -> None:
    with _server(lambda connection: None) as endpoint:
        found = await diagnose(endpoint, _PEM)
        assert found is not None
        assert "closes the connection" in found.sentence or "TLS handshake fails" in found.sentence


async def test_nothing_wrong(tls: Callable[..., Callable[[socket.socket], None]]) -> None:
    with _server(tls()) as endpoint:
        assert await diagnose(endpoint, _PEM) is None
