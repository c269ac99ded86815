"""Attacks on a WAN port, by somebody who can reach it and is not the session's other gateway."""

from __future__ import annotations

import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Endpoint, Role, Uid
from scistream.wire import grpc
from scistream.x509 import PrivateKey, SessionCA, peer_name
from tests.support.sessions import Opened, in_an_hour
from tests.support.siege import Siege, client_hello, cut, echoes, usable

BACKEND = pytest.mark.parametrize("backend", usable())
HALF_OPEN = 1000


@contextmanager
def _half_open(to: Endpoint, count: int, first: bytes) -> Iterator[list[socket.socket]]:
    """Connect so many times, send something, and say nothing more."""
    with ExitStack() as stack:
        sockets = []
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection((to.host, to.port), 20))
            connection.sendall(first)
            sockets.append(connection)
        yield sockets


def _drip(connections: list[socket.socket], rest: bytes) -> None:
    """Say one byte more on each, as somebody very slow would."""
    for connection in connections:
        with suppress(OSError):
            connection.sendall(rest[:1])


@BACKEND
def test_half_open_handshakes(besieged: Siege, backend: str) -> None:
    """A thousand strangers stand in the door: the stream goes on, and the session's own connections get through."""
    session = besieged.sessions[backend]
    with _half_open(session.wan[0], HALF_OPEN, client_hello()):
        for _ in range(5):
            start = time.monotonic()
            assert echoes(session.connect())
            print(f"{backend}: a new connection answers after {time.monotonic() - start:.3f} s")
        besieged.streams[backend].see_it_move()
    assert echoes(session.connect())


def test_slow_loris(besieged: Siege) -> None:
    """Strangers who say their hello byte by byte are cut off all the same, and keep nobody out meanwhile."""
    hello = client_hello()
    with ExitStack() as stack:
        doors = [session.wan[0] for session in besieged.sessions.values()]
        strangers = [each for door in doors for each in stack.enter_context(_half_open(door, 100, hello[:1]))]
        for number in range(1, 200):
            _drip(strangers, hello[number:])
            time.sleep(0.1)
            if number % 25 == 0:
                assert all(echoes(session.connect()) for session in besieged.sessions.values())
            if all(cut(stranger) for stranger in strangers):
                return
        pytest.fail("some of them are still there")


# Who is let in. The library of a hostile client is Python's here, and the command `openssl` below.


class Intruder:
    """Somebody with a certificate, who would speak to the application behind a WAN port."""

    def __init__(self, directory: Path, uid: str) -> None:
        self.directory = directory
        self.name = peer_name(Uid(uid), Role.PROD)

    def context(self, leaf: tuple[SessionCA, Uid, Role] | None) -> ssl.SSLContext:
        """Make a client that takes any server, and shows a leaf which that CA signs for that uid and role."""
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
        if leaf is not None:
            made.load_cert_chain(self.pem(*leaf))
        return made

    def pem(self, ca: SessionCA, uid: Uid, role: Role) -> Path:
        """Write a leaf with its key."""
        key = PrivateKey.generate()
        file = self.directory / f"{role}.pem"
        file.write_bytes(ca.issue(key.csr(uid, role), role).certificate.pem + key.pem)
        return file

    def enters(self, at: Endpoint, context: ssl.SSLContext) -> bool:
        """Try, and tell whether the application answered."""
        with suppress(OSError), socket.create_connection((at.host, at.port), 10) as plain:
            return echoes(context.wrap_socket(plain, server_hostname=self.name))
        return False


@pytest.fixture
def intruder(besieged: Siege, backend: str, tmp_path: Path) -> Iterator[Intruder]:
    """At the end nothing of his has reached the application, and the right peer gets in."""
    session, before = besieged.sessions[backend], besieged.app.accepted
    found = Intruder(tmp_path, session.uid)
    yield found
    assert besieged.app.accepted == before
    assert found.enters(session.wan[0], found.context((session.ca, Uid(session.uid), Role.CONS)))


@BACKEND
def test_certificates_of_others(besieged: Siege, intruder: Intruder, backend: str) -> None:
    """None, the producer's own, another session's, and one of the same uid that another CA signed."""
    session = besieged.sessions[backend]
    uid, other = Uid(session.uid), Uid("another")
    for leaf in (
        None,
        (session.ca, uid, Role.PROD),
        (SessionCA.create(other, in_an_hour()), other, Role.CONS),
        (SessionCA.create(uid, in_an_hour()), uid, Role.CONS),
    ):
        assert not intruder.enters(session.wan[0], intruder.context(leaf)), leaf


