"""What only a data server on another node can be asked: lost messages, a lost node, strangers at its port."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from s2cs import check
from s2cs.node import _credentials
from s2cs.node_settings import load_node
from s2cs.s2ds import contract
from s2cs.s2ds.contract import Change, Reservation, TunnelState
from s2cs.s2ds.local import LocalDataServer
from s2cs.s2ds.nodes import Nodes
from s2cs.s2ds.remote import client
from s2cs.s2ds.remote import s2ds_pb2 as pb
from s2cs.s2ds.remote.client import RemoteDataServer
from s2cs.s2ds.remote.link import Link, describe
from s2cs.s2ds.remote.s2ds_pb2_grpc import DataServerServicer, DataServerStub, add_DataServerServicer_to_server
from s2cs.settings_file import load
from scistream.errors import FailedPrecondition, ScistreamError, TryAgain, Unavailable
from scistream.vocabulary import Endpoint, PortRange, Rate, Role
from scistream.wire import grpc
from tests.support.nodes import NodeProcess, gateway_settings, link_to, made
from tests.support.nodes import node as node_process
from tests.support.ports import ports
from tests.support.tunnels import Session, answering, application, calling, config, flavour, own_sockets, processes_in

NOBODY = Endpoint("127.0.0.1", 9)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with ports(20) as range_, node_process(tmp_path_factory.mktemp("node"), range_, flavour("nginx")) as running:
        yield running


@asynccontextmanager
async def opened(link: Link) -> AsyncIterator[RemoteDataServer]:
    server = RemoteDataServer(link)
    await server.open()
    try:
        yield server
    finally:
        with suppress(ScistreamError):
            await server.close()


class Forgetful:
    """The stub of a node on a network that loses questions and answers."""

    def __init__(self, stub: Any, seed: int) -> None:
        self._stub = stub
        self._chance = random.Random(seed)
        self.lost = 0

    def __getattr__(self, method: str) -> Any:
        inner = getattr(self._stub, method)
        if method == "Watch":
            return inner

        async def call(request: Any, timeout: float, metadata: Any) -> Any:
            fate = self._chance.random()
            if fate < 0.35:
                self.lost += 1
                raise self._broken()
            answer = await inner(request, timeout=timeout, metadata=metadata)
            if fate < 0.7:
                self.lost += 1
                raise self._broken()
            return answer

        return call

    @staticmethod
    def _broken() -> grpc.aio.AioRpcError:
        nothing = grpc.aio.Metadata()
        return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, details="lost")


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.soak), pytest.param(2, marks=pytest.mark.soak)])
async def test_what_is_lost_is_sent_again_with_the_same_effect(node: NodeProcess, seed: int) -> None:
    async with opened(node.link) as server, application(answering(b"app")) as target:
        server._stub = stub = Forgetful(server._stub, seed)
        session = Session()
        spec = session.spec(Role.PROD, 2)
        free = server.free_ports(Role.PROD)
        reserved = await server.reserve(spec)
        await server.start(spec.id, session.bridge(reserved, Role.PROD, target))
        await server.update(spec.id, session.bridge(reserved, Role.PROD, target))
        (status,) = await server.list()
        assert (status.state, status.listeners) == (TunnelState.RUNNING, reserved.listeners)
        async with calling(reserved.listeners[1], session) as caller:
            assert await caller.ask(b"1") == b"app 1"
        await server.stop(spec.id)
        assert await server.list() == ()
        assert server.free_ports(Role.PROD) == free
        assert processes_in(node.tunnels) == []
        assert stub.lost


async def test_what_is_reserved_while_the_node_tells_what_it_has_is_not_taken_for_gone(
    node: NodeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, late, compared = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class SlowToList(DataServerStub):
        def __init__(self, channel: Any) -> None:
            super().__init__(channel)
            inner = self.List

            async def listed(*given: Any, **more: Any) -> Any:
                answer = await inner(*given, **more)
                told.set()
                await late.wait()
                return answer

            self.List = listed

    server = RemoteDataServer(node.link, lambda found: compared.set())
    await server.open()
    try:
        news = server.watch()
        compared.clear()
        monkeypatch.setattr(client, "DataServerStub", SlowToList)
        server._news.cancel()  # as a connection that breaks and is there again at once
        await told.wait()
        spec = Session().spec(Role.PROD)
        await server.reserve(spec)
        late.set()
        await compared.wait()
        await server.stop(spec.id)
    finally:
        await server.close()
    assert [event async for event in news] == []


async def test_a_node_that_is_killed_leaves_its_streams_and_takes_them_up_again(node: NodeProcess) -> None:
    """Also a reservation and a start whose answers went down with it."""
    session, other = Session(), Session()
    async with opened(node.link) as server, application(answering(b"app")) as target:
        watch = server.watch()
        reserved = await server.reserve(session.spec(Role.PROD, id="a"))
        bridge = session.bridge(reserved, Role.PROD, target)
        await server.start("a", bridge)
        spec = other.spec(Role.PROD, id="b")
        earlier = await server.reserve(spec)
        async with calling(reserved.listeners[0], session) as stream:
            assert await stream.ask(b"1") == b"app 1"
            node.stop(signal.SIGKILL)
            assert await stream.ask(b"2") == b"app 2"
            node.start()
            assert await stream.ask(b"3") == b"app 3"
            (a, b) = sorted(await server.list(), key=lambda status: status.id)
            assert (a.state, b.state) == (TunnelState.RUNNING, TunnelState.RESERVED)
        stub = server._stub
        again = pb.Call(id="of-the-process-before", again=True)
        answer = await stub.ReqListeners(
            pb.Reserve(call=again, id="b", uid=spec.uid, role="PROD", num_conn=1, backend="auto"), timeout=5
        )
        assert list(answer.listeners) == [str(each) for each in earlier.listeners]
        call = pb.Call(id="another", again=True)
        with pytest.raises(grpc.aio.AioRpcError) as fault:  # the same id for something else
            await stub.ReqListeners(pb.Reserve(call=call, id="b", uid="other", role="PROD", num_conn=1), timeout=5)
        assert fault.value.code() is grpc.StatusCode.ALREADY_EXISTS
        os.kill((await server.list("a"))[0].pids[0], signal.SIGKILL)
        assert [(await asyncio.wait_for(anext(watch), 10)).change for _ in "12"] == [Change.EXITED, Change.RUNNING]


async def test_a_lost_node_is_told_and_what_happened_meanwhile_when_it_is_back(node: NodeProcess) -> None:
    sessions = {name: Session() for name in "abc"}
    async with opened(node.link) as server:
        watch = server.watch()
        for name, session in sessions.items():
            reserved = await server.reserve(session.spec(Role.PROD, id=name))
            await server.start(name, session.bridge(reserved, Role.PROD, NOBODY))
        status = (await server.list("a"))[0]
        node.process.send_signal(signal.SIGSTOP)  # type: ignore[union-attr]  # it is there, and says nothing
        news = [await asyncio.wait_for(anext(watch), 20) for _ in sessions]
        assert {(event.id, event.change) for event in news} == {(name, Change.LOST) for name in sessions}
        assert "node n1 is lost" in news[0].reason
        assert "may go on" in news[0].reason
        assert (server.last("a").state, server.last("a").listeners) == (TunnelState.LOST, status.listeners)
        assert not any(info.available for info in server.backends())
        assert server.free_ports(Role.PROD) == 0
        for ask in (server.reserve(Session().spec(Role.PROD)), server.list(), server.stop("a")):
            with pytest.raises(Unavailable, match="node n1 is lost"):
                await ask
        node.stop(signal.SIGKILL)
        os.kill(status.pids[0], signal.SIGKILL)  # while nobody watches
        for path in (node.tunnels / "b").iterdir():  # and this one is gone altogether
            if path.name == "tunnel.json":
                path.unlink()
        node.start()
        told: dict[str, Change] = {}
        while told != {"a": Change.RUNNING, "b": Change.FATAL, "c": Change.RUNNING}:
            event = await asyncio.wait_for(anext(watch), 20)
            told[event.id] = event.change
            assert event.change is not Change.FATAL or "does not have it" in event.reason
        assert {each.id for each in await server.list()} == {"a", "c"}


async def test_a_start_that_another_s2cs_began_is_waited_for(tmp_path: Path) -> None:
    """As when the lead goes to another one in the midst of it: the way is open, and nobody is told that it was."""
    with ports(20) as range_, node_process(tmp_path, range_, flavour("haproxy")) as running:
        met = []
        async with opened(running.link) as first, opened(running.link) as second, application(answering(b"a")) as app:
            for name in "abcde":
                session = Session()
                reserved = await first.reserve(session.spec(Role.PROD, id=name))
                bridge = session.bridge(reserved, Role.PROD, app)
                begun = asyncio.create_task(first.start(name, bridge))
                while (status := (await second.list(name))[0]).state is TunnelState.RESERVED:
                    await asyncio.sleep(0)
                met.append(status.state)
                if status.state is TunnelState.STARTING:
                    await second.start(name, bridge)
                await begun
                async with calling(reserved.listeners[0], session) as caller:
                    assert await caller.ask(b"?") == b"a ?"
        assert TunnelState.STARTING in met


async def test_what_one_node_cannot_take_goes_to_another_that_has_room_for_it_by_then(tmp_path: Path) -> None:
    """Of what waits for a node that does not answer, no more comes to the next one than it can carry."""
    rate = Rate.parse("1Gb/s")
    with ExitStack() as stack:
        running = []
        for name in ("n1", "n2"):
            range_ = stack.enter_context(ports(8))
            running.append(stack.enter_context(node_process(tmp_path / name, range_, flavour("nginx"), name)))
        local = LocalDataServer(config(tmp_path / "local", running[0].ports, flavour("nginx")))
        links = {running[0].link: Rate.parse("9Gb/s"), running[1].link: rate}
        nodes = Nodes(links, local, tuple, lambda name: False, here=False)
        await nodes.open()
        running[0].process.send_signal(signal.SIGSTOP)  # type: ignore[union-attr]
        asked = [nodes.reserve(replace(Session().spec(Role.PROD, id=name), rate=rate)) for name in "abc"]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [each.node for each in found if isinstance(each, Reservation)] == ["n2"]
        assert [type(each) for each in found].count(Unavailable) == 2
        running[0].process.send_signal(signal.SIGCONT)  # type: ignore[union-attr]
        while any(state.lost for state in nodes.states()):
            await asyncio.sleep(0.05)
        while len(await nodes.list()) > 1:  # what n1 has of them is stopped
            await asyncio.sleep(0.05)
        await nodes.close()


async def test_a_call_given_up_before_it_comes_is_not_carried_out(node: NodeProcess) -> None:
    async with node.link.channel() as channel:
        stub = DataServerStub(channel)
        call = pb.Call(id="late")
        await stub.GiveUp(call, timeout=5)
        with pytest.raises(grpc.aio.AioRpcError, match="given up"):
            await stub.ReqListeners(pb.Reserve(call=call, id="x", uid="u", role="PROD", num_conn=1), timeout=5)
        assert (await stub.List(pb.Tunnels(), timeout=5)).tunnels == []


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("ReqListeners", pb.Reserve(id="x", uid="u", role="PROD", num_conn=1)),
        ("ReqListeners", pb.Reserve(call=pb.Call(id="1"), id="x", uid="../u", role="PROD", num_conn=1)),
        ("ReqListeners", pb.Reserve(call=pb.Call(id="2"), id="x", uid="u", role="BOTH", num_conn=1)),
        ("ReqListeners", pb.Reserve(call=pb.Call(id="3"), id="../x", uid="u", role="PROD", num_conn=1)),
        ("StartLstn", pb.Lead(call=pb.Call(id="4"), id="x", targets=["10.0.0.1:1"])),
        ("StartLstn", pb.Lead(call=pb.Call(id="5"), id="x", targets=["nowhere"], certificate=b"x")),
    ],
)
async def test_messages_that_mean_nothing_are_refused(node: NodeProcess, method: str, message: Any) -> None:
    async with node.link.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as fault:
            await getattr(DataServerStub(channel), method)(message, timeout=5)
        assert fault.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (await DataServerStub(channel).List(pb.Tunnels(), timeout=5)).tunnels == []


class Strange(DataServerServicer):
    """A node of another version, or of nobody's: what it answers can be read, and means nothing."""

    def __init__(self, tunnels: list[pb.Tunnel]) -> None:
        self.tunnels = tunnels

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.News]:
        while True:
            yield pb.News(node=pb.Node(name="n1"))
            await asyncio.sleep(0.2)

    async def List(self, request: pb.Tunnels, context: Any) -> pb.TunnelList:
        return pb.TunnelList(tunnels=self.tunnels)

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.Node:
        return pb.Node(name="n1", wan_port=30999, clock_ms=round((time.time() + 3600) * 1000))

    async def ReqListeners(self, request: pb.Reserve, context: Any) -> pb.Reservation:
        return pb.Reservation(backend="nginx", listeners=["nowhere"] if request.id == "x" else ["127.0.0.1:9"])


