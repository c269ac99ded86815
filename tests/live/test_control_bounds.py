"""A control port under floods from some addresses, while users at others are served."""

from __future__ import annotations

import gzip
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Endpoint
from scistream.wire import grpc
from tests.support.elsewhere import connect_from, is_closed, relayed_from, tls
from tests.support.gateways import Client, GatewayProcess, gateway

Code = grpc.StatusCode
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">I", 0)[1:] + b"\x04\x00" + bytes(4)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    limits = {"PEER_CONNECTIONS": "40", "STRANGER_TIME": "3", "CALL_RATE": "40", "FAILURE_RATE": "3"}
    settings = {f"SCISTREAM_LIMITS__{name}": value for name, value in limits.items()}
    with gateway(tmp_path_factory.mktemp("bounds") / "g", **settings) as running:
        yield running
        assert "Traceback" not in running.log


@pytest.fixture
def port(server: GatewayProcess) -> Endpoint:
    return Endpoint.parse(server.address)


@contextmanager
def user_at(source: str, server: GatewayProcess) -> Iterator[Client]:
    """Be a user at another address."""
    with relayed_from(source, Endpoint.parse(server.address)) as there:
        credentials = grpc.ssl_channel_credentials(server.ca)
        with grpc.secure_channel(str(there), credentials) as channel:
            yield Client(channel, server.token)


def from_peer(server: GatewayProcess, source: str) -> int:
    """How many connections of an address the gateway has."""
    return sum(c.raddr[0] == source for c in psutil.Process(server.process.pid).net_connections("tcp") if c.raddr)


def status(call: object, *args: object, **kwargs: object) -> Code:
    try:
        call(*args, **kwargs)  # type: ignore[operator]
    except grpc.RpcError as error:
        return error.code()
    return Code.OK


def test_tls_1_2_is_refused(port: Endpoint) -> None:
    with connect_from("127.0.0.2", port) as sock, pytest.raises(ssl.SSLError):
        tls(sock, ssl.TLSVersion.TLSv1_2)


def test_300_connections_of_one_peer_are_cut_and_others_are_served(server: GatewayProcess, port: Endpoint) -> None:
    with ExitStack() as stack:
        user, neighbour = (
            stack.enter_context(user_at("127.0.0.3", server)),
            stack.enter_context(user_at("127.0.0.4", server)),
        )
        user.describe(pb.DescribeRequest())
        neighbour.describe(pb.DescribeRequest())  # shares the flood's address
        flood = [stack.enter_context(connect_from("127.0.0.4", port)) for _ in range(300)]
        deadline, left = time.monotonic() + 60, flood
        while len(left) > 50 or from_peer(server, "127.0.0.4") > 40:  # those it has not accepted yet are none of its
            assert time.monotonic() < deadline, len(left)
            user.describe(pb.DescribeRequest())
            left = [sock for sock in left if not is_closed(sock, 0.01)]
        for client in (user, neighbour):
            assert client.describe(pb.DescribeRequest()).user == "admin"
        with user_at("127.0.0.5", server) as another:
            another.describe(pb.DescribeRequest())
    assert "connections of 127.0.0.4 to the control port are ended" in server.log
    assert "connections of 127.0.0.3 " not in server.log


