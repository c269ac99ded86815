"""Old clients: a client of the first version of the protocol against gateways whose operators serve such."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from cryptography import x509

from s2cs import runtime
from s2cs.compat import derived
from s2cs.s2ds.backends import BACKENDS
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Endpoint, PortRange, Uid
from scistream.wire import grpc
from scistream.x509 import Certificate, DevelopmentCA, PrivateKey
from tests.support.gateways import GatewayProcess, gateway
from tests.support.old_client import OldClient, OldSession, old_client, opened, requested
from tests.support.ports import port_block
from tests.support.programs import run
from tests.support.sessions import Echo, echo, exchange, in_an_hour, open_pair
from tests.support.tunnels import kill, listening

pytestmark = pytest.mark.skipif(
    bool(BACKENDS["stunnel"].find(None).reason), reason=BACKENDS["stunnel"].find(None).reason
)

Code = grpc.StatusCode
SECRET = "a secret of two operators, by telephone"
Pair = tuple[GatewayProcess, GatewayProcess]


def compat(directory: Path, **more: str) -> dict[str, str]:
    """Write the operators' secret, and give the settings."""
    directory.mkdir(exist_ok=True)
    file = directory / "psk-secret"
    file.write_text(SECRET + "\n")
    file.chmod(0o600)
    return {
        "SCISTREAM_COMPAT__PSK": "true",
        "SCISTREAM_COMPAT__PSK_SECRET_FILE": str(file),
        "SCISTREAM_COMPAT__USER": "old",
        **more,
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("old")
    keep = compat(directory, SCISTREAM_SERVER__ON_SHUTDOWN="keep", SCISTREAM_S2DS__MAX_RESTARTS="50")
    with (
        gateway(
            directory / "p", blocks=2, SCISTREAM_METRICS__LISTEN=f'["127.0.0.1:{port_block()}"]', **keep
        ) as producer,
        gateway(directory / "c", **keep) as consumer,
    ):
        for each in (producer, consumer):
            each.add_user("old")
        yield producer, consumer


@pytest.fixture
def clients(pair: Pair) -> Iterator[tuple[OldClient, OldClient]]:
    with old_client(pair[0].address, pair[0].ca) as producer, old_client(pair[1].address, pair[1].ca) as consumer:
        yield producer, consumer


@pytest.fixture
def app() -> Iterator[Echo]:
    with echo() as running:
        yield running


def connect(address: str) -> socket.socket:
    endpoint = Endpoint.parse(address)
    return socket.create_connection((endpoint.host, endpoint.port), 30)


def refused(code: grpc.StatusCode, call: Callable[[], object]) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() is code, caught.value
    return str(caught.value.details())


def moves(session: OldSession, size: int = 3_000_000) -> None:
    with connect(session.lan[0]) as connection:
        exchange(connection, os.urandom(size))


def becomes(running: GatewayProcess, uid: str, *states: str) -> None:
    """Wait until a gateway's sessions of a uid are in these states."""
    deadline = time.monotonic() + 30
    with running.client() as operator:
        while (found := [s.state for s in operator.list(pb.ListRequest()).sessions if s.uid == uid]) != [*states]:
            assert time.monotonic() < deadline, found
            time.sleep(0.05)


def counted(running: GatewayProcess, what: str) -> float:
    """Read a counter of the gateway that has metrics, by its name and labels; 0 before the first."""
    (place,) = json.loads(running.environ["SCISTREAM_METRICS__LISTEN"])
    with urllib.request.urlopen(f"http://{place}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return float(dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#")).get(what, 0))


@contextmanager
def counting(running: GatewayProcess, what: str, more: int = 1) -> Iterator[None]:
    """Wait until a counter is so much higher than it was before what is done here."""
    before, deadline = counted(running, what), time.monotonic() + 30
    yield
    while counted(running, what) < before + more:
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


WITHOUT_TOKEN = 'scistream_old_client_uses_total{use="no_token"}'  # counted where the call begins to wait, too
CANCELLED = 'scistream_calls_total{code="CANCELLED",method="req"}'


