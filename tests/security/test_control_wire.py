"""Attacks on the control port below the protocol: bytes, frames and connections that nobody should send."""

from __future__ import annotations

import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Endpoint
from scistream.wire import grpc
from tests.support import http2
from tests.support.http2 import END_HEADERS, END_STREAM, Connection, Type, frame
from tests.support.siege import STRANGER, Siege, client_hello, cut

MB = 10**6


@pytest.fixture
def gate(besieged: Siege) -> Iterator[Siege]:
    """After the attack a new client of alice's is served, and the memory that it cost is small."""
    before = _peak(besieged)
    yield besieged
    _serve(besieged)
    rose = _peak(besieged) - before
    print(f"memory at its peak rose by {rose / MB:.0f} MB")
    assert rose < 128 * MB


def _serve(besieged: Siege) -> None:
    with besieged.aps.client(besieged.alice[0]) as client:
        assert client.describe(pb.DescribeRequest(), timeout=20).user == "alice"


def _peak(besieged: Siege) -> int:
    status = Path(f"/proc/{besieged.aps.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _connect(besieged: Siege, greet: bool = True) -> Connection:
    return Connection(Endpoint.parse(besieged.aps.address), besieged.aps.ca, STRANGER, greet)


# Size


def test_compressed_bombs(gate: Siege) -> None:
    """60 kB that would become 60 MB, from a user with a token: refused, and memory for it is never taken."""
    with gate.aps.client(gate.mallory[0]) as mallory:
        metadata = [("authorization", f"Bearer {mallory.token}")]
        bomb = pb.Request(uid="a" * 60 * MB)
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as refused:
                mallory.stub.req(bomb, metadata=metadata, timeout=20, compression=grpc.Compression.Gzip)
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED  # nothing compressed is taken at all


@pytest.mark.parametrize("length", [2**32 - 1, 2**31, 300_000])
def test_a_message_that_says_it_is_huge(gate: Siege, length: int) -> None:
    with _connect(gate) as attacker:
        attacker.send(frame(Type.HEADERS, END_HEADERS, 1, http2.headers("req", gate.mallory[0])))
        attacker.send(frame(Type.DATA, 0, 1, struct.pack(">BI", 0, length) + bytes(8000)))
        attacker.ends(0.3)


def test_metadata_without_an_end(gate: Siege) -> None:
    """Header after header, and a block that refers to one long header thousands of times."""
    filler = http2.header(b"x-filler", b"y" * 8000)
    with _connect(gate) as attacker:
        attacker.send(frame(Type.HEADERS, 0, 1, http2.headers("req", gate.mallory[0])))
        for _ in range(4000):  # 32 MB; none of it is kept
            attacker.send(frame(Type.CONTINUATION, 0, 1, filler))
    indexed = b"\x40" + filler[1:]  # into the table of headers seen, as its first entry
    with _connect(gate) as attacker:
        block = http2.headers("req", gate.mallory[0]) + indexed[:4000] + b"\xbe" * 8000
        attacker.send(frame(Type.HEADERS, END_HEADERS, 1, block))
        attacker.ends(0.3)


def test_metadata_that_are_no_text(gate: Siege) -> None:
    """What gRPC would quote in the log is not there: it may be a token with a slip in it, or rubbish to fill a disk."""
    with _connect(gate) as attacker:
        slip = b"Bearer s2t_nearly-a-secret-token\xff"
        attacker.send(frame(Type.HEADERS, END_HEADERS, 1, http2.headers("list", "", (b"authorization", slip))))
        attacker.send(frame(Type.DATA, END_STREAM, 1, http2.message(b"")))
        attacker.ends(0.5)
    assert "nearly-a-secret" not in gate.aps.log


@pytest.mark.parametrize("path", [b"/scistream.Control\x80hello", b"\xff", b"", b"/", b"/a/b", b"/" + b"x" * 8000])
def test_methods_that_are_none(gate: Siege, path: bytes) -> None:
    """A name that is no text could end gRPC's server for everybody: it is refused like any other."""
    with _connect(gate) as attacker:
        block = http2.headers("hello", "made-up").replace(
            http2.header(b":path", b"/scistream.Control/hello"), http2.header(b":path", path)
        )
        for stream in (1, 3, 5):
            attacker.send(frame(Type.HEADERS, END_HEADERS | END_STREAM, stream, block))
        attacker.ends(0.2)
    with grpc.secure_channel(gate.aps.address, grpc.ssl_channel_credentials(gate.aps.ca)) as channel:
        for method in ("/scistream.Control/nothing", "/none.such/method"):
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(method)(b"", timeout=10)
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


# Many of a kind


def _floods(token: str) -> dict[str, bytes]:
    """Frames that cost the sender nothing, and the other side perhaps something."""
    odd = range(1, 20_000, 2)
    block = http2.headers("describe", token)
    return {
        "rapid reset": b"".join(
            frame(Type.HEADERS, END_HEADERS, n, block) + frame(Type.RST_STREAM, 0, n, bytes(4)) for n in odd
        ),
        "pings": frame(Type.PING, 0, 0, bytes(8)) * 20_000,
        "settings": frame(Type.SETTINGS, 0, 0, struct.pack(">HI", 4, 65535)) * 20_000,
        "empty data": frame(Type.HEADERS, END_HEADERS, 1, block) + frame(Type.DATA, 0, 1) * 20_000,
        "window": frame(Type.WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**31 - 1)) * 100,
        "priorities": frame(Type.PRIORITY, 0, 1, struct.pack(">IB", 1, 255)) * 20_000,
        "streams at once": b"".join(frame(Type.HEADERS, END_HEADERS, n, block) for n in odd),
        "unknown frames": frame(99, 255, 7, bytes(100)) * 20_000,
    }


