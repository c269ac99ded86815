"""What is refused on the WAN leg, by every backend, on both sides; not one byte gets through."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from s2cs.s2ds.local import LocalDataServer
from scistream.vocabulary import Endpoint, Role, Uid
from scistream.x509 import Certificate, Credentials, PrivateKey, peer_name, way_name
from tests.support.ports import ports
from tests.support.tunnels import (
    FLAVOURS,
    ONE_PORT,
    Session,
    application,
    client_context,
    config,
    context,
    flavour,
    hang_up,
    local,
)

GREETING = b"from ProdApp\n"
Leaf = tuple[Credentials, PrivateKey]


@dataclass
class ProdApp:
    """Greets at once whoever connects, and remembers what came."""

    connections: int = 0
    received: bytearray = field(default_factory=bytearray)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.write(GREETING)
        await writer.drain()
        while data := await reader.read(65536):
            self.received += data


@pytest.fixture(params=[*FLAVOURS, *ONE_PORT])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LocalDataServer]:
    with ports(20) as range_:
        async with local(config(tmp_path, range_, flavour(request.param))) as opened:
            yield opened


@dataclass
class Door:
    """The WAN port of a producer's gateway, and what is behind it."""

    session: Session
    at: Endpoint
    behind: ProdApp

    @property
    def name(self) -> str:
        """What the consumer's gateway asks for."""
        return way_name(self.session.ca.certificate, self.session.uid, 0)

    async def enters(self, tls: ssl.SSLContext | None, name: str = "") -> bool:
        """Try to get in with data, and tell whether anything came back from behind the door."""
        answer = b""
        with suppress(OSError, ssl.SSLError):
            reader, writer = await asyncio.open_connection(
                self.at.host,
                self.at.port,
                ssl=tls,
                server_hostname=(name or self.name) if tls else None,
            )
            try:
                writer.write(b"let me in" * 10)
                await writer.drain()
                answer = await asyncio.wait_for(reader.read(100), 5)
            finally:
                await hang_up(writer)
        return answer == GREETING


@pytest.fixture
async def door(server: LocalDataServer) -> AsyncIterator[Door]:
    app, session = ProdApp(), Session()
    async with application(app) as target:
        reserved = await server.reserve(session.spec(Role.PROD, id="x"))
        await server.start("x", session.bridge(reserved, Role.PROD, target))
        door = Door(session, reserved.listeners[0], app)
        yield door
        # After every refusal the right peer still gets in: it was not the door that was broken.
        connections, received = app.connections, bytes(app.received)
        assert await door.enters(client_context(session))
        assert (connections, received) == (0, b"")
        await server.stop("x")


def issued(  # a leaf as no S2UC would sign it
    session: Session,
    subject: x509.Name | None = None,
    name: str | None = None,
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
    ended: bool = False,
    role: Role = Role.CONS,
) -> Leaf:
    """Sign a leaf with the session's CA, and with something wrong in it."""
    key, now, anchor = PrivateKey.generate(), datetime.now(UTC), session.ca.certificate.x509
    right = session.leaf(role)[0].certificate.x509
    names = [x509.DNSName(name or peer_name(session.uid, role))]
    leaf = (
        x509.CertificateBuilder()
        .subject_name(subject or right.subject)
        .issuer_name(anchor.subject)
        .public_key(key.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=2))
        .not_valid_after(now - timedelta(seconds=1) if ended else now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
        .sign(session.ca.key.key, hashes.SHA256())
    )
    return Credentials(Certificate(leaf), session.ca.certificate), key


def subject(role: str, uid: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, role), x509.NameAttribute(NameOID.USER_ID, uid)])


def client(session: Session, leaf: Leaf | None) -> ssl.SSLContext:
    """TLS of a consumer's gateway with another leaf, or none."""
    trust = session.leaf(Role.CONS)[0]
    return context(Role.CONS, *(leaf or (None, None)), trust)


async def test_plain_text(door: Door) -> None:
    assert not await door.enters(None)


async def test_no_certificate(door: Door) -> None:
    assert not await door.enters(client(door.session, None))


async def test_the_certificate_of_another_session(door: Door) -> None:
    assert not await door.enters(client(door.session, Session().leaf(Role.CONS)))


async def test_the_certificate_of_another_session_with_the_same_uid(door: Door) -> None:
    assert not await door.enters(client(door.session, Session(door.session.uid).leaf(Role.CONS)))


async def test_the_producers_certificate_as_a_client(door: Door) -> None:
    assert not await door.enters(client(door.session, door.session.leaf(Role.PROD)))


async def test_the_producers_name_with_the_consumers_usage(door: Door) -> None:
    leaf = issued(door.session, usage=ExtendedKeyUsageOID.CLIENT_AUTH, role=Role.PROD)
    assert not await door.enters(client(door.session, leaf))


async def test_an_expired_certificate(door: Door) -> None:
    assert not await door.enters(client(door.session, issued(door.session, ended=True)))