@pytest.mark.parametrize(
    "how", ["nothing", "half a handshake", "byte by byte", "after the handshake", "after settings"]
)
def test_who_connects_and_says_little_is_cut(how: str, port: Endpoint) -> None:
    sock = connect_from("127.0.0.6", port)
    with sock:
        if how in ("half a handshake", "byte by byte"):
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            hello = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
            with pytest.raises(ssl.SSLWantReadError):
                hello.do_handshake()
            data = outgoing.read()
            sock.sendall(data[: len(data) // 2])
            if how == "byte by byte":
                ended = threading.Event()

                def drip() -> None:
                    for byte in data[len(data) // 2 : -1]:
                        if ended.wait(0.2):
                            return
                        try:
                            sock.sendall(bytes([byte]))
                        except OSError:
                            return

                thread = threading.Thread(target=drip)
                thread.start()
                try:
                    assert is_closed(sock, 15)
                finally:
                    ended.set()
                    thread.join()
        elif how.startswith("after"):
            sock = tls(sock)
            if how == "after settings":
                sock.sendall(_PREFACE)
        assert is_closed(sock, 15)
        sock.close()


def test_a_flood_of_calls_slows_only_itself(server: GatewayProcess) -> None:
    flooder = server.add_user("flooder")
    with user_at("127.0.0.7", server) as flood, user_at("127.0.0.8", server) as user, ThreadPoolExecutor(90) as pool:
        # More at once than may wait, and fewer than a connection takes.
        calls = [pool.submit(status, flood.describe, pb.DescribeRequest(), token=flooder) for _ in range(600)]
        answers = Counter(status(user.describe, pb.DescribeRequest()) for _ in range(20))
        assert answers == {Code.OK: 20}
        found = Counter(call.result() for call in calls)
    assert found[Code.OK] >= 200
    assert found[Code.RESOURCE_EXHAUSTED] > 0
    assert set(found) <= {Code.OK, Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE}  # the last one: gRPC itself sheds streams


def test_guessing_is_slowed_and_who_is_at_work_is_not(server: GatewayProcess) -> None:
    newcomer = server.add_user("newcomer")
    with (
        user_at("127.0.0.9", server) as attacker,
        user_at("127.0.0.10", server) as user,
        ThreadPoolExecutor(60) as pool,
    ):
        attacker.describe(pb.DescribeRequest())  # a user at work, behind the same address
        begin = time.monotonic()
        guesses = [pool.submit(status, attacker.describe, pb.DescribeRequest(), token=f"{n:043}") for n in range(400)]
        for client in (attacker, user):
            for _ in range(10):
                client.describe(pb.DescribeRequest())
        found = Counter(guess.result() for guess in guesses)
        assert found[Code.RESOURCE_EXHAUSTED] > 0
        assert set(found) <= {Code.UNAUTHENTICATED, Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE}
        assert found[Code.UNAUTHENTICATED] <= 3 * (5 + time.monotonic() - begin) + 1  # its rate, and what it saves up
        time.sleep(0.5)  # a newcomer there is let in soon after
        assert attacker.describe(pb.DescribeRequest(), token=newcomer).user == "newcomer"


def test_metadata_has_a_bound(server: GatewayProcess) -> None:
    with user_at("127.0.0.11", server) as user:
        for size, expected in (
            (8_000, Code.OK),
            (17_000, Code.RESOURCE_EXHAUSTED),
            (4_000_000, Code.RESOURCE_EXHAUSTED),
        ):
            metadata = [("authorization", f"Bearer {server.token}"), ("x", "y" * size)]
            assert status(user.stub.describe, pb.DescribeRequest(), metadata=metadata, timeout=20) is expected


def test_what_is_compressed_is_refused_unread(server: GatewayProcess) -> None:
    """A message that was small on the way could be as large as memory."""
    with user_at("127.0.0.12", server) as user:
        user.describe(pb.DescribeRequest())
        memory = psutil.Process(server.process.pid).memory_info().rss
        metadata = [("authorization", f"Bearer {server.token}")]
        bomb = pb.Request(uid="u", role="PROD", producer="0" * 100_000_000)
        assert len(gzip.compress(bomb.SerializeToString(), 9)) < 256 * 1024
        for _ in range(3):
            code = status(user.stub.req, bomb, metadata=metadata, timeout=60, compression=grpc.Compression.Gzip)
            assert code is Code.UNIMPLEMENTED
        assert psutil.Process(server.process.pid).memory_info().rss - memory < 50 * 2**20
        user.describe(pb.DescribeRequest())


def test_health_is_told_to_anybody_and_followed_by_nobody(server: GatewayProcess) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    request, credentials = health_pb2.HealthCheckRequest(), grpc.ssl_channel_credentials(server.ca)
    with grpc.secure_channel(server.address, credentials) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(request, timeout=10).status == health_pb2.HealthCheckResponse.SERVING
        assert status(next, stub.Watch(request, timeout=10)) is Code.UNIMPLEMENTED


def test_calls_at_once_on_one_connection_are_bounded(server: GatewayProcess) -> None:
    """The hundred-and-first stream waits at the client, as HTTP/2 has it."""
    with user_at("127.0.0.14", server) as user:
        request = pb.Request(uid="watched", role="PROD", num_conn=1, immediate=True)
        user.req(request)
        metadata = [("authorization", f"Bearer {server.token}")]
        watches = [user.stub.watch(pb.WatchRequest(uid="watched"), metadata=metadata, timeout=60) for _ in range(100)]
        for watch in watches:
            next(watch)
        assert status(user.describe, pb.DescribeRequest(), timeout=2) is Code.DEADLINE_EXCEEDED
        watches.pop().cancel()
        user.describe(pb.DescribeRequest())
        for watch in watches:
            watch.cancel()
        user.release(pb.Release(uid="watched"))


def test_settings_with_a_bad_bound(tmp_path: Path) -> None:
    from s2cs.settings_file import SettingsError, load

    file = tmp_path / "s2cs.toml"
    file.write_text("[limits]\npeer_connections = 1\nfailure_rate = 0\n")
    with pytest.raises(SettingsError, match=r"(?s)peer_connections.*failure_rate"):
        load(file)
