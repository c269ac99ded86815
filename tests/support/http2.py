"""HTTP/2 by hand, for what no well-behaved client sends: frames, HPACK without compression, gRPC's prefix."""

from __future__ import annotations

import socket
import ssl
import struct
import time
from contextlib import suppress
from enum import IntEnum
from typing import Self

from scistream.vocabulary import Endpoint

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
END_STREAM, END_HEADERS = 1, 4


class Type(IntEnum):
    """Frame types of RFC 9113."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Make one frame, whatever sense it makes."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _number(value: int, bits: int) -> bytes:
    limit = (1 << bits) - 1
    if value < limit:
        return bytes([value])
    out, value = bytearray([limit]), value - limit
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def header(name: bytes, value: bytes) -> bytes:
    """Write a header field literally, without indexing."""
    return b"\0" + _number(len(name), 7) + name + _number(len(value), 7) + value


def headers(method: str, token: str, *more: tuple[bytes, bytes]) -> bytes:
    """Give the header block of a gRPC call."""
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":path", f"/scistream.Control/{method}".encode()),
        (b":authority", b"gateway"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"authorization", f"Bearer {token}".encode()),
    ]
    return b"".join(header(*each) for each in [*fields, *more])


def message(payload: bytes, compressed: bool = False) -> bytes:
    """Put gRPC's prefix before a message."""
    return struct.pack(">BI", compressed, len(payload)) + payload


def call(method: str, token: str, payload: bytes, stream: int = 1) -> bytes:
    """Give the frames of a whole call."""
    return frame(Type.HEADERS, END_HEADERS, stream, headers(method, token)) + frame(
        Type.DATA, END_STREAM, stream, message(payload)
    )


class Connection:
    """A TLS connection to a control port that speaks HTTP/2 as far as the test lets it."""

    def __init__(self, to: Endpoint, ca: bytes, source: str = "", greet: bool = True) -> None:
        context = ssl.create_default_context(cadata=ca.decode())
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection((to.host, to.port), 10, (source, 0) if source else None)
        self.socket = context.wrap_socket(plain, server_hostname=to.host)
        if greet:
            self.send(PREFACE + frame(Type.SETTINGS))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Send, and tell whether the other side was still there."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def ends(self, within_s: float) -> bool:
        """Read what comes, and tell whether the other side ended the connection in that time."""
        until = time.monotonic() + within_s
        with suppress(TimeoutError):
            while (left := until - time.monotonic()) > 0:
                self.socket.settimeout(left)
                try:
                    if not self.socket.recv(65536):
                        return True
                except TimeoutError:
                    return False
                except OSError:
                    return True
        return False