async def test_a_node_that_says_what_is_not_understood_is_lost_and_holds_nobody_up(tmp_path: Path) -> None:
    """Nor does S2CS start never, nor take for a node in touch one whose tunnels it cannot know."""
    with ports(4) as range_:
        address = Endpoint("127.0.0.1", range_.first)
        there = made(gateway_settings(tmp_path / "g"), "n1", address, PortRange(20000, 20001), tmp_path / "n1")
        node, server = Strange([pb.Tunnel(id="a", state="DANCING")]), grpc.aio.server()
        add_DataServerServicer_to_server(node, server)
        server.add_secure_port(str(address), _credentials(load_node(there.bundle))[0])
        await server.start()
        async with opened(there.link) as found:  # and not later than it is lost
            assert "DANCING" in found.lost
            assert "compare versions" in found.lost
            node.tunnels = []
            while found.lost:
                await asyncio.sleep(0.05)
            with pytest.raises(Unavailable, match="not known here: address 'nowhere'"):
                await found.reserve(Session().spec(Role.PROD, id="x"))
            with pytest.raises(Unavailable, match="reserved 1 of 2"):
                await found.reserve(Session().spec(Role.PROD, 2))
            looked_at = await asyncio.to_thread(check.check, load(tmp_path / "g/s2cs.toml"))
            faults = [finding.text for finding in looked_at if "n1" in finding.text and not finding.ok]
            assert len(faults) == 1
            assert re.search(r"clock of node n1 is 3[56]\d\d s ahead of this host's", faults[0])
            assert any("n1 has wan_port 30999, and this gateway 0" in finding.text for finding in looked_at)
            await server.stop(0)


