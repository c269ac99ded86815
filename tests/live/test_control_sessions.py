"""Sessions on two real gateways, spoken to message by message."""

from __future__ import annotations

import hashlib
import itertools
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from scistream.proto import scistream_pb2 as pb
from scistream.wire import grpc
from tests.support.gateways import Client, GatewayProcess, gateway, restarted
from tests.support.sessions import echo, exchange, open_pair
from tests.support.tunnels import kill

BACKENDS = ["stunnel", "haproxy", "nginx"]
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GatewayProcess, GatewayProcess]]:
    directory = tmp_path_factory.mktemp("pair")
    with gateway(directory / "p") as producer, gateway(directory / "c") as consumer:
        yield producer, consumer


@pytest.fixture
def clients(pair: tuple[GatewayProcess, GatewayProcess]) -> Iterator[tuple[Client, Client]]:
    with pair[0].client() as producer, pair[1].client() as consumer:
        yield producer, consumer
        for client in (producer, consumer):
            for session in client.list(pb.ListRequest()).sessions:
                client.release(pb.Release(uid=session.uid))
    for running in pair:
        assert running.leftovers() == {}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_session_from_req_to_rel(clients: tuple[Client, Client], backend: str) -> None:
    producer, consumer = clients
    with echo() as app:
        session = open_pair(producer, consumer, [str(app.endpoint)], 2, (backend, backend))
        for i in range(2):
            with session.connect(i) as connection:
                exchange(connection, secrets.token_bytes(1 << 20))
        deadline = time.monotonic() + 20
        while True:  # some proxies log what was negotiated when the stream has ended
            (seen,) = producer.list(pb.ListRequest(uid=session.uid)).sessions
            if seen.tls_cipher or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        assert (seen.tls_version, seen.tls_cipher) == ("TLSv1.3", "TLS_AES_128_GCM_SHA256")
        assert (seen.state, seen.backend, bool(seen.backend_version)) == ("ACTIVE", backend, True)
        session.release()
        session.release()


def test_ten_sessions_of_three_backends_at_once(clients: tuple[Client, Client]) -> None:
    """Each carries its own data, and ending one disturbs no other."""
    mixed = list(itertools.islice(itertools.cycle(itertools.product(BACKENDS, BACKENDS)), 10))
    with echo() as app, ThreadPoolExecutor(10) as pool:
        sessions = list(pool.map(lambda backends: open_pair(*clients, [str(app.endpoint)], 1, backends), mixed))
        connections = [session.connect() for session in sessions]
        sessions[0].release()
        rest = list(zip(sessions, connections, strict=True))[1:]
        try:
            list(pool.map(lambda item: exchange(item[1], secrets.token_bytes(8 << 20)), rest))
        finally:
            for connection in connections:
                connection.close()
        active = {s.uid for s in clients[0].list(pb.ListRequest()).sessions if s.state == "ACTIVE"}
        assert active == {session.uid for session, _ in rest}


def test_watch_tells_each_step(clients: tuple[Client, Client]) -> None:
    client = clients[0]
    uid = str(uuid.uuid4())
    client.req(pb.Request(uid=uid, role="PROD", num_conn=1, immediate=True))
    events: list[pb.SessionEvent] = []
    stream = client.watch(pb.WatchRequest(uid=uid), timeout=60)
    events.append(next(stream))
    client.hello(pb.Hello(uid=uid, role="PROD", prod_listeners=["127.0.0.1:5999"]))
    client.release(pb.Release(uid=uid))
    events.extend(stream)
    kinds = [(pb.SessionEvent.Kind.Name(event.kind), event.session.state) for event in events]
    assert kinds == [
        ("STATE", "RESERVED"),
        ("PROD_LISTENERS", "ANNOUNCED"),
        ("STATE", "ANNOUNCED"),
        ("STATE", "CLOSING"),
        ("STATE", "RELEASED"),
    ]


