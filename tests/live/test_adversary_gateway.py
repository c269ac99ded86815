"""Attacks on a gateway through its control port: it refuses in its own words, goes on, and nothing is left."""

from __future__ import annotations

import resource
import socket
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scistream.machine import State
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Endpoint, Role, Uid
from scistream.wire import grpc
from scistream.x509 import PrivateKey, SessionCA
from tests.support.gateways import Client, GatewayProcess, gateway
from tests.support.sessions import echo, in_an_hour

# What gRPC defines for a caller's faults. INTERNAL and UNKNOWN would be ours.
_FAULTS = {
    *("INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"),
    *("PERMISSION_DENIED", "UNAUTHENTICATED"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with gateway(tmp_path_factory.mktemp("gateway") / "g") as running:
        yield running
        assert "Traceback" not in running.log


@pytest.fixture
def client(server: GatewayProcess) -> Iterator[Client]:
    with server.client() as client:
        yield client
        _release_all(client)
        assert server.leftovers() == {}


def _release_all(client: Client) -> None:
    alive = [one.uid for one in client.list(pb.ListRequest()).sessions if not State(one.state).ended]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda uid: client.release(pb.Release(uid=uid)), alive))


def _status(call: Any, message: Message) -> tuple[str, Any]:
    """Call, and give the status and the answer or the words."""
    try:
        return "OK", call(message)
    except grpc.RpcError as error:
        return error.code().name, error.details()


def _request(uid: str = "", role: str = "PROD", **more: Any) -> pb.Request:
    return pb.Request(uid=uid or str(uuid.uuid4()), role=role, immediate=True, **{"num_conn": 1, **more})


# Races


def test_a_req_that_a_release_overtakes_is_not_answered_with_nothing(client: Client) -> None:
    """What REQ answers is a session with listeners, or it is refused; never something between."""
    with ThreadPoolExecutor(6) as pool:
        for _ in range(40):
            uid = str(uuid.uuid4())
            calls = [(client.req, _request(uid)), (client.release, pb.Release(uid=uid))] * 3
            answers = list(pool.map(lambda call: _status(*call), calls))
            for (status, answer), (_, message) in zip(answers, calls, strict=True):
                if isinstance(message, pb.Release):
                    assert status in ("OK", "NOT_FOUND"), answer
                elif status == "OK":
                    assert answer.listeners
                    assert answer.csr
                else:
                    assert status == "FAILED_PRECONDITION"
                    assert "released by its user" in answer


def test_all_calls_at_once_for_one_uid(client: Client) -> None:
    """Any order of all calls is answered, and the session is there or it is not."""
    uid, anchor = str(uuid.uuid4()), SessionCA.create(Uid("x"), in_an_hour()).certificate.der
    calls: list[tuple[Any, Message]] = [
        (client.req, _request(uid)),
        (client.req, _request(uid, num_conn=2)),
        (client.hello, pb.Hello(uid=uid, role="PROD", prod_listeners=["127.0.0.1:9"])),
        (client.update, pb.UpdateTargets(uid=uid, role="PROD", remote_listeners=["127.0.0.1:9"])),
        (client.renew, pb.Renew(uid=uid, lease_s=9, trust_anchor=anchor)),
        (client.list, pb.ListRequest(uid=uid)),
        (client.release, pb.Release(uid=uid)),
    ]
    with ThreadPoolExecutor(28) as pool:
        for _ in range(10):
            statuses = {status for status, _ in pool.map(lambda call: _status(*call), calls * 4)}
            assert statuses <= _FAULTS | {"OK"}


def test_watchers_that_never_read(server: GatewayProcess, client: Client) -> None:
    request = _request()
    client.req(request)
    metadata = [("authorization", f"Bearer {server.token}")]
    watches = [client.stub.watch(pb.WatchRequest(uid=request.uid), metadata=metadata) for _ in range(30)]
    for number in range(300):  # each tells the watchers something, more than they may be behind
        client.hello(pb.Hello(uid=request.uid, role="PROD", prod_listeners=[f"127.0.0.1:{9 + number % 2}"]))
    assert client.release(pb.Release(uid=request.uid)).state == "RELEASED"
    for watch in watches:
        watch.cancel()


# Resources


def test_a_long_list_reaches_its_user(server: GatewayProcess, client: Client) -> None:
    """A list is as long as it is; a client of ours takes it."""
    import asyncio

    from s2uc.gateway import Gateway, GatewayClient

    labels = {f"label-{number}": "x" * 250 for number in range(16)}
    with ThreadPoolExecutor(20) as pool:
        for answer in pool.map(lambda _: client.req(_request(labels=labels)), range(80)):
            assert answer.listeners

    async def ask() -> int:
        known = Gateway("g", Endpoint.parse(server.address), server.ca, server.token)
        async with GatewayClient(known) as asking:
            return len(await asking.list())

    assert asyncio.run(ask()) >= 80


