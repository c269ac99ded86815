"""One WAN port for all sessions: who gets through to which, and what becomes of it when something dies."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from s2cs.s2ds import router
from s2cs.s2ds.contract import Bridge, PreSharedKey, TunnelState
from s2cs.s2ds.local import LocalDataServer
from s2cs.s2ds.router import DIRECTORY
from scistream.errors import FailedPrecondition, Unavailable
from scistream.vocabulary import Endpoint, PortRange, Role
from scistream.x509 import way_name
from tests.support.gateways import GatewayProcess, gateway
from tests.support.ports import ports
from tests.support.sessions import echo, open_pair
from tests.support.tunnels import (
    Session,
    answering,
    application,
    calling,
    client_context,
    config,
    flavour,
    kill,
    listening,
    local,
    open_way,
    processes_in,
)

NAME = "one-port/nginx"


@pytest.fixture(scope="module")
def range_() -> Iterator[PortRange]:
    with ports(20) as found:
        yield found


def refused(at: Endpoint, session: Session, name: str | None) -> bool:
    """Tell whether a connection with good credentials of a session gets nowhere, for the name that it asks for."""
    tls = client_context(session)
    tls.check_hostname = False
    with socket.create_connection((at.host, at.port), 10) as plain:
        try:
            with tls.wrap_socket(plain, server_hostname=name) as connection:
                connection.sendall(b"x\n")
                return not connection.recv(10)
        except (ssl.SSLError, ConnectionError):
            return True


@pytest.mark.parametrize(
    "names", [(a, b) for a in ("nginx", "haproxy", "stunnel") for b in ("nginx", "haproxy", "stunnel")], ids="-".join
)
async def test_each_connection_arrives_at_its_own_end(
    names: tuple[str, str], tmp_path: Path, range_: PortRange
) -> None:
    producer, consumer = (flavour(name) for name in (f"one-port/{names[0]}", names[1]))
    async with (
        local(config(tmp_path / "p", range_, producer)) as one,
        local(config(tmp_path / "c", range_, consumer, address="127.0.0.2")) as other,
        application(answering(b"a")) as a,
        application(answering(b"b")) as b,
    ):
        way = await open_way(one, other, (a, b), 2)
        assert len(set(way.producer.listeners)) == 1
        for listener, name in zip(way.listeners, (b"a", b"b"), strict=True):
            async with calling(listener) as caller:
                assert await caller.ask(b"?") == name + b" ?"
                (status,) = await one.list()
                assert status.traffic.wan.rtt_us == 0  # it is loopback's, and so nothing is said


async def test_a_pre_shared_key_is_refused_where_no_name_leads_to_it(tmp_path: Path, range_: PortRange) -> None:
    """At the producer's side only, whatever the settings of S2CS say: a node has its own `wan_port`."""
    async with local(config(tmp_path, range_, flavour("one-port/stunnel"))) as server:
        for role in Role:
            session = Session()
            spec = session.spec(role, backend="stunnel")
            await server.reserve(spec)
            bridge = Bridge((Endpoint("127.0.0.1", 9),), PreSharedKey(os.urandom(32)))
            if role is Role.CONS:
                await server.start(spec.id, bridge)
                continue
            with pytest.raises(FailedPrecondition, match="no names by which one WAN port"):
                await server.start(spec.id, bridge)
        assert [status.state for status in await server.list()] == [TunnelState.RESERVED, TunnelState.RUNNING]


async def test_a_name_leads_to_its_own_session_only(tmp_path: Path, range_: PortRange) -> None:
    async with local(config(tmp_path, range_, flavour(NAME))) as server, application(answering(b"mine")) as target:
        mine, same, case = Session("scan-7"), Session("scan-7"), Session("Scan-7")  # of three users
        for session in (mine, same, case):
            spec = session.spec(Role.PROD, id=f"{session.uid}-{id(session)}")
            reserved = await server.reserve(spec)
            await server.start(spec.id, session.bridge(reserved, Role.PROD, target))
        (at,) = reserved.listeners
        names = {session: way_name(session.ca.certificate, session.uid, 0) for session in (mine, same, case)}
        assert len(set(names.values())) == 3
        async with calling(at, mine) as caller:
            assert await caller.ask(b"?") == b"mine ?"
        for name in (
            names[same],
            names[case],
            names[mine].upper(),
            names[mine] + ".x",
            mine.name(Role.PROD),
            "x",
            None,
        ):
            assert refused(at, mine, name), name
        assert refused(at, mine, way_name(mine.ca.certificate, mine.uid, 1))  # it has one connection
        await server.stop(f"{mine.uid}-{id(mine)}")
        assert refused(at, mine, names[mine])
        async with calling(at, same) as caller:
            assert await caller.ask(b"?") == b"mine ?"


