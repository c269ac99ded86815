"""What a gateway answers to requests that no good client sends; each leaves nothing behind."""

from __future__ import annotations

import socket
import ssl
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Role, Uid
from scistream.wire import grpc
from scistream.x509 import DevelopmentCA, PrivateKey, SessionCA
from tests.support.gateways import Client, GatewayProcess, gateway
from tests.support.sessions import in_an_hour

Code = grpc.StatusCode


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with gateway(tmp_path_factory.mktemp("bad") / "g", SCISTREAM_LIMITS__NUM_CONN="200") as running:
        yield running


@pytest.fixture
def client(server: GatewayProcess) -> Iterator[Client]:
    with server.client() as client:
        yield client
        for session in client.list(pb.ListRequest()).sessions:
            client.release(pb.Release(uid=session.uid))
        assert server.leftovers() == {}


def new_uid() -> str:
    return str(uuid.uuid4())


def reserve(client: Client, uid: str = "", **fields: Any) -> pb.Response:
    given = {"role": "PROD", "num_conn": 1, "immediate": True} | fields
    return client.req(pb.Request(uid=uid or new_uid(), **given))


def refused(code: Code, call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, **kwargs)
    details = caught.value.details()
    assert caught.value.code() is code, details
    assert "\n" not in details
    assert "Traceback" not in details
    return str(details)


@pytest.mark.parametrize(
    ("fields", "code", "says"),
    [
        ({"num_conn": 0}, Code.INVALID_ARGUMENT, "num_conn 0"),
        ({"num_conn": -1}, Code.INVALID_ARGUMENT, "num_conn -1"),
        ({"num_conn": 10**6}, Code.INVALID_ARGUMENT, "num_conn 1000000"),
        ({"num_conn": 201}, Code.RESOURCE_EXHAUSTED, "num_conn 201"),
        ({"num_conn": 150}, Code.RESOURCE_EXHAUSTED, "free"),
        ({"role": ""}, Code.INVALID_ARGUMENT, "PROD or CONS"),
        ({"role": "prod"}, Code.INVALID_ARGUMENT, "PROD or CONS"),
        ({"role": "ADMIN"}, Code.INVALID_ARGUMENT, "'ADMIN'"),
        ({"rate": -1}, Code.INVALID_ARGUMENT, "rate -1"),
        ({"rate": 1, "rate_bytes_per_s": 10**9}, Code.INVALID_ARGUMENT, "contradict"),
        ({"rate_bytes_per_s": 2**63}, Code.INVALID_ARGUMENT, "rate"),
        ({"backend": "squid"}, Code.INVALID_ARGUMENT, "squid"),
        ({"backend": "../nginx"}, Code.INVALID_ARGUMENT, "nginx"),
        ({"protocol": "sctp"}, Code.INVALID_ARGUMENT, "tcp"),
        ({"lease_s": 2**32 - 1}, Code.INVALID_ARGUMENT, "lease"),
        ({"hello_key_sha256": b"short"}, Code.INVALID_ARGUMENT, "SHA-256"),
        ({"producer": "x" * 300}, Code.INVALID_ARGUMENT, "producer"),
        ({"producer": "a\nb"}, Code.INVALID_ARGUMENT, "producer"),
        ({"producer": "169.254.169.254:80"}, Code.PERMISSION_DENIED, "169.254.169.254"),
        ({"labels": {"a b": "c"}}, Code.INVALID_ARGUMENT, "label"),
        ({"labels": {"a": "c\n"}}, Code.INVALID_ARGUMENT, "label"),
        ({"labels": {str(i): "x" for i in range(17)}}, Code.INVALID_ARGUMENT, "labels"),
    ],
)
def test_request(client: Client, fields: dict[str, Any], code: Code, says: str) -> None:
    assert says in refused(code, reserve, client, **fields)
    assert list(client.list(pb.ListRequest()).sessions) == []