def test_too_many_names_are_refused_before_any_is_resolved(client: Client) -> None:
    request = _request(num_conn=2)
    client.req(request)
    names = [f"host-{number}.invalid:5000" for number in range(3)]
    status, words = _status(client.hello, pb.Hello(uid=request.uid, role="PROD", prod_listeners=names))
    assert (status, "3 addresses" in words) == ("INVALID_ARGUMENT", True)


def test_a_listener_does_not_lead_to_itself(client: Client) -> None:
    """One connection there would open the next without end."""
    request = _request(role="CONS", num_conn=2)
    answer = client.req(request)
    client.hello(pb.Hello(uid=request.uid, role="CONS"))
    leaf = SessionCA.create(Uid(request.uid), in_an_hour()).issue(answer.csr, Role.CONS)
    update = pb.UpdateTargets(
        uid=request.uid,
        role="CONS",
        remote_listeners=["127.0.0.1:9", answer.listeners[1]],
        certificate=leaf.certificate.der,
        trust_anchor=leaf.trust_anchor.der,
    )
    status, words = _status(client.update, update)
    assert (status, answer.listeners[1] in words) == ("INVALID_ARGUMENT", True)


def test_connections_of_strangers_do_not_use_up_the_descriptors(tmp_path: Path) -> None:
    """Anybody can connect. Who is connected already is served, and there is enough for a session."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        running = gateway(tmp_path / "g")
        server = running.__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        address = Endpoint.parse(server.address)
        with server.client() as client, echo() as producer:
            client.describe(pb.DescribeRequest())
            strangers = [socket.create_connection((address.host, address.port), 5) for _ in range(300)]
            request = _request()
            client.req(request)
            client.hello(pb.Hello(uid=request.uid, role="PROD", prod_listeners=[str(producer.endpoint)]))
            client.release(pb.Release(uid=request.uid))
            for stranger in strangers:
                stranger.close()
        with server.client() as client:
            client.describe(pb.DescribeRequest())
        assert server.process.poll() is None
        assert server.leftovers() == {}
        assert "Traceback" not in server.log
    finally:
        running.__exit__(None, None, None)


def test_a_gateway_that_cannot_tell_systemd_serves(tmp_path: Path) -> None:
    with gateway(tmp_path / "g", NOTIFY_SOCKET=str(tmp_path / "none")) as server, server.client() as client:
        client.describe(pb.DescribeRequest())
        assert "systemd cannot be told READY" in server.log


# Every field of every message

_TEXTS = st.one_of(
    st.sampled_from(
        [
            "",
            "PROD",
            "CONS",
            "tcp",
            "auto",
            "a",
            "127.0.0.1:9",
            "[::1]:9",
            "x.invalid:1",
            "0.0.0.0:1",
            "\x00",
            "\n",
            "-",
        ]
    ),
    st.text(max_size=80),
)
_BYTES = st.one_of(
    st.binary(max_size=80),
    st.sampled_from(
        [SessionCA.create(Uid("x"), in_an_hour()).certificate.der, PrivateKey.generate().csr(Uid("x"), Role.PROD)]
    ),
)
_VALUES = {
    Field.TYPE_STRING: _TEXTS,
    Field.TYPE_BYTES: _BYTES,
    Field.TYPE_BOOL: st.booleans(),
    Field.TYPE_INT32: st.one_of(st.integers(0, 5), st.integers(-(2**31), 2**31 - 1)),
    Field.TYPE_UINT32: st.one_of(st.integers(0, 5), st.integers(0, 2**32 - 1)),
    Field.TYPE_UINT64: st.one_of(st.integers(0, 5), st.integers(0, 2**64 - 1)),
}
_METHODS = {
    "req": pb.Request,
    "hello": pb.Hello,
    "update": pb.UpdateTargets,
    "release": pb.Release,
    "renew": pb.Renew,
    "list": pb.ListRequest,
    "logs": pb.LogsRequest,
    "verify": pb.VerifyRequest,
}


def _messages(kind: Any) -> st.SearchStrategy[dict[str, Any]]:
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for field in kind.DESCRIPTOR.fields:
        if field.message_type is not None:
            fields[field.name] = st.dictionaries(_TEXTS, _TEXTS, max_size=20)
        elif field.name in ("remote_listeners", "prod_listeners"):
            fields[field.name] = st.lists(_TEXTS, max_size=4)
        else:
            fields[field.name] = _VALUES[field.type]
    return st.fixed_dictionaries({}, optional=fields)


@pytest.mark.parametrize("method", list(_METHODS))
def test_any_message_is_answered_or_refused(client: Client, method: str) -> None:
    """On a session that waits for its Hello, and with whatever the fields hold."""
    uid = f"fuzz-{uuid.uuid4()}"

    @settings(max_examples=120, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(_messages(_METHODS[method]), st.booleans())
    def attack(fields: dict[str, Any], of_the_session: bool) -> None:
        client.req(_request(uid))
        if of_the_session:
            fields = {**fields, "uid": uid}
        if method == "req":
            fields = {**fields, "immediate": True}
        status, words = _status(getattr(client, method), _METHODS[method](**fields))
        assert status == "OK" or (status in _FAULTS and words.isprintable() and len(words) < 500), (status, words)

    attack()