@pytest.mark.parametrize("kind", list(_floods("")))
def test_floods(gate: Siege, kind: str) -> None:
    with _connect(gate) as attacker:
        attacker.send(_floods(gate.mallory[0])[kind])
        _serve(gate)
        attacker.ends(0.2)


# Slowness


def test_slow_loris(gate: Siege) -> None:
    """Who is slow to open a connection is cut off; who is slow with a call waits, and keeps nobody else out."""
    at, hello = Endpoint.parse(gate.aps.address), client_hello()
    with ExitStack() as stack:

        def connect(first: bytes) -> socket.socket:
            made = stack.enter_context(socket.create_connection((at.host, at.port), 10, (STRANGER, 0)))
            with suppress(OSError):
                made.sendall(first)
            return made

        silent = [connect(b"") for _ in range(100)]
        dripping = [connect(hello[:1]) for _ in range(100)]
        opened = [stack.enter_context(_connect(gate, greet=False)) for _ in range(20)]
        calling = [stack.enter_context(_connect(gate)) for _ in range(20)]
        call = http2.call("describe", gate.mallory[0], b"")
        for number in range(200):
            for each in dripping:
                with suppress(OSError):
                    each.sendall(hello[number + 1 :][:1])
            for slow in calling:
                slow.send(call[number:][:1])
            time.sleep(0.1)
            if number % 25 == 0:
                _serve(gate)
            if all(map(cut, silent + dripping)) and all(slow.ends(0.01) for slow in opened):
                return
        pytest.fail("some of them are still there")


# The channel


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1", "-tls1_2"])
def test_downgrade(gate: Siege, version: str) -> None:
    """OpenSSL's own client at its lowest security level: TLS 1.3, or nothing."""
    assert "Cipher is TLS_" in _openssl(gate, "-tls1_3")
    assert "Cipher is (NONE)" in _openssl(gate, version, "-cipher", "ALL:@SECLEVEL=0")


def test_no_early_data(gate: Siege) -> None:
    """What is sent with a resumed handshake could be recorded and sent again: it is not taken."""
    said = _openssl(gate, "-tls1_3", "-ign_eof", until=b"Early data was")
    assert "Max Early Data: 0" in said or "Early data was not sent" in said
    assert "Max Early Data: 1" not in said


def _openssl(besieged: Siege, *options: str, until: bytes = b"") -> str:
    command = ["openssl", "s_client", "-alpn", "h2", "-connect", besieged.aps.address, *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        said = b""
        if until:
            assert process.stdout
            for line in process.stdout:
                said += line
                if until in line:
                    break
            time.sleep(0.5)  # for the tickets that come after it
            process.terminate()
        return (said + process.communicate(timeout=60)[0]).decode(errors="replace")