@pytest.mark.parametrize(
    "uid",
    ["", "x" * 64, "a" * 10_000, "../../etc", "a/b", "a\nb", "a\0b", "a b", "-rf", "é", "${jndi}", "{{7*7}}", "a.b"],
)
@pytest.mark.parametrize("method", ["req", "hello", "update", "release", "watch"])
def test_uid(client: Client, method: str, uid: str) -> None:
    requests = {
        "req": pb.Request(uid=uid, role="PROD", num_conn=1, immediate=True),
        "hello": pb.Hello(uid=uid, role="PROD"),
        "update": pb.UpdateTargets(uid=uid, role="PROD"),
        "release": pb.Release(uid=uid),
        "watch": pb.WatchRequest(uid=uid),
    }
    call = getattr(client, method)
    details = refused(
        Code.INVALID_ARGUMENT, lambda: list(call(requests[method])) if method == "watch" else call(requests[method])
    )
    assert details.startswith("uid ")
    assert len(details) < 250


BAD_TARGETS = [
    ("127.0.0.1:0", Code.INVALID_ARGUMENT),
    ("127.0.0.1:65536", Code.INVALID_ARGUMENT),
    ("127.0.0.1:abc", Code.INVALID_ARGUMENT),
    ("127.0.0.1:-1", Code.INVALID_ARGUMENT),
    ("127.0.0.1:", Code.INVALID_ARGUMENT),
    ("127.0.0.1", Code.INVALID_ARGUMENT),
    ("", Code.INVALID_ARGUMENT),
    (":5000", Code.INVALID_ARGUMENT),
    ("127.0.0.1:5000\n", Code.INVALID_ARGUMENT),
    ("127.0.0.1 :5000", Code.INVALID_ARGUMENT),
    ("127.0.0.1:1\n[x]\nexec=/bin/sh:1", Code.INVALID_ARGUMENT),
    ("127.0.0.1;:5000", Code.INVALID_ARGUMENT),
    ("a;b{}:5000", Code.INVALID_ARGUMENT),
    ("{{ 7*7 }}:5000", Code.INVALID_ARGUMENT),
    ("no-such-host.invalid:5000", Code.INVALID_ARGUMENT),
    ("::1:5000", Code.INVALID_ARGUMENT),
    ("[::1:5000", Code.INVALID_ARGUMENT),
    ("[fe80::1%lo]:5000", Code.INVALID_ARGUMENT),
    ("127.1:5000", Code.INVALID_ARGUMENT),
    ("0x7f000001:5000x", Code.INVALID_ARGUMENT),
    ("10.1.2.3:5000", Code.PERMISSION_DENIED),
    ("169.254.169.254:80", Code.PERMISSION_DENIED),
    ("[fd00:ec2::254]:80", Code.PERMISSION_DENIED),
    ("0.0.0.0:5000", Code.PERMISSION_DENIED),
    ("[::]:5000", Code.PERMISSION_DENIED),
    ("224.0.0.1:5000", Code.PERMISSION_DENIED),
    ("[::1]:5000", Code.PERMISSION_DENIED),
    ("[::ffff:10.1.2.3]:5000", Code.PERMISSION_DENIED),
]


@pytest.mark.parametrize(("target", "code"), BAD_TARGETS)
def test_target_of_hello(client: Client, target: str, code: Code) -> None:
    uid = new_uid()
    reserve(client, uid)
    refused(code, client.hello, pb.Hello(uid=uid, role="PROD", prod_listeners=[target]))
    assert client.list(pb.ListRequest(uid=uid)).sessions[0].state == "RESERVED"


@pytest.mark.parametrize(("target", "code"), BAD_TARGETS)
def test_target_of_update(client: Client, target: str, code: Code) -> None:
    uid = new_uid()
    csr = reserve(client, uid, role="CONS").csr
    client.hello(pb.Hello(uid=uid, role="CONS"))
    leaf = SessionCA.create(Uid(uid), in_an_hour()).issue(csr, Role.CONS)
    message = pb.UpdateTargets(
        uid=uid,
        role="CONS",
        remote_listeners=[target],
        certificate=leaf.certificate.der,
        trust_anchor=leaf.trust_anchor.der,
    )
    refused(code, client.update, message)
    assert client.list(pb.ListRequest(uid=uid)).sessions[0].state == "ANNOUNCED"