def test_a_whole_session_and_the_same_uid_again(pair: Pair, clients: tuple[OldClient, OldClient], app: Echo) -> None:
    """With the fixed uid that some use, and no word of it in a log but the names of what is done."""
    for _ in range(2):
        session = opened(*clients, "1234", [str(app.endpoint)], num_conn=2)
        for listener in session.lan:
            with connect(listener) as connection:
                exchange(connection, os.urandom(1_000_000))
        key = derived(Uid("1234"), SECRET.encode()).key.hex()
        for running in pair:
            (psk,) = running.tunnels.glob("*/*/psk")
            assert psk.read_text() == f"scistream:{key}\n"
            assert psk.stat().st_mode & 0o027 == 0
            assert runtime.in_memory(psk) or not any(map(runtime.in_memory, (Path("/run"), Path("/dev", "shm"))))
            told = [running.log, *(path.read_text() for path in running.tunnels.rglob("*.log"))]
            told += [" ".join(each.cmdline()) for each in running.proxies()]
            told += [path.read_text() for path in (running.directory / "state" / "audit").iterdir()]
            told += [path.read_bytes().decode("latin-1") for path in (running.directory / "state").glob("s2cs.db*")]
            assert not any(secret in text for text in told for secret in (key, SECRET))
            with running.client() as operator:
                (info,) = (each for each in operator.list(pb.ListRequest()).sessions if each.state == "ACTIVE")
                assert (info.backend, info.owner, info.tls_version, info.by_key) == ("stunnel", "old", "TLSv1.3", True)
        session.release()
        session.release()  # as lost answers are asked for again
        assert [running.leftovers() for running in pair] == [{}, {}]
    for use in ("blocking_req", "no_token", "psk", "hello_role"):
        assert f"old client: {use}" in pair[1].log or f": {use}: " in pair[1].log
    audit = [
        json.loads(line)
        for path in (pair[1].directory / "state/audit").iterdir()
        for line in path.read_text().splitlines()
    ]
    uses = {each["use"]: each["reason"] for each in audit if each["event"] == "compat"}
    assert set(uses) == {"blocking_req", "no_token", "psk", "hello_role"}
    assert "no end of the lease" in uses["psk"]


def test_what_the_answers_hold(clients: tuple[OldClient, OldClient]) -> None:
    """For PROD Hello's addresses are in the answer to req; for CONS they mean nothing, whatever they are."""
    uid = uuid.uuid4().hex
    answer, greeting = requested(clients[0], uid, "PROD", ["127.0.0.1:5074", "127.0.0.1:5075"], num_conn=2)
    assert list(answer.prod_listeners) == ["127.0.0.1:5074", "127.0.0.1:5075"]
    assert len(answer.listeners) == 2
    assert list(greeting.listeners) == list(answer.listeners)
    assert greeting.message
    answer, _ = requested(clients[1], uid, "CONS", ["nowhere"])
    assert not answer.prod_listeners
    for client in clients:
        client.call("release", uid=uid)


def test_a_listener_without_a_port(pair: Pair, clients: tuple[OldClient, OldClient]) -> None:
    uid = str(uuid.uuid4())
    waiting = clients[0].start("req", uid=uid, role="PROD", num_conn=1)
    becomes(pair[0], uid, "RESERVED")
    hello = {"uid": uid, "role": "PROD"}
    assert "127.0.0.1" in refused(
        Code.INVALID_ARGUMENT, lambda: clients[0].call("hello", prod_listeners=["127.0.0.1"], **hello)
    )
    clients[0].call("hello", prod_listeners=["127.0.0.1:5074"], **hello)
    assert list(waiting.result().prod_listeners) == ["127.0.0.1:5074"]
    update = {"uid": uid, "role": "PROD", "remote_listeners": ["127.0.0.1"]}
    refused(Code.INVALID_ARGUMENT, lambda: clients[0].call("update", **update))
    clients[0].call("release", uid=uid)