def test_what_became_of_a_session_is_known_for_a_while_whatever_its_lease_was(tmp_path: Path) -> None:
    keep = {"SCISTREAM_LIMITS__KEEP_ENDED": "2"}
    with gateway(tmp_path / "g", **keep) as running, running.client() as client:
        for uid in ("scan-1", "scan-2"):
            client.req(pb.Request(uid=uid, role="PROD", num_conn=1, immediate=True, lease_s=3600))
        client.release(pb.Release(uid="scan-1"))
        assert [s.state for s in client.list(pb.ListRequest()).sessions] == ["RELEASED", "RESERVED"]
        deadline = time.monotonic() + 30
        while len(left := client.list(pb.ListRequest()).sessions) > 1 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert [s.uid for s in left] == ["scan-2"]


def test_the_end_of_the_lease_is_announced(clients: tuple[Client, Client]) -> None:
    client = clients[0]
    uid = str(uuid.uuid4())
    client.req(pb.Request(uid=uid, role="PROD", num_conn=1, immediate=True, lease_s=6))
    kinds = [event.kind for event in client.watch(pb.WatchRequest(uid=uid), timeout=60)]
    assert kinds.count(pb.SessionEvent.EXPIRY) == 1


def test_the_applications_key(pair: tuple[GatewayProcess, GatewayProcess], clients: tuple[Client, Client]) -> None:
    """With its session's key an application says Hello and watches, and does nothing else."""
    client, key, uid = clients[0], secrets.token_urlsafe(32), str(uuid.uuid4())
    digest = hashlib.sha256(key.encode()).digest()
    client.req(pb.Request(uid=uid, role="PROD", num_conn=1, immediate=True, hello_key_sha256=digest))
    hello = pb.Hello(uid=uid, role="PROD", prod_listeners=["127.0.0.1:5999"])
    with pair[0].client(key) as app, pair[0].client("wrong") as stranger:
        for call, request in [
            (app.release, pb.Release(uid=uid)),
            (app.list, pb.ListRequest(uid=uid)),
            (app.describe, pb.DescribeRequest()),
            (app.hello, pb.Hello(uid=str(uuid.uuid4()), role="PROD")),
            (stranger.hello, hello),
        ]:
            with pytest.raises(grpc.RpcError) as caught:
                call(request)
            assert caught.value.code() is Code.UNAUTHENTICATED
        assert app.hello(hello).state == "ANNOUNCED"
        assert next(app.watch(pb.WatchRequest(uid=uid))).session.state == "ANNOUNCED"


def test_req_can_wait_for_hello(clients: tuple[Client, Client]) -> None:
    """Without `immediate` the answer comes with Hello, and brings the application's addresses."""
    client, uid = clients[0], str(uuid.uuid4())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.req, pb.Request(uid=uid, role="PROD", num_conn=1), timeout=60)
        while True:
            try:
                client.hello(pb.Hello(uid=uid, role="PROD", prod_listeners=["127.0.0.1:5999"]))
                break
            except grpc.RpcError as error:
                assert error.code() in (Code.NOT_FOUND, Code.FAILED_PRECONDITION)
                time.sleep(0.05)
        assert list(waiting.result(30).prod_listeners) == ["127.0.0.1:5999"]


def test_a_caller_that_goes_away_leaves_a_session_in_order(clients: tuple[Client, Client]) -> None:
    """REQ with a deadline that is too short: it is made or not, and REQ again settles it."""
    client = clients[0]
    for i in range(20):
        request = pb.Request(uid=str(uuid.uuid4()), role="PROD", num_conn=4, immediate=True)
        try:
            client.req(request, timeout=0.0005 * (i + 1))
        except grpc.RpcError as error:
            assert error.code() is Code.DEADLINE_EXCEEDED
        assert len(client.req(request).listeners) == 4
        client.release(pb.Release(uid=request.uid))


def test_the_same_req_at_once(clients: tuple[Client, Client]) -> None:
    client, uid = clients[0], str(uuid.uuid4())
    request = pb.Request(uid=uid, role="PROD", num_conn=4, immediate=True)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(client.req, [request] * 16))
    assert all(answer == answers[0] for answer in answers)