def test_target_is_the_control_port(server: GatewayProcess, client: Client) -> None:
    uid = new_uid()
    reserve(client, uid)
    hello = pb.Hello(uid=uid, role="PROD", prod_listeners=[server.address])
    assert "control port" in refused(Code.PERMISSION_DENIED, client.hello, hello)


def test_a_name_is_resolved_once(client: Client) -> None:
    uid = new_uid()
    reserve(client, uid)
    client.hello(pb.Hello(uid=uid, role="PROD", prod_listeners=["localhost:5999"]))
    assert list(client.list(pb.ListRequest(uid=uid)).sessions[0].prod_listeners) == ["127.0.0.1:5999"]


@pytest.mark.parametrize("count", [0, 3])
def test_number_of_addresses(client: Client, count: int) -> None:
    uid = new_uid()
    reserve(client, uid, num_conn=2)
    hello = pb.Hello(uid=uid, role="PROD", prod_listeners=["127.0.0.1:5000"] * count)
    assert f"{count} addresses" in refused(Code.INVALID_ARGUMENT, client.hello, hello)


def test_update_before_hello(client: Client) -> None:
    uid = new_uid()
    reserve(client, uid)
    update = pb.UpdateTargets(
        uid=uid, role="PROD", remote_listeners=["127.0.0.1:5000"], certificate=b"x", trust_anchor=b"x"
    )
    assert "say Hello first" in refused(Code.FAILED_PRECONDITION, client.update, update)


def test_hello_for_an_unknown_session(client: Client) -> None:
    refused(Code.NOT_FOUND, client.hello, pb.Hello(uid=new_uid(), role="CONS"))


def test_hello_after_the_lease(client: Client) -> None:
    uid = new_uid()
    reserve(client, uid, lease_s=1)
    events = list(client.watch(pb.WatchRequest(uid=uid)))
    assert [e.session.state for e in events if e.kind == e.STATE] == ["RESERVED", "CLOSING", "EXPIRED"]
    hello = pb.Hello(uid=uid, role="PROD", prod_listeners=["127.0.0.1:5000"])
    assert "lease ended" in refused(Code.FAILED_PRECONDITION, client.hello, hello)


@pytest.mark.parametrize("role", ["", "CONS", "prod"])
def test_wrong_role(client: Client, role: str) -> None:
    uid = new_uid()
    reserve(client, uid)
    refused(Code.INVALID_ARGUMENT, client.hello, pb.Hello(uid=uid, role=role, prod_listeners=["127.0.0.1:5000"]))
    refused(Code.INVALID_ARGUMENT, client.update, pb.UpdateTargets(uid=uid, role=role))


def test_req_again(client: Client) -> None:
    uid = new_uid()
    first = reserve(client, uid, num_conn=2, labels={"a": "1"})
    assert reserve(client, uid, num_conn=2, labels={"a": "1"}) == first
    assert "other content" in refused(Code.ALREADY_EXISTS, reserve, client, uid, num_conn=3)
    client.release(pb.Release(uid=uid))
    assert reserve(client, uid, num_conn=3).listeners != first.listeners


def test_release_again_and_of_nothing(client: Client) -> None:
    uid = new_uid()
    refused(Code.NOT_FOUND, client.release, pb.Release(uid=uid))
    reserve(client, uid)
    for _ in range(2):
        assert client.release(pb.Release(uid=uid)).state == "RELEASED"