def test_wrong_order_and_the_wrong_gateway(pair: Pair, clients: tuple[OldClient, OldClient]) -> None:
    uid = str(uuid.uuid4())
    hello = {"uid": uid, "role": "PROD", "prod_listeners": ["127.0.0.1:5074"]}
    update = {"uid": uid, "role": "PROD", "remote_listeners": ["127.0.0.1:5074"]}
    refused(Code.NOT_FOUND, lambda: clients[0].call("hello", **hello))
    refused(Code.NOT_FOUND, lambda: clients[0].call("update", **update))
    refused(Code.NOT_FOUND, lambda: clients[0].call("release", uid=uid))
    waiting = clients[0].start("req", uid=uid, role="PROD", num_conn=1)
    becomes(pair[0], uid, "RESERVED")
    assert "say Hello first" in refused(Code.FAILED_PRECONDITION, lambda: clients[0].call("update", **update))
    clients[0].call("release", uid=uid)
    assert "released" in refused(Code.FAILED_PRECONDITION, waiting.result)
    refused(Code.FAILED_PRECONDITION, lambda: clients[0].call("hello", **hello))


def test_whose_a_session_is(pair: Pair, clients: tuple[OldClient, OldClient], app: Echo) -> None:
    """A caller without a token is one user and no other; it does what old clients do, and nothing else."""
    alice = pair[0].add_user("alice")
    session = opened(*clients, str(uuid.uuid4()), [str(app.endpoint)])
    with old_client(pair[0].address, pair[0].ca, alice) as other, pair[0].client("") as nobody:
        refused(Code.NOT_FOUND, lambda: other.call("release", uid=session.uid))
        for method, message in (("list", pb.ListRequest()), ("describe", pb.DescribeRequest())):
            refused(Code.UNAUTHENTICATED, lambda method=method, message=message: getattr(nobody, method)(message))
        uid = str(uuid.uuid4())
        requested(other, uid, "PROD", ["127.0.0.1:5074"])  # with a bare token, and her own
        refused(Code.NOT_FOUND, lambda: clients[0].call("release", uid=uid))
        other.call("release", uid=uid)
    with old_client(pair[0].address, pair[0].ca, "s2t_" + "x" * 43) as forger:
        refused(Code.UNAUTHENTICATED, lambda: forger.call("release", uid=session.uid))
    moves(session)
    session.release()


def handshake(address: str, *more: str, version: str = "-tls1_3") -> str:
    """Speak TLS to a WAN port with openssl, and send a line: what is said until it comes back, or is refused."""
    command = ["openssl", "s_client", "-connect", address, version, "-quiet", "-ign_eof", *more]
    said = b""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"hello\n")
        while not (b"alert" in said or b"hello" in said) and (more_said := process.stdout.read(4096)):
            said += more_said
        process.kill()
    return said.decode(errors="replace")


def test_the_key_is_required_on_the_wire(clients: tuple[OldClient, OldClient], app: Echo) -> None:
    session = opened(*clients, str(uuid.uuid4()), [str(app.endpoint)])
    wan, uid = session.wan[0], Uid(session.uid)
    suite = ["-ciphersuites", "TLS_AES_128_GCM_SHA256"]
    psk = [*suite, "-psk_identity", "scistream", "-psk"]
    moves(session, 1000)
    before = app.accepted
    for wrong in (
        [],
        [*psk, derived(Uid("another"), SECRET.encode()).key.hex()],
        [*psk, derived(uid, b"").key.hex()],  # the uid alone, where the operators share a secret
        [*suite, "-psk_identity", str(uid), "-psk", derived(uid, SECRET.encode()).key.hex()],
    ):
        said = handshake(wan, *wrong)
        assert "alert" in said, said
    assert "alert" in handshake(wan, *psk[2:], derived(uid, SECRET.encode()).key.hex(), version="-tls1_2")
    assert app.accepted == before
    assert "hello" in handshake(wan, *psk, derived(uid, SECRET.encode()).key.hex())
    session.release()