@pytest.mark.parametrize("wrong", ["uid", "role", "uid as prefix"])
async def test_the_right_ca_but_another_peer(door: Door, wrong: str) -> None:
    """The CA signs two leaves only; that the name is checked as well shows in one that it should not have signed."""
    uid = {"uid": "Other", "role": door.session.uid, "uid as prefix": door.session.uid + "-1"}[wrong]
    role = "PROD" if wrong == "role" else "CONS"
    leaf = issued(door.session, subject(role, uid), f"{role.lower()}.{uid}.scistream.internal")
    assert not await door.enters(client(door.session, leaf))


async def test_tls_1_2(door: Door) -> None:
    tls = client_context(door.session)
    tls.minimum_version = tls.maximum_version = ssl.TLSVersion.TLSv1_2
    assert not await door.enters(tls)


async def test_a_session_cannot_be_resumed(door: Door) -> None:
    """It would skip the check of the certificate. OpenSSL still sends the number of a session that it did not keep."""

    def handshake(tls: ssl.SSLContext, before: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool | None]:
        with (
            socket.create_connection((door.at.host, door.at.port), 5) as plain,
            tls.wrap_socket(plain, server_hostname=door.name, session=before) as connection,
        ):
            assert connection.recv(100) == GREETING  # a ticket would have come by now
            return connection.session, connection.session_reused

    tls = client_context(door.session)
    session, _ = await asyncio.to_thread(handshake, tls, None)
    if session is not None:
        _, reused = await asyncio.to_thread(handshake, tls, session)
        assert reused is False
    door.behind.connections = 0


@dataclass
class Impostor:
    """A TLS server in the place of the producer's gateway."""

    received: bytearray = field(default_factory=bytearray)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        await writer.drain()
        while data := await reader.read(65536):
            self.received += data


@asynccontextmanager
async def impostor(tls: ssl.SSLContext | None, behind: Impostor) -> AsyncIterator[Endpoint]:
    """Listen where the consumer's gateway expects the producer's."""
    tasks = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            with suppress(OSError, ssl.SSLError):
                await behind(reader, writer)
        finally:
            await hang_up(writer)

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield Endpoint(*listening.sockets[0].getsockname())
    finally:
        listening.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        await listening.wait_closed()


async def consumer_reaches(
    server: LocalDataServer, session: Session, tls: ssl.SSLContext | None
) -> tuple[bytes, bytes]:
    """Connect as ConsApp through the consumer's gateway; give what ConsApp and what the far end received."""
    behind, got = Impostor(), b""
    async with AsyncExitStack() as stack:
        target = await stack.enter_async_context(impostor(tls, behind))
        reserved = await server.reserve(session.spec(Role.CONS, id="c"))
        await server.start("c", session.bridge(reserved, Role.CONS, target))
        with suppress(OSError):
            (at,) = reserved.listeners
            reader, writer = await asyncio.open_connection(at.host, at.port)
            try:
                writer.write(b"secret of ConsApp")
                await writer.drain()
                got = await asyncio.wait_for(reader.read(100), 5)
            finally:
                await hang_up(writer)
        await server.stop("c")
    return got, bytes(behind.received)


def gateway(session: Session, leaf: Leaf) -> ssl.SSLContext:
    """TLS of a producer's gateway with a leaf."""
    return context(Role.PROD, *leaf, session.leaf(Role.PROD)[0])


async def test_the_consumer_accepts_the_producers_gateway(server: LocalDataServer) -> None:
    session = Session()
    tls = gateway(session, session.leaf(Role.PROD))
    assert await consumer_reaches(server, session, tls) == (GREETING, b"secret of ConsApp")


@pytest.mark.parametrize(
    "case",
    ["consumer's certificate", "another session's", "same uid, other CA", "other name", "consumer's name", "expired",
     "TLS 1.2", "plain text"],
)  # fmt: skip
async def test_the_consumer_refuses(server: LocalDataServer, case: str) -> None:
    session = Session()
    serving = ExtendedKeyUsageOID.SERVER_AUTH
    right = session.leaf(Role.PROD)
    other = Session("Other")
    leaf = {
        "consumer's certificate": session.leaf(Role.CONS),
        "another session's": other.leaf(Role.PROD),
        "same uid, other CA": Session(session.uid).leaf(Role.PROD),
        "other name": issued(
            session, subject("PROD", "Other"), peer_name(Uid("Other"), Role.PROD), serving, role=Role.PROD
        ),
        "consumer's name": issued(session, usage=serving, role=Role.CONS),
        "expired": issued(session, usage=serving, ended=True, role=Role.PROD),
    }.get(case, right)
    trusted = (replace(leaf[0], trust_anchor=session.ca.certificate), leaf[1])
    tls: ssl.SSLContext | None = gateway(session, trusted)
    if case == "TLS 1.2":
        assert tls is not None
        tls.minimum_version = tls.maximum_version = ssl.TLSVersion.TLSv1_2
    if case == "plain text":
        tls = None
    got, passed = await consumer_reaches(server, session, tls)
    assert got == b""
    assert b"secret" not in passed
