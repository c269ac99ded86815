"""Peers of a gateway with addresses of their own: all of 127.0.0.0/8 is this machine."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from scistream.vocabulary import Endpoint
from tests.support.hostile import listener


def connect_from(source: str, to: Endpoint) -> socket.socket:
    """Connect from an address."""
    return socket.create_connection((to.host, to.port), 10, source_address=(source, 0))


def tls(sock: socket.socket, most: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLSocket:
    """Shake hands as an HTTP/2 client does that asks for no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = most
    context.set_alpn_protocols(["h2"])
    return context.wrap_socket(sock)


@contextmanager
def relayed_from(source: str, to: Endpoint) -> Iterator[Endpoint]:
    """Pass connections on, so that they come from another address than gRPC's own."""

    def pass_on(client: socket.socket) -> None:
        with connect_from(source, to) as server:
            server.settimeout(None)
            back = threading.Thread(target=pump, args=(server, client), daemon=True)
            back.start()
            pump(client, server)
            back.join()

    def pump(reader: socket.socket, writer: socket.socket) -> None:
        with suppress(OSError):
            while data := reader.recv(65536):
                writer.sendall(data)
        for each in (reader, writer):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    with listener(pass_on) as endpoint:
        yield endpoint


def is_closed(sock: socket.socket, within_s: float) -> bool:
    """Tell whether the other side ends a connection in time, whatever it sends before."""
    sock.settimeout(within_s)
    try:
        while sock.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True