def test_the_consumer_accepts_no_certificate_instead(
    tmp_path: Path, clients: tuple[OldClient, OldClient], app: Echo
) -> None:
    """An impostor in the producer's place that has any certificate, and any key but the right one."""
    uid = str(uuid.uuid4())
    answer, _ = requested(clients[1], uid, "CONS", [])
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-batch"]
    names = ["-subj", "/CN=SciStream session CA", "-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "crt")]
    subprocess.run([*made, *names], check=True, capture_output=True)
    port = port_block()
    serve = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-tls1_3", "-quiet", "-naccept", "4"]
    serve += ["-cert", str(tmp_path / "crt"), "-key", str(tmp_path / "key"), "-psk_identity", "scistream"]
    serve += ["-psk", derived(Uid("another"), SECRET.encode()).key.hex()]
    with subprocess.Popen(serve, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as impostor:
        try:
            clients[1].call("update", uid=uid, role="CONS", remote_listeners=[f"127.0.0.1:{port}"])
            while port not in listening(PortRange(port, port)):
                assert impostor.poll() is None
                time.sleep(0.01)
            with suppress(ConnectionError), connect(answer.listeners[0]) as connection:
                connection.settimeout(10)
                connection.sendall(b"what nobody may read")
                assert connection.recv(1) == b""
        finally:
            impostor.kill()
            said = impostor.stdout.read() if impostor.stdout else b""
    assert b"what nobody may read" not in said
    clients[1].call("release", uid=uid)


def test_nothing_on_the_wan_tells_the_uid(tmp_path: Path, clients: tuple[OldClient, OldClient], app: Echo) -> None:
    """The key comes from the uid: neither the identity nor the name of the server may be it."""
    uid = str(uuid.uuid4())
    answer, _ = requested(clients[1], uid, "CONS", [])
    with socket.create_server(("127.0.0.1", 0)) as producer:
        producer.settimeout(20)
        port = producer.getsockname()[1]
        clients[1].call("update", uid=uid, role="CONS", remote_listeners=[f"127.0.0.1:{port}"])
        with connect(answer.listeners[0]):
            connection, _ = producer.accept()
            with connection:
                greeting = connection.recv(65536)
    assert b"scistream" in greeting  # the identity is there, in plain
    assert uid.encode() not in greeting
    clients[1].call("release", uid=uid)


def test_a_session_with_certificates_stays_so(pair: Pair, app: Echo) -> None:
    with pair[0].client() as producer, pair[1].client() as consumer:
        session = open_pair(producer, consumer, [str(app.endpoint)], backends=("stunnel", "stunnel"))
        bare = pb.UpdateTargets(uid=session.uid, role="PROD", remote_listeners=[str(app.endpoint)])
        assert "with certificates" in refused(Code.FAILED_PRECONDITION, lambda: producer.update(bare))
        assert not producer.list(pb.ListRequest(uid=session.uid)).sessions[0].by_key
        with session.connect() as connection:
            exchange(connection, b"x" * 1000)
        session.release()


def test_old_sessions_cannot_be_renewed_or_get_certificates(
    pair: Pair, clients: tuple[OldClient, OldClient], app: Echo
) -> None:
    uid = str(uuid.uuid4())
    token = pair[0].add_user(f"u{uid[:8]}")
    with old_client(pair[0].address, pair[0].ca, f"Bearer {token}") as mine, pair[0].client(token) as modern:
        requested(mine, uid, "PROD", [str(app.endpoint)])
        update = pb.UpdateTargets(uid=uid, role="PROD", remote_listeners=[str(app.endpoint)])
        half = pb.UpdateTargets()
        half.CopyFrom(update)
        half.certificate = b"x"
        assert "both" in refused(Code.FAILED_PRECONDITION, lambda: modern.update(half))
        modern.update(update)
        modern.update(update)
        half.trust_anchor = b"y"
        assert "without credentials" in refused(Code.FAILED_PRECONDITION, lambda: modern.update(half))
        renew = pb.Renew(uid=uid, trust_anchor=b"y")
        assert "no credentials" in refused(Code.FAILED_PRECONDITION, lambda: modern.renew(renew))
        mine.call("release", uid=uid)


def test_a_session_keeps_its_key_when_the_secret_is_changed(
    pair: Pair, clients: tuple[OldClient, OldClient], app: Echo
) -> None:
    """Also when one of its sides is led elsewhere; the other side still has the key from before."""
    file = Path(pair[0].environ["SCISTREAM_COMPAT__PSK_SECRET_FILE"])
    with echo() as elsewhere:
        session = opened(*clients, str(uuid.uuid4()), [str(app.endpoint)])
        file.write_text("another secret of two operators\n")
        try:
            clients[0].call("update", uid=session.uid, role="PROD", remote_listeners=[str(elsewhere.endpoint)])
            moves(session)
            assert elsewhere.accepted
        finally:
            file.write_text(SECRET + "\n")
        session.release()


def test_only_stunnel_can(pair: Pair) -> None:
    with pair[0].client() as client:
        for backend in ("nginx", "haproxy"):
            uid = str(uuid.uuid4())
            client.req(pb.Request(uid=uid, role="PROD", num_conn=1, immediate=True, backend=backend))
            client.hello(pb.Hello(uid=uid, role="PROD", prod_listeners=["127.0.0.1:5074"]))
            update = pb.UpdateTargets(uid=uid, role="PROD", remote_listeners=["127.0.0.1:5074"])
            said = refused(Code.FAILED_PRECONDITION, lambda update=update: client.update(update))
            assert backend in said
            assert "stunnel" in said
            client.release(pb.Release(uid=uid))


def test_a_killed_proxy_and_a_killed_server(pair: Pair, clients: tuple[OldClient, OldClient], app: Echo) -> None:
    """The stream goes on over kill -9 of s2cs; the next one has the tunnel, mends its proxy, and gives it back."""
    session = opened(*clients, str(uuid.uuid4()), [str(app.endpoint)])
    with connect(session.lan[0]) as connection:
        connection.sendall(b"before")
        assert connection.recv(100) == b"before"
        pair[0].stop(signal.SIGKILL)
        connection.sendall(b"after")
        assert connection.recv(100) == b"after"
        pair[0].start()
        connection.sendall(b"again")
        assert connection.recv(100) == b"again"
    moves(session)
    kill(*(proxy.pid for proxy in pair[0].proxies()))
    moves(session)
    session.release()
    assert [running.leftovers() for running in pair] == [{}, {}]


def test_clients_that_are_lost(pair: Pair, clients: tuple[OldClient, OldClient], app: Echo) -> None:
    """One that is killed while it waits; another takes its session up with the same uid."""
    uid = str(uuid.uuid4())
    with (
        counting(pair[0], CANCELLED),
        old_client(pair[0].address, pair[0].ca) as lost,
        counting(pair[0], WITHOUT_TOKEN),
    ):
        waiting = lost.start("req", uid=uid, role="PROD", num_conn=1, rate=0)  # a call that nobody holds is cancelled
    with pytest.raises(grpc.RpcError):
        waiting.result(timeout=30)
    session = opened(*clients, uid, [str(app.endpoint)])
    moves(session, 1000)
    session.release()


def test_who_cancels_its_req_holds_nothing(pair: Pair, clients: tuple[OldClient, OldClient]) -> None:
    """At once, not after three minutes; but not while another call waits for the same, nor when it was answered."""
    uid = str(uuid.uuid4())
    with counting(pair[0], WITHOUT_TOKEN, 2):
        one, two = (clients[0].start("req", uid=uid, role="PROD", num_conn=1, rate=0) for _ in range(2))
    becomes(pair[0], uid, "RESERVED")
    with counting(pair[0], CANCELLED):
        one.cancel()
    becomes(pair[0], uid, "RESERVED")
    two.cancel()
    becomes(pair[0], uid, "RELEASED")
    assert pair[0].leftovers() == {}
    with old_client(pair[0].address, pair[0].ca) as client:
        answer, _ = requested(client, uid, "PROD", ["127.0.0.1:9"])
        assert list(answer.listeners)
    time.sleep(0.5)  # nothing comes of it that could be waited for
    becomes(pair[0], uid, "ANNOUNCED")
    clients[0].call("release", uid=uid)


@pytest.mark.parametrize("waits_s", [0, pytest.param(40, marks=pytest.mark.soak)])
def test_a_req_that_waits_outlives_a_new_certificate(tmp_path: Path, waits_s: float) -> None:
    """As long as it may wait; and it does not keep the gateway from its end."""
    with gateway(tmp_path / "g") as running, old_client(running.address, running.ca, running.token) as client:
        waiting = client.start("req", uid="u", role="PROD", num_conn=1, rate=0)
        becomes(running, "u", "RESERVED")
        certs = running.directory / "certs"
        key = PrivateKey.from_pem((certs / "ca.key").read_bytes())
        ca = DevelopmentCA(Certificate(x509.load_pem_x509_certificate(running.ca)), key)
        certificate, key = ca.issue_server(["127.0.0.1"], in_an_hour())
        for name, pem in (("server.crt", certificate.pem), ("server.key", key.pem)):
            (certs / name).write_bytes(pem)
        run("s2cs", "reload", "--config", running.config).check_returncode()
        time.sleep(waits_s)
        assert not waiting.done()
        becomes(running, "u", "RESERVED")
        if waits_s:
            client.call("hello", uid="u", role="PROD", prod_listeners=["127.0.0.1:9"])
            assert list(waiting.result().prod_listeners) == ["127.0.0.1:9"]
        assert running.stop() == 0
        assert running.leftovers() == {}


def test_a_hundred_that_never_say_hello_starve_nobody(pair: Pair, app: Echo) -> None:
    """Each from a connection of its own; one with a token and one without are served meanwhile as ever."""
    uids = [str(uuid.uuid4()) for _ in range(100)]
    pid = pair[0].process.pid
    threads = len(os.listdir(f"/proc/{pid}/task"))  # noqa: PTH208
    with ExitStack() as stack:
        waiting = []
        for uid in uids:
            client = stack.enter_context(old_client(pair[0].address, pair[0].ca))
            waiting.append(client.start("req", uid=uid, role="PROD", num_conn=1, rate=0))
        with pair[0].client() as operator:
            deadline = time.monotonic() + 30
            while sum(each.state == "RESERVED" for each in operator.list(pb.ListRequest()).sessions) < len(uids):
                assert time.monotonic() < deadline, [each.exception() for each in waiting if each.done()]
                time.sleep(0.1)
        assert not any(each.done() for each in waiting)
        assert len(os.listdir(f"/proc/{pid}/task")) < threads + len(uids) / 2  # noqa: PTH208
        producer = stack.enter_context(old_client(pair[0].address, pair[0].ca))
        consumer = stack.enter_context(old_client(pair[1].address, pair[1].ca))
        session = opened(producer, consumer, str(uuid.uuid4()), [str(app.endpoint)])
        moves(session, 100_000)
        session.release()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda uid: producer.call("release", uid=uid), uids))
        assert {each.exception().code() for each in waiting} == {Code.FAILED_PRECONDITION}
    assert pair[0].leftovers() == {}