# Who is let in


async def test_only_the_gateway_is_let_in_and_only_the_node_is_believed(node: NodeProcess, tmp_path: Path) -> None:
    info = await describe(node.link)
    assert (info.name, info.wan_port) == ("n1", 0)
    assert abs(info.ahead_s) < 60
    settings = gateway_settings(tmp_path / "other")
    with ports(20) as range_:
        made(settings, "n1", node.link.address, range_, tmp_path / "n1")
    stranger = link_to(settings, "n1")
    with pytest.raises(Unavailable, match="cannot be reached"):  # it has a certificate of its own, and not this one
        await describe(replace(node.link, certificate=stranger.certificate, key=stranger.key))
    with pytest.raises(Unavailable, match="not the one that is known here"):
        await describe(replace(node.link, node_certificate=stranger.node_certificate))
    key = (tmp_path / "n1" / "n1.toml").read_text().partition('key = """\n')[2].partition('"""')[0]
    with pytest.raises(Unavailable, match="cannot be reached"):  # a node's certificate opens no other node
        await describe(replace(node.link, certificate=stranger.node_certificate, key=key.encode()))
    names = grpc.ssl_channel_credentials(node.link.node_certificate)
    options = [("grpc.ssl_target_name_override", "n1.node.scistream.internal")]
    async with grpc.aio.secure_channel(str(node.link.address), names, options=options) as channel:
        with pytest.raises(grpc.aio.AioRpcError):  # none at all
            await DataServerStub(channel).Describe(pb.DescribeRequest(), timeout=5)