def test_release_at_any_moment(clients: tuple[Client, Client]) -> None:
    """REL overtakes REQ, Hello and UpdateTargets; whatever wins, nothing is left."""
    with echo() as app, ThreadPoolExecutor(2) as pool:
        for i in range(24):
            backend = BACKENDS[i % 3]

            def opened(backend: str = backend) -> None:
                try:
                    open_pair(*clients, [str(app.endpoint)], 2, (backend, backend))
                except (grpc.RpcError, AssertionError):
                    return

            job = pool.submit(opened)
            time.sleep(0.004 * i)
            while not job.done():
                for client in clients:
                    for session in client.list(pb.ListRequest()).sessions:
                        client.release(pb.Release(uid=session.uid))
            job.result()
            for client in clients:
                for session in client.list(pb.ListRequest()).sessions:
                    client.release(pb.Release(uid=session.uid))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_proxy_that_dies_is_restarted_on_its_sockets(
    pair: tuple[GatewayProcess, GatewayProcess], clients: tuple[Client, Client], backend: str
) -> None:
    with echo() as app:
        session = open_pair(*clients, [str(app.endpoint)], 1, (backend, backend))
        stream = clients[1].watch(pb.WatchRequest(uid=session.uid), timeout=60)
        next(stream)
        kill(*(process.pid for process in pair[1].proxies()))
        with session.connect() as connection:  # waits in the backlog, is not refused
            exchange(connection, secrets.token_bytes(1 << 20))
        states = []
        for event in stream:
            if event.kind == event.STATE:
                states.append(event.session.state)
            if states[-1:] == ["ACTIVE"]:
                break
        assert states == ["RECOVERING", "ACTIVE"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_proxy_that_dies_too_often_fails_its_session(tmp_path: Path, backend: str) -> None:
    """The owner sees why, and everything is given back."""
    with (
        echo() as app,
        gateway(tmp_path / "c") as consumer,
        gateway(tmp_path / "p", SCISTREAM_S2DS__MAX_RESTARTS="1") as producer,
        producer.client() as p,
        consumer.client() as c,
    ):
        session = open_pair(p, c, [str(app.endpoint)], 1, (backend, backend))
        stream = p.watch(pb.WatchRequest(uid=session.uid), timeout=60)
        killed: set[int] = set()
        for event in stream:
            if (event.kind, event.session.state) == (event.STATE, "ACTIVE"):
                living = {process.pid for process in producer.proxies()} - killed
                killed |= living
                kill(*living)
            last = event.session
        assert last.state == "FAILED"
        assert f"{backend} was ended by SIGKILL" in last.reason
        assert producer.leftovers() == {}
        assert c.list(pb.ListRequest(uid=session.uid)).sessions[0].state == "ACTIVE"


def test_sigterm_releases_everything(tmp_path: Path) -> None:
    with gateway(tmp_path / "p") as producer, gateway(tmp_path / "c") as consumer, echo() as app:
        with producer.client() as p, consumer.client() as c:
            for backend in BACKENDS:
                session = open_pair(p, c, [str(app.endpoint)], 2, (backend, backend))
                session.connect().close()
            p.req(pb.Request(uid="reserved-only", role="PROD", num_conn=3, immediate=True))
        assert producer.leftovers()["processes"]
        for running in (producer, consumer):
            assert running.stop(signal.SIGTERM) == 0
            assert running.leftovers() == {}


@pytest.mark.parametrize(
    ("backend", "number"), [*((backend, signal.SIGKILL) for backend in BACKENDS), ("nginx", signal.SIGTERM)]
)
def test_streams_outlive_the_control_server(tmp_path: Path, backend: str, number: signal.Signals) -> None:
    keep = {"SCISTREAM_SERVER__ON_SHUTDOWN": "keep"}
    with (
        echo() as app,
        gateway(tmp_path / "c") as consumer,
        gateway(tmp_path / "p", **keep) as producer,
        producer.client() as p,
        consumer.client() as c,
    ):
        waiting = pb.Request(uid="waiting", role="PROD", num_conn=2, immediate=True)
        promised = p.req(waiting)
        session = open_pair(p, c, [str(app.endpoint)], 1, (backend, backend))
        with session.connect() as running:
            running.sendall(b"before")
            assert running.recv(6, socket.MSG_WAITALL) == b"before"
            left = {process.pid for process in producer.proxies()}
            producer.stop(number)
            assert {process.pid for process in producer.proxies()} == left
            with session.connect() as meanwhile:
                exchange(meanwhile, b"while nobody watches")
            with restarted(producer) as again, again.client() as q:
                assert {process.pid for process in again.proxies()} == left
                states = {s.uid: s.state for s in q.list(pb.ListRequest()).sessions}
                assert states == {session.uid: "ACTIVE", "waiting": "RESERVED"}
                assert q.req(waiting).listeners == promised.listeners
                exchange(running, b"after")
                stream = q.watch(pb.WatchRequest(uid=session.uid), timeout=60)
                next(stream)
                kill(*(process.pid for process in again.proxies()))
                with session.connect() as connection:  # the sockets are the gateway's again, too
                    exchange(connection, b"on the same sockets")
                for event in stream:
                    if (event.kind, event.session.state) == (event.STATE, "ACTIVE"):
                        break
                session.producer = q
                session.release()
                q.release(pb.Release(uid="waiting"))
                assert again.leftovers() == {}


def test_what_expired_while_nobody_watched_is_released(tmp_path: Path) -> None:
    keep = {"SCISTREAM_SERVER__ON_SHUTDOWN": "keep"}
    with gateway(tmp_path / "p", **keep) as producer:
        with producer.client() as p:
            p.req(pb.Request(uid="short", role="PROD", num_conn=2, immediate=True, lease_s=1))
        producer.stop(signal.SIGKILL)
        time.sleep(1)
        with restarted(producer) as again, again.client() as q:
            events = list(q.watch(pb.WatchRequest(uid="short"), timeout=30))
            assert events[-1].session.state == "EXPIRED"
            assert again.leftovers() == {}


def test_many_who_connect_at_once_end_nothing(pair: tuple[GatewayProcess, GatewayProcess]) -> None:
    def knock(_: int) -> None:
        with pair[0].client() as client:
            client.describe(pb.DescribeRequest())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(knock, range(2000)))
    assert pair[0].process.poll() is None