def test_they_are_counted(pair: Pair, clients: tuple[OldClient, OldClient], app: Echo) -> None:
    with counting(pair[0], 'scistream_old_client_uses_total{use="psk"}'), counting(pair[0], WITHOUT_TOKEN, 4):
        opened(*clients, str(uuid.uuid4()), [str(app.endpoint)]).release()


def test_off_by_default(tmp_path: Path) -> None:
    """Nobody without a token; and no way without credentials, with one."""
    with gateway(tmp_path / "g") as running:
        with old_client(running.address, running.ca) as client:
            refused(Code.UNAUTHENTICATED, lambda: client.call("req", uid="u", role="PROD", num_conn=1))
        with old_client(running.address, running.ca, running.token) as client:
            requested(client, "u", "PROD", ["127.0.0.1:5074"])
            update = {"uid": "u", "role": "PROD", "remote_listeners": ["127.0.0.1:5074"]}
            said = refused(Code.FAILED_PRECONDITION, lambda: client.call("update", **update))
            assert "credentials" in said
            assert "[compat] psk" in said
            running.configure("[limits]\nhello_wait = 1\n")
            silent = {"uid": "silent", "role": "PROD", "num_conn": 1}
            assert "Hello" in refused(Code.DEADLINE_EXCEEDED, lambda: client.call("req", **silent))
            client.call("release", uid="u")
        assert running.leftovers() == {}
        running.configure("[compat]\nbare_tokens = false\nblocking_req = false\nuser = 'gone'\n")
        with old_client(running.address, running.ca, running.token) as client:
            said = refused(Code.UNAUTHENTICATED, lambda: client.call("req", uid="v", role="PROD", num_conn=1))
            assert "Bearer" in said
        with old_client(running.address, running.ca, f"Bearer {running.token}") as client:
            said = refused(Code.FAILED_PRECONDITION, lambda: client.call("req", uid="v", role="PROD", num_conn=1))
            assert "immediate" in said
        with old_client(running.address, running.ca, None) as client:
            said = refused(Code.UNAUTHENTICATED, lambda: client.call("req", uid="v", role="PROD", num_conn=1))
            assert "gone" in said