async def test_what_is_no_handshake_is_ended_at_once(tmp_path: Path, range_: PortRange) -> None:
    async with local(config(tmp_path, range_, flavour(NAME))):
        for junk in (
            b"GET / HTTP/1.0\r\n\r\n",
            b"\r\n" * 50,
            b"\x16\x03\x01\xff\xff" + bytes(100),
            bytes.fromhex("14f8 d802 9640 e4c0"),  # a record's type, but not a handshake's
            bytes.fromhex("16cf 5442 d267 79d9"),  # a handshake's, of no known version
            bytes.fromhex("ff1a 341e dc76 a3ed"),  # the length of an SSL 2 hello
        ):
            with socket.create_connection(("127.0.0.1", range_.last + 1), 20) as connection:
                connection.sendall(junk)
                connection.settimeout(8)  # the time for a handshake is longer
                with suppress(ConnectionError):
                    assert connection.recv(1) == b"", junk


async def test_a_relay_that_dies_comes_back_with_all_its_ways(tmp_path: Path, range_: PortRange) -> None:
    async with local(config(tmp_path, range_, flavour(NAME))) as server, application(answering(b"a")) as target:
        session = Session()
        reserved = await server.reserve(session.spec(Role.PROD, 2, id="x"))
        await server.start("x", session.bridge(reserved, Role.PROD, target))
        (at, _) = reserved.listeners
        for _ in range(3):
            (relay,) = processes_in(tmp_path / DIRECTORY)
            kill(relay)
            async with calling(at, session, 1) as caller:  # it waits in the backlog
                assert await caller.ask(b"?") == b"a ?"
            assert processes_in(tmp_path / DIRECTORY) != [relay]
        (status,) = await server.list()
        assert status.restarts == 0


async def test_a_relay_that_does_not_answer_is_told_of_and_gets_what_it_missed(
    tmp_path: Path, range_: PortRange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "_ANSWER_S", 0.3)
    monkeypatch.setattr("s2cs.s2ds.local.TIDY_S", 0.2)
    async with local(config(tmp_path, range_, flavour(NAME))) as server, application(answering(b"a")) as target:
        first, second = Session(), Session()
        reserved = await server.reserve(first.spec(Role.PROD, id="first"))
        await server.start("first", first.bridge(reserved, Role.PROD, target))
        other = await server.reserve(second.spec(Role.PROD, id="second"))
        (relay,) = processes_in(tmp_path / DIRECTORY)
        os.kill(relay, signal.SIGSTOP)
        with pytest.raises(Unavailable, match=f"the relay of WAN port {range_.last + 1} does not answer"):
            await server.start("second", second.bridge(other, Role.PROD, target))
        await asyncio.wait_for(server.stop("first"), 10)
        assert processes_in(tmp_path / "first") == []
        os.kill(relay, signal.SIGCONT)
        (at,) = other.listeners
        old, new = (way_name(each.ca.certificate, each.uid, 0) for each in (first, second))
        async with asyncio.timeout(20):
            while await asyncio.to_thread(refused, at, second, new):
                await asyncio.sleep(0.1)
        assert await asyncio.to_thread(refused, at, first, old)
        async with calling(at, second) as caller:
            assert await caller.ask(b"?") == b"a ?"
        assert processes_in(tmp_path / DIRECTORY) == [relay]


async def test_an_update_given_up_before_the_relay_knew_of_it_is_made_up_for(tmp_path: Path, range_: PortRange) -> None:
    async with local(config(tmp_path, range_, flavour(NAME))) as server, application(answering(b"a")) as target:
        session, renewed = Session("scan-7"), Session("scan-7")
        reserved = await server.reserve(session.spec(Role.PROD, id="x"))
        await server.start("x", session.bridge(reserved, Role.PROD, target))
        other = Session()
        busy = await server.reserve(other.spec(Role.PROD, id="busy"))
        (relay,) = processes_in(tmp_path / DIRECTORY)
        os.kill(relay, signal.SIGSTOP)
        waits = asyncio.create_task(server.start("busy", other.bridge(busy, Role.PROD, target)))
        async with asyncio.timeout(20):
            while (await server.list("busy"))[0].state is not TunnelState.RUNNING:
                await asyncio.sleep(0.02)
        update = asyncio.create_task(server.update("x", renewed.bridge(reserved, Role.PROD, target)))
        await asyncio.sleep(0.1)
        update.cancel()
        with pytest.raises(asyncio.CancelledError):
            await update
        os.kill(relay, signal.SIGCONT)
        await waits
        await server.update("x", renewed.bridge(reserved, Role.PROD, target))
        async with calling(reserved.listeners[0], renewed) as caller:
            assert await caller.ask(b"?") == b"a ?"


