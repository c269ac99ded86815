"""Malformed input of all kinds, while streams run: seconds by default, ten minutes behind `make soak`."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import psutil
import pytest

from scistream.machine import State
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Endpoint, Uid
from scistream.wire import grpc
from scistream.x509 import SessionCA
from tests.support import http2
from tests.support.http2 import Connection, Type, frame
from tests.support.sessions import in_an_hour
from tests.support.siege import STRANGER, Siege, client_hello

SHORT_S, LONG_S = 5.0, float(os.environ.get("SCISTREAM_TEST_FUZZ_S", "660"))
_NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0xFFFFFF, 0x7FFFFFFF, 0xFFFFFFFF]

# What a gateway may answer to rubbish. UNKNOWN and INTERNAL would be faults of its own.
_ANSWERS = {
    *("OK", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"),
    *("PERMISSION_DENIED", "UNAUTHENTICATED", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "UNAVAILABLE"),
}


def _messages() -> dict[str, bytes]:
    """A good message for each method, to be spoiled."""
    ca = SessionCA.create(Uid("fuzz"), in_an_hour()).certificate.der
    req = pb.Request(uid="fuzz", role="PROD", num_conn=1, immediate=True, labels={"a": "b"}, hello_key_sha256=bytes(32))
    update = pb.UpdateTargets(uid="fuzz", role="PROD", remote_listeners=["127.0.0.7:9"])
    update.certificate = update.trust_anchor = ca
    return {
        "req": req.SerializeToString(),
        "hello": pb.Hello(uid="fuzz", role="PROD", prod_listeners=["127.0.0.7:9"]).SerializeToString(),
        "update": update.SerializeToString(),
        "renew": pb.Renew(uid="fuzz", lease_s=60, trust_anchor=ca).SerializeToString(),
        "release": pb.Release(uid="fuzz").SerializeToString(),
        "list": pb.ListRequest(uid="fuzz").SerializeToString(),
        "logs": pb.LogsRequest(uid="fuzz", lines=9).SerializeToString(),
        "verify": pb.VerifyRequest(uid="fuzz", passive=True).SerializeToString(),
        "describe": b"",
    }


def spoiled(chance: random.Random, data: bytes) -> bytes:
    """Change some bytes: flip, cut, double, move, insert, and put numbers where lengths may be."""
    made = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 4, 16])):
        at = chance.randrange(len(made) + 1)
        match chance.randrange(7):
            case 0 if at < len(made):
                made[at] ^= 1 << chance.randrange(8)
            case 1:
                del made[at : at + chance.choice([1, 2, 4, 100])]
            case 2:
                made[at:at] = made[at : at + chance.randrange(1, 64)] * chance.choice([1, 2, 50])
            case 3:
                made[at:at] = chance.randbytes(chance.choice([1, 2, 8, 300]))
            case 4:
                number = chance.choice(_NUMBERS)
                made[at : at + 4] = number.to_bytes(4, chance.choice(["big", "little"]))
            case 5 if at < len(made):
                made[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF])
            case _:
                other = chance.randrange(len(made) + 1)
                made[at:at], made[other:other] = made[other : other + 16], made[at : at + 16]
    return bytes(made[:100_000])


class Fuzzer:
    """Sends cases of all kinds until told to stop, each kind in a thread of its own."""

    def __init__(self, besieged: Siege, seed: int) -> None:
        self.siege = besieged
        self.counts: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.faults: list[str] = []
        self.good, self.hello = _messages(), client_hello()
        self.control = Endpoint.parse(besieged.aps.address)
        self._seed = seed
        self._end = 0.0

    def run(self, seconds: float) -> None:
        """Send cases for so long."""
        kinds: list[Callable[[random.Random], None]] = [self._payload, self._frames, self._tls, self._plain, self._wan]
        self._end = time.monotonic() + seconds
        self._channel = grpc.secure_channel(self.siege.aps.address, grpc.ssl_channel_credentials(self.siege.aps.ca))
        threads = [threading.Thread(target=self._go_on, args=(kind, n)) for n, kind in enumerate(kinds)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._channel.close()

    def _go_on(self, kind: Callable[[random.Random], None], number: int) -> None:
        chance, name = random.Random(self._seed + number), kind.__name__.strip("_")
        while time.monotonic() < self._end and not self.faults:
            try:
                with suppress(OSError):
                    kind(chance)
            except Exception as error:
                self.faults.append(f"{name}: {type(error).__name__}: {error}")
            self.counts[name] += 1

    def _payload(self, chance: random.Random) -> None:
        """Spoiled messages to every method, from a user with a token, over good gRPC."""
        for _ in range(200):
            method, good = chance.choice(list(self.good.items()))
            data = good if chance.random() < 0.05 else spoiled(chance, good)
            call = self._channel.unary_unary(f"/scistream.Control/{method}")
            metadata = [("authorization", f"Bearer {self.siege.mallory[0]}")]
            try:
                call(data, metadata=metadata, timeout=1)
                self.answers["OK"] += 1
            except grpc.RpcError as error:
                self.answers[error.code().name] += 1
                if error.code().name not in _ANSWERS or not error.details().isprintable():
                    self.faults.append(f"{method} {data!r}: {error}")
            self.counts["messages"] += 1
        self._tidy()

    def _tidy(self) -> None:
        with self.siege.aps.client(self.siege.mallory[0]) as mallory:
            for session in mallory.list(pb.ListRequest()).sessions:
                if not State(session.state).ended:
                    with suppress(grpc.RpcError):
                        mallory.release(pb.Release(uid=session.uid))

    def _frames(self, chance: random.Random) -> None:
        """Spoiled HTTP/2 inside good TLS: calls with some bytes changed, and frames of any type, flags and length."""
        with Connection(self.control, self.siege.aps.ca, STRANGER, greet=chance.random() < 0.9) as connection:
            for _ in range(8):
                if chance.random() < 0.5:
                    method, good = chance.choice(list(self.good.items()))
                    token = chance.choice([self.siege.mallory[0], "made-up"])
                    data = spoiled(chance, http2.call(method, token, good, chance.choice([1, 3, 5])))
                else:
                    payload = chance.randbytes(chance.choice([0, 4, 5, 6, 8, 9, 100, 20_000]))
                    kind = chance.choice([*Type, chance.randrange(256)])
                    data = frame(
                        kind, chance.randrange(256), chance.choice([0, 1, 2, 3, 2**31 - 1, 2**32 - 1]), payload
                    )
                self.counts["frame sequences"] += 1
                if not connection.send(data):
                    break
            connection.ends(0.002)

    def _tls(self, chance: random.Random) -> None:
        """Spoiled TLS on the control port."""
        self._say(self.control, spoiled(chance, self.hello))

    def _plain(self, chance: random.Random) -> None:
        """No TLS at all on the control port."""
        first = chance.choice([http2.PREFACE, b"GET / HTTP/1.1\r\n\r\n", b"", b"\x16\x03\x01", b"\x80\x2e\x01\x00\x02"])
        self._say(self.control, first + chance.randbytes(chance.choice([0, 10, 2000])))

    def _wan(self, chance: random.Random) -> None:
        """Spoiled TLS, and rubbish, on the WAN port of each backend."""
        data = spoiled(chance, self.hello) if chance.random() < 0.8 else chance.randbytes(chance.randrange(3000))
        self._say(chance.choice(list(self.siege.sessions.values())).wan[0], data)

    def _say(self, to: Endpoint, data: bytes) -> None:
        with socket.create_connection((to.host, to.port), 10, (STRANGER, 0)) as connection:
            connection.sendall(data)
            if len(data) % 3:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # leave with a reset
            connection.settimeout(0.005)
            with suppress(TimeoutError, OSError):
                connection.recv(4096)


def _fuzz(besieged: Siege, seconds: float, seed: int) -> None:
    fuzzer, process = Fuzzer(besieged, seed), psutil.Process(besieged.aps.process.pid)
    memory, descriptors = process.memory_info().rss, process.num_fds()
    fuzzer.run(seconds)
    assert fuzzer.faults == []
    with besieged.aps.client(besieged.alice[0]) as client:
        assert client.describe(pb.DescribeRequest(), timeout=20).user == "alice"
    besieged.see_all_move()
    assert set(fuzzer.answers) <= _ANSWERS
    assert min(fuzzer.counts.values()) > 0
    print(f"seed {seed}, {seconds:.0f} s: {dict(fuzzer.counts)}, answers {dict(fuzzer.answers)}")
    rose = (process.memory_info().rss - memory) / 1e6
    print(f"memory rose by {rose:.0f} MB, descriptors went from {descriptors} to {process.num_fds()}")


def test_malformed_input(besieged: Siege) -> None:
    _fuzz(besieged, SHORT_S, random.randrange(2**32))


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_malformed_input_for_ten_minutes(besieged: Siege) -> None:
    _fuzz(besieged, LONG_S, random.randrange(2**32))