class TestCredentials:
    """UpdateTargets with certificates that would not work."""

    def update(self, client: Client, **changes: Any) -> Any:
        uid = new_uid()
        csr = reserve(client, uid).csr
        client.hello(pb.Hello(uid=uid, role="PROD", prod_listeners=["127.0.0.1:5000"]))
        ca = SessionCA.create(Uid(changes.get("uid", uid)), changes.get("not_after", in_an_hour()))
        leaf = ca.issue(changes.get("csr", csr), changes.get("role", Role.PROD))
        anchor = changes.get("anchor", leaf.trust_anchor.der)
        message = pb.UpdateTargets(
            uid=uid,
            role="PROD",
            remote_listeners=["127.0.0.1:5000"],
            certificate=changes.get("certificate", leaf.certificate.der),
            trust_anchor=anchor,
        )
        return client.update, message

    def test_none(self, client: Client) -> None:
        assert "certificate" in refused(Code.FAILED_PRECONDITION, *self.update(client, certificate=b"", anchor=b""))

    @pytest.mark.parametrize("role", [Role.CONS])
    def test_of_the_other_role(self, client: Client, role: Role) -> None:
        refused(Code.INVALID_ARGUMENT, *self.update(client, role=role))

    def test_of_another_session(self, client: Client) -> None:
        refused(Code.INVALID_ARGUMENT, *self.update(client, uid="another"))

    def test_for_another_key(self, client: Client) -> None:
        csr = PrivateKey.generate().csr(Uid("x"), Role.PROD)
        refused(Code.INVALID_ARGUMENT, *self.update(client, csr=csr))

    def test_of_another_anchor(self, client: Client) -> None:
        other = SessionCA.create(Uid("x"), in_an_hour()).certificate.der
        refused(Code.INVALID_ARGUMENT, *self.update(client, anchor=other))

    def test_expired(self, client: Client) -> None:
        refused(Code.INVALID_ARGUMENT, *self.update(client, not_after=in_an_hour(-2)))

    @pytest.mark.parametrize("junk", [b"x", b"\0" * 5000, b"-----BEGIN CERTIFICATE-----"])
    def test_junk(self, client: Client, junk: bytes) -> None:
        refused(Code.INVALID_ARGUMENT, *self.update(client, certificate=junk))
        refused(Code.INVALID_ARGUMENT, *self.update(client, anchor=junk))


class TestIdentity:
    """Who may do what."""

    @pytest.mark.parametrize("token", ["", "INVALID_TOKEN"])
    def test_no_token(self, server: GatewayProcess, token: str) -> None:
        with server.client(token) as nobody:
            for call, request in self.calls(nobody, new_uid()):
                assert "token" in refused(Code.UNAUTHENTICATED, call, request)

    def test_wrong_token(self, server: GatewayProcess) -> None:
        with server.client("s2t_" + "x" * 43) as nobody:
            for call, request in self.calls(nobody, new_uid()):
                refused(Code.UNAUTHENTICATED, call, request)

    def test_bare_token(self, server: GatewayProcess, client: Client) -> None:
        client.stub.describe(pb.DescribeRequest(), metadata=[("authorization", server.token)], timeout=10)

    def test_two_tokens(self, server: GatewayProcess, client: Client) -> None:
        twice = [("authorization", server.token)] * 2
        refused(Code.UNAUTHENTICATED, client.stub.describe, pb.DescribeRequest(), metadata=twice, timeout=10)

    def test_anothers_session_looks_like_none(self, server: GatewayProcess, client: Client) -> None:
        mine, nobodys = new_uid(), new_uid()
        first = reserve(client, mine)
        name = f"mallory-{mine[:8]}"
        with server.client(server.add_user(name)) as mallory:
            others = self.calls(mallory, nobodys)[1:]
            for (call, request), (_, other) in zip(self.calls(mallory, mine)[1:], others, strict=True):
                one = refused(Code.NOT_FOUND, call, request)
                assert one.replace(mine, "") == refused(Code.NOT_FOUND, call, other).replace(nobodys, "")
            assert list(mallory.list(pb.ListRequest()).sessions) == []
            # Even taking the same uid says nothing: it is mallory's own session from here on.
            assert reserve(mallory, mine, num_conn=2).listeners != first.listeners
            mallory.release(pb.Release(uid=mine))
        assert client.list(pb.ListRequest(uid=mine)).sessions[0].state == "RESERVED"

    def test_an_admin_sees_and_releases_all(self, server: GatewayProcess, client: Client) -> None:
        uid = new_uid()
        with server.client(server.add_user(f"user-{uid[:8]}")) as user:
            reserve(user, uid)
            assert uid in [s.uid for s in client.list(pb.ListRequest()).sessions]
            client.release(pb.Release(uid=uid))
            session = user.list(pb.ListRequest(uid=uid)).sessions[0]
            assert (session.state, session.reason) == ("RELEASED", "released by admin admin")

    def calls(self, client: Client, uid: str) -> list[tuple[Any, Any]]:
        return [
            (client.req, pb.Request(uid=uid, role="PROD", num_conn=1, immediate=True)),
            (client.hello, pb.Hello(uid=uid, role="PROD", prod_listeners=["127.0.0.1:5000"])),
            (client.update, pb.UpdateTargets(uid=uid, role="PROD", certificate=b"x", trust_anchor=b"x")),
            (client.release, pb.Release(uid=uid)),
            (client.list, pb.ListRequest(uid=uid)),
            (lambda request: list(client.watch(request)), pb.WatchRequest(uid=uid)),
        ]