async def test_a_relay_that_cannot_come_up_holds_nobody_up(
    tmp_path: Path, range_: PortRange, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with local(config(tmp_path, range_, flavour(NAME))) as server, application(answering(b"a")) as target:
        session, later = Session(), Session()
        reserved = await server.reserve(session.spec(Role.PROD, id="x"))
        await server.start("x", session.bridge(reserved, Role.PROD, target))
        (relay,) = processes_in(tmp_path / DIRECTORY)
        with monkeypatch.context() as patch:
            patch.setattr(router, "_TEMPLATE", "none.cfg.j2")
            os.kill(relay, signal.SIGKILL)
            await asyncio.sleep(0.5)
            late = await server.reserve(later.spec(Role.PROD, id="y"))
            await asyncio.wait_for(server.start("y", later.bridge(late, Role.PROD, target)), 10)
            await asyncio.wait_for(server.stop("x"), 10)
            assert processes_in(tmp_path / DIRECTORY) == []
        async with calling(late.listeners[0], later) as caller:  # it is tried again, with the names that there are now
            assert await caller.ask(b"?") == b"a ?"


async def test_a_server_that_starts_again_takes_the_relay_up(tmp_path: Path, range_: PortRange) -> None:
    settings = config(tmp_path, range_, flavour(NAME))
    first, session = LocalDataServer(settings), Session()
    await first.open()
    async with application(answering(b"a")) as target:
        reserved = await first.reserve(session.spec(Role.PROD, id="x"))
        await first.start("x", session.bridge(reserved, Role.PROD, target))
        (at,) = reserved.listeners
        relay = processes_in(tmp_path / DIRECTORY)
        async with calling(at, session) as caller:
            first.let_go()
            assert await caller.ask(b"1") == b"a 1"
            kill(*processes_in(tmp_path / "x"))  # its proxy dies as well while nobody watches
            async with local(settings) as second:
                assert processes_in(tmp_path / DIRECTORY) == relay
                async with calling(at, session) as new:
                    assert await new.ask(b"2") == b"a 2"
                kill(relay[0])
                async with calling(at, session) as new:
                    assert await new.ask(b"3") == b"a 3"
                assert [status.id for status in await second.list()] == ["x"]
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize("change", [0, 2])
async def test_sessions_of_another_wan_port_are_ended(tmp_path: Path, range_: PortRange, change: int) -> None:
    settings = config(tmp_path, range_, flavour(NAME))
    first, session = LocalDataServer(settings), Session()
    await first.open()
    reserved = await first.reserve(session.spec(Role.PROD, id="x"))
    await first.start("x", session.bridge(reserved, Role.PROD, Endpoint("127.0.0.1", 9)))
    first.let_go()
    wan_port = range_.last + change if change else 0
    async with local(config(tmp_path, range_, flavour("nginx"), wan_port=wan_port)) as second:
        assert await second.list() == ()
        assert listening(PortRange(range_.first, range_.last + 2)) == ({wan_port} if wan_port else set())
        assert processes_in(tmp_path / "x") == []
        assert bool(processes_in(tmp_path / DIRECTORY)) == bool(wan_port)


async def test_a_port_that_is_taken_and_a_proxy_that_is_missing_are_named(tmp_path: Path, range_: PortRange) -> None:
    port, missing = range_.last + 1, {"haproxy": tmp_path / "none"}
    first = LocalDataServer(config(tmp_path / "a", range_, flavour(NAME)))
    second = LocalDataServer(config(tmp_path / "b", range_, flavour(NAME), programs=missing))
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(FailedPrecondition, match=f"wan_port {port} cannot be served: another program"),
    ):
        await first.open()
    with pytest.raises(FailedPrecondition, match=r"wan_port needs HAProxy.*/none is not there"):
        await second.open()
    for server in (first, second):
        await server.close()
    assert processes_in(tmp_path) == []


# Through whole gateways


def test_streams_and_the_relay_outlive_the_control_server(tmp_path: Path) -> None:
    keep = {"SCISTREAM_SERVER__ON_SHUTDOWN": "keep"}
    with gateway(tmp_path / "p", **keep) as producer, gateway(tmp_path / "c") as consumer, echo() as app:
        producer.environ["SCISTREAM_NETWORK__WAN_PORT"] = str(producer.first_port + producer.ports - 1)
        _again(producer, signal.SIGTERM)
        with producer.client() as one, consumer.client() as other:
            opened = [open_pair(one, other, [str(app.endpoint)], 2, (backend, "")) for backend in ("nginx", "haproxy")]
            assert {str(endpoint) for each in opened for endpoint in each.wan} == {
                f"127.0.0.1:{producer.environ['SCISTREAM_NETWORK__WAN_PORT']}"
            }
            with opened[0].connect(1) as stream:
                _asked(stream)
                _again(producer, signal.SIGKILL)
                _asked(stream)
                for each in opened:
                    with each.connect() as new:
                        _asked(new)
                for each in opened:
                    each.release()
                assert stream.recv(1) == b""
        producer.stop()


def _again(running: GatewayProcess, number: int) -> None:
    running.stop(number)
    running.start()


def _asked(stream: socket.socket) -> None:
    stream.settimeout(20)
    stream.sendall(b"hello")
    assert stream.recv(5, socket.MSG_WAITALL) == b"hello"