def test_a_second_server_on_the_same_directory_is_refused(pair: tuple[GatewayProcess, GatewayProcess]) -> None:
    command = [sys.executable, "-m", "s2cs", "serve", "--config", str(pair[0].config)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "another s2cs runs on state directory" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_no_descriptor_of_the_gateway_reaches_a_proxy(
    pair: tuple[GatewayProcess, GatewayProcess], clients: tuple[Client, Client]
) -> None:
    """A proxy that held the control port's socket would keep it after the gateway's end."""
    control = {
        str(Path(f"/proc/{pair[0].process.pid}/fd/{c.fd}").readlink())
        for c in psutil.Process(pair[0].process.pid).net_connections("tcp")
        if c.laddr.port == pair[0].first_port
    }
    assert control
    stop = threading.Event()

    def knock() -> None:
        while not stop.is_set():
            with pair[0].client() as client:
                client.describe(pb.DescribeRequest())

    knocking = threading.Thread(target=knock)
    knocking.start()
    try:
        with echo() as app:
            for backend in BACKENDS * 3:
                open_pair(*clients, [str(app.endpoint)], 1, (backend, backend))
            for process in pair[0].proxies():
                held = {str(path.readlink()) for path in Path(f"/proc/{process.pid}/fd").iterdir()}
                assert not held & control
                assert not any("s2cs.db" in path or path.endswith("/lock") for path in held)
    finally:
        stop.set()
        knocking.join(30)