class TestChannel:
    """The control port, below gRPC."""

    def test_plain_text(self, server: GatewayProcess) -> None:
        with grpc.insecure_channel(server.address) as channel:
            refused(Code.UNAVAILABLE, Client(channel, server.token).describe, pb.DescribeRequest(), timeout=10)

    def test_not_grpc_at_all(self, server: GatewayProcess, client: Client) -> None:
        host, port = server.address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), 10) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n" * 100)
            sock.settimeout(10)
            assert b"HTTP/1" not in b"".join(iter(lambda: sock.recv(4096), b""))
        client.describe(pb.DescribeRequest())

    def test_tls_1_2(self, server: GatewayProcess) -> None:
        context = ssl.create_default_context(cadata=server.ca.decode())
        context.set_alpn_protocols(["h2"])
        host, port = server.address.rsplit(":", 1)
        where = (host, int(port))
        with socket.create_connection(where, 10) as sock, context.wrap_socket(sock, server_hostname=host) as tls:
            assert tls.version() == "TLSv1.3"
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with socket.create_connection(where, 10) as sock, pytest.raises(ssl.SSLError, match=r"alert|EOF"):
            context.wrap_socket(sock, server_hostname=host)

    def test_another_ca(self, server: GatewayProcess) -> None:
        ca = DevelopmentCA.create("other").certificate.pem
        with grpc.secure_channel(server.address, grpc.ssl_channel_credentials(ca)) as channel:
            refused(Code.UNAVAILABLE, Client(channel, server.token).describe, pb.DescribeRequest(), timeout=10)

    def test_too_large_a_message(self, client: Client) -> None:
        hello = pb.Hello(uid="a", role="PROD", prod_listeners=["127.0.0.1:5000"] * 100_000)
        refused(Code.RESOURCE_EXHAUSTED, client.hello, hello)

    def test_malformed_message(self, server: GatewayProcess, client: Client) -> None:
        metadata = [("authorization", f"Bearer {server.token}")]
        with grpc.secure_channel(server.address, grpc.ssl_channel_credentials(server.ca)) as channel:
            call = channel.unary_unary("/scistream.Control/req")
            refused(Code.INVALID_ARGUMENT, call, b"\xff\xff\xff", metadata=metadata, timeout=10)
        client.describe(pb.DescribeRequest())

    def test_health_needs_no_token_and_reflection_does(self, server: GatewayProcess) -> None:
        from grpc_health.v1 import health_pb2, health_pb2_grpc
        from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

        with grpc.secure_channel(server.address, grpc.ssl_channel_credentials(server.ca)) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for name in ("", "scistream.Control"):
                assert health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status == 1
            reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
            ask = [reflection_pb2.ServerReflectionRequest(list_services="")]
            refused(Code.UNAUTHENTICATED, lambda: list(reflection.ServerReflectionInfo(iter(ask), timeout=10)))
            madeup = [("authorization", "Bearer made-up")]
            refused(
                Code.UNAUTHENTICATED,
                lambda: list(reflection.ServerReflectionInfo(iter(ask), timeout=10, metadata=madeup)),
            )
            metadata = [("authorization", f"Bearer {server.token}")]
            (answer,) = reflection.ServerReflectionInfo(iter(ask), timeout=10, metadata=metadata)
            assert "scistream.Control" in [s.name for s in answer.list_services_response.service]