async def test_what_strangers_send_is_refused_and_forgotten(node: NodeProcess) -> None:
    chance = random.Random(0)
    greetings = (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff", b"")
    before = own_sockets(node.pid)
    held = []
    for number in range(40):
        stranger = socket.create_connection((node.link.address.host, node.link.address.port), 5)
        with suppress(OSError):
            stranger.sendall(greetings[number % 4] + chance.randbytes(chance.randrange(2000)))
        held.append(stranger)
    assert (await describe(node.link)).name == "n1"  # however many hang there
    for stranger in held:
        stranger.close()
    for _ in range(100):
        if own_sockets(node.pid) <= before:
            break
        await asyncio.sleep(0.1)
    assert own_sockets(node.pid) <= before


@pytest.mark.soak
async def test_a_node_killed_again_and_again_in_the_middle_loses_and_leaves_nothing(node: NodeProcess) -> None:
    chance = random.Random(0)
    async with opened(node.link) as server, application(answering(b"app")) as target:
        free = server.free_ports(Role.PROD)
        begun: list[str] = []
        ended: list[str] = []

        async def life() -> None:
            session = Session()
            spec = session.spec(Role.PROD, 2)
            begun.append(spec.id)
            with suppress(Unavailable):  # it takes long to come back
                reserved = await server.reserve(spec)
                await server.start(spec.id, session.bridge(reserved, Role.PROD, target))
                async with calling(reserved.listeners[0], session) as caller:
                    assert await caller.ask(b"1") == b"app 1"
                await server.stop(spec.id)
                ended.append(spec.id)

        for _ in range(15):
            lives = [asyncio.create_task(life()) for _ in range(3)]
            await asyncio.sleep(chance.random() * 0.5)
            node.stop(signal.SIGKILL)
            await asyncio.to_thread(node.start)
            await asyncio.gather(*lives)  # each as if nothing had happened, or told
        while server.lost:
            await asyncio.sleep(0.1)
        for id in set(begun) - set(ended):
            await server.stop(id)
        assert ended
        assert await server.list() == ()
        assert server.free_ports(Role.PROD) == free
        assert processes_in(node.tunnels) == []
        assert [path for path in node.tunnels.rglob("*") if path.name != "lock"] == []


def test_the_port_speaks_tls_1_3_only(node: NodeProcess) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    address = (node.link.address.host, node.link.address.port)
    with socket.create_connection(address, 5) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain)
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    with socket.create_connection(address, 5) as plain, context.wrap_socket(plain) as secure:
        assert secure.version() == "TLSv1.3"