def test_certificates_of_another_running_session(besieged: Siege, tmp_path: Path) -> None:
    """Each session of the gateway is shut to each other one's gateways, whatever carries them."""
    for name, session in besieged.sessions.items():
        intruder = Intruder(tmp_path, session.uid)
        for other_name, other in besieged.sessions.items():
            context = intruder.context((other.ca, Uid(other.uid), Role.CONS))
            assert intruder.enters(session.wan[0], context) is (name == other_name), (name, other_name)


@BACKEND
def test_a_session_ticket_of_one_session_on_another(besieged: Siege, tmp_path: Path, backend: str) -> None:
    """What a resumption would skip is the check of the certificate; there is nothing to resume with, anywhere."""
    session = besieged.sessions[backend]
    with besieged.aps.client(besieged.alice[0]) as producer, besieged.alcf.client(besieged.alice[1]) as consumer:
        second = besieged.open(producer, consumer, backend)
        intruder = Intruder(tmp_path, session.uid)
        context = intruder.context((session.ca, Uid(session.uid), Role.CONS))

        def handshake(at: Endpoint, earlier: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool]:
            with (
                socket.create_connection((at.host, at.port), 10) as plain,
                context.wrap_socket(plain, server_hostname=intruder.name, session=earlier) as connection,
            ):
                with suppress(OSError):
                    connection.sendall(b"e:a ticket would have come with this")
                    connection.settimeout(5)
                    connection.recv(100)
                return connection.session, bool(connection.session_reused)

        # OpenSSL sends the number of a session that it does not keep: what matters is what can be done with it.
        ticket, _ = handshake(session.wan[0], None)
        if ticket is not None:
            assert not handshake(session.wan[0], ticket)[1]
            with suppress(OSError):
                assert not handshake(second.wan[0], ticket)[1]
        second.release()


@BACKEND
@pytest.mark.parametrize("version", ["-tls1", "-tls1_1", "-tls1_2"])
def test_downgrade(besieged: Siege, tmp_path: Path, backend: str, version: str) -> None:
    """OpenSSL's own client, with the right certificate, at its lowest security level: TLS 1.3 or nothing."""
    session = besieged.sessions[backend]
    leaf = str(Intruder(tmp_path, session.uid).pem(session.ca, Uid(session.uid), Role.CONS))
    assert "Cipher is TLS_" in _openssl(session.wan[0], leaf, "-tls1_3")
    said = _openssl(session.wan[0], leaf, version, "-cipher", "ALL:@SECLEVEL=0")
    assert "Cipher is (NONE)" in said
    assert "alert" in said or "unexpected eof" in said or "errno=104" in said


def _openssl(at: Endpoint, leaf: str, *options: str) -> str:
    command = ["openssl", "s_client", "-connect", str(at), "-cert", leaf, "-key", leaf, *options]
    done = subprocess.run(command, input=b"", capture_output=True, timeout=30, check=False)
    return (done.stdout + done.stderr).decode(errors="replace")


def test_a_stolen_ticket_after_the_lease_and_after_the_release(besieged: Siege, tmp_path: Path) -> None:
    """A ticket is a CA's key and listeners: when the session is over it opens nothing, whatever carried it."""
    with besieged.aps.client(besieged.alice[0]) as producer, besieged.alcf.client(besieged.alice[1]) as consumer:

        def theft(session: Opened) -> bool:
            thief = Intruder(tmp_path, session.uid)
            return thief.enters(session.wan[0], thief.context((session.ca, Uid(session.uid), Role.CONS)))

        def stolen(backend: str, *leases: int) -> Opened:
            """Steal while the session lives; a busy machine may need more than the shortest lease for that."""
            for lease_s in leases:
                with suppress(grpc.RpcError, AssertionError):
                    session = besieged.open(producer, consumer, backend, lease_s=lease_s)
                    if theft(session):
                        return session
            raise AssertionError("a ticket is what lets one in")

        released = [stolen(name, 0) for name in besieged.sessions]
        expired = [stolen(name, 3, 9, 27) for name in besieged.sessions]
        before = besieged.app.accepted
        for session in released:
            session.release()
        while {s.state for s in producer.list(pb.ListRequest()).sessions if s.uid in {e.uid for e in expired}} != {
            "EXPIRED"
        }:
            time.sleep(0.1)
        assert not any(theft(session) for session in released + expired)
        assert besieged.app.accepted == before
        for session in expired:
            session.release()