async def test_the_tunnels_key_stays_on_the_node(node: NodeProcess) -> None:
    session = Session()
    async with opened(node.link) as server:
        reserved = await server.reserve(session.spec(Role.PROD, id="x"))
        key = (node.tunnels / "x" / "key.pem").read_text()
        assert b"PRIVATE" not in reserved.csr
        assert "PRIVATE KEY" in key
        assert key.splitlines()[1] not in node.log
        with pytest.raises(FailedPrecondition):
            await server.update("x", session.bridge(reserved, Role.PROD, NOBODY))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (contract.Traffic, pb.Traffic),
        (contract.Leg, pb.Leg),
        (contract.TunnelStatus, pb.Tunnel),
        (contract.BackendInfo, pb.Backend),
        (contract.Printed, pb.Printed),
        (contract.LegCheck, pb.LegCheck),
    ],
)
def test_messages_have_all_that_the_contract_has(kind: type, message: Any) -> None:
    assert {each.name for each in fields(kind)} == {field.name for field in message.DESCRIPTOR.fields}


async def test_a_node_obeys_the_s2cs_that_began_to_lead_last(tmp_path: Path) -> None:
    """Also after a restart of the node; one that leads no longer may look, and one that knows it does not ask."""

    def nobody() -> int:
        raise TryAgain("this S2CS does not lead any more; ask again")

    with ports(4) as range_, node_process(tmp_path, range_, flavour("nginx")) as running:
        async with opened(replace(running.link, term=lambda: 7)) as old:
            await old.reserve(Session().spec(Role.PROD, id="a"))
            async with opened(replace(running.link, term=lambda: 9)) as new:
                with pytest.raises(FailedPrecondition, match=r"obeys an S2CS of term 9, and this one's is 7"):
                    await old.stop("a")
                assert [status.id for status in await old.list()] == ["a"]
                await new.stop("a")
        await asyncio.to_thread(running.stop)
        await asyncio.to_thread(running.start)
        for term, kind, words in (
            (lambda: 8, FailedPrecondition, "obeys an S2CS of term 9"),
            (None, FailedPrecondition, "this one's is 0"),
            (nobody, TryAgain, "does not lead"),
        ):
            server = RemoteDataServer(replace(running.link, term=term))
            server.lost, server._stub = "", DataServerStub(channel := running.link.channel())
            with pytest.raises(kind, match=words):
                await server.reserve(Session().spec(Role.PROD))
            await channel.close()
        async with opened(replace(running.link, term=lambda: 9)) as new:
            await new.reserve(Session().spec(Role.PROD))
        assert processes_in(running.tunnels) == []
