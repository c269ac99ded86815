"""The S2DS contract, on every backend. A further implementation is a further case of `open_server`."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from s2cs.s2ds.backends import BACKENDS
from s2cs.s2ds.contract import Change, DataServer, TunnelState
from s2cs.s2ds.launchers import LAUNCHERS
from s2cs.s2ds.local import LocalDataServer
from s2cs.s2ds.nodes import Nodes
from s2cs.s2ds.remote.client import RemoteDataServer
from s2cs.s2ds.remote.link import Link
from s2cs.s2ds.router import DIRECTORY
from scistream.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ScistreamError,
    Unavailable,
)
from scistream.vocabulary import Endpoint, PortRange, Rate, Role
from tests.support.nodes import NodeProcess
from tests.support.nodes import node as node_process
from tests.support.ports import ports
from tests.support.tunnels import (
    FLAVOURS,
    ONE_PORT,
    Flavour,
    Session,
    answering,
    application,
    calling,
    config,
    flavour,
    listening,
    local,
    own_sockets,
    processes_in,
)

Open = Callable[..., AbstractAsyncContextManager[DataServer]]
NOBODY = Endpoint("127.0.0.1", 9)


class Node:
    """A node that data servers of one implementation and backend run on, and all that can be seen of it."""

    def __init__(
        self,
        backend: str,
        directory: Path,
        range_: PortRange,
        open_server: Open,
        wan_port: int = 0,
        holders: tuple[int | str, ...] = ("self",),
    ) -> None:
        self.backend = backend
        self.holders = holders  # the processes that hold the listeners
        self.directories = (directory,)
        self.ports = range_
        self.open = open_server
        self.wan_port = wan_port  # that all sessions share, if they do

    def sockets(self) -> set[str]:
        """The sockets that who holds the listeners has."""
        return set().union(*map(own_sockets, self.holders))

    def processes(self) -> set[int]:
        """The processes of tunnels."""
        routers = [each / DIRECTORY for each in self.directories]  # end with the server, not with a tunnel
        ours = {pid for each in self.directories for pid in processes_in(each)}
        return ours - {pid for each in routers if each.exists() for pid in processes_in(each)}

    def leftovers(self) -> list[object]:
        """What a stopped tunnel must not leave: processes, listening ports, files, sockets of this process."""
        paths = (path for each in self.directories for path in each.rglob("*"))
        files = [path for path in paths if path.name != "lock" and DIRECTORY not in path.parts]
        return [*self.processes(), *sorted(listening(self.ports)), *files]


@asynccontextmanager
async def remote(link: Link) -> AsyncIterator[DataServer]:
    """Open the data server of a node that runs."""
    server = RemoteDataServer(link)
    await server.open()
    try:
        yield server
    finally:
        await server.close()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Callable[[str], NodeProcess]]:
    """Run a node a backend, for all tests that ask nothing special of it."""
    with ExitStack() as stack:

        @cache
        def running(name: str) -> NodeProcess:
            directory = Path(stack.enter_context(TemporaryDirectory()))
            return stack.enter_context(node_process(directory, stack.enter_context(ports(20)), flavour(name)))

        yield running


@pytest.fixture(scope="module")
def pairs() -> Iterator[Callable[[str], list[NodeProcess]]]:
    """Run two nodes a backend, for the same."""
    with ExitStack() as stack:

        @cache
        def running(name: str) -> list[NodeProcess]:
            directory = Path(stack.enter_context(TemporaryDirectory()))
            return stack.enter_context(two_nodes(directory, flavour(name)))

        yield running


SYSTEMD = [pytest.param(f"systemd/{name}", marks=pytest.mark.engines) for name in FLAVOURS]
DOCKER = [pytest.param(f"docker/{name}", marks=pytest.mark.engines) for name in BACKENDS]
PLACES = [
    *(f"local/{name}" for name in FLAVOURS),
    *ONE_PORT,
    *SYSTEMD,
    *DOCKER,
    "remote/nginx",
    *(pytest.param(f"remote/{name}", marks=pytest.mark.soak) for name in FLAVOURS if name != "nginx"),
    pytest.param("remote/one-port/nginx", marks=pytest.mark.soak),
    *(pytest.param(f"nodes/{name}", marks=pytest.mark.soak) for name in ("nginx", "haproxy")),
]


@pytest.fixture(params=PLACES)
def node(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    nodes: Callable[[str], NodeProcess],
    pairs: Callable[[str], list[NodeProcess]],
) -> Iterator[Node]:
    place, _, name = request.param.partition("/")
    if place == "remote":
        yield from on_a_node(nodes(name), flavour(name), tmp_path)
        return
    if place == "nodes":
        yield from on_two_nodes(pairs(name), flavour(name), tmp_path)
        return
    launcher = place if place in LAUNCHERS else "process"
    of_all: dict[str, object] = {"launcher": launcher}
    if launcher == "docker":
        of_all["containers"] = request.getfixturevalue("docker").containers
    elif lacking := LAUNCHERS[launcher].lacks():
        pytest.skip(lacking)
    kind = flavour(request.param if place == "one-port" else name)
    with ports(20) as range_:

        def open_server(**more: object) -> AbstractAsyncContextManager[DataServer]:
            more = {**of_all, **more}
            return local(config(tmp_path, more.pop("ports", range_), kind, **more))  # type: ignore[arg-type]

        made = Node(kind.backend, tmp_path, range_, open_server, kind.wan_port(range_))
        yield made
        assert made.leftovers() == []
        assert not (tmp_path / DIRECTORY).exists()
        assert listening(PortRange(range_.last + 1, range_.last + 1)) == set()


def on_a_node(process: NodeProcess, kind: Flavour, directory: Path) -> Iterator[Node]:
    """Give a node that runs, or another one where a test wants it to be different."""
    with ExitStack() as stack:

        def open_server(**more: object) -> AbstractAsyncContextManager[DataServer]:
            if not more:
                return remote(process.link)
            other = stack.enter_context(node_process(directory, stack.enter_context(ports(20)), kind, **more))
            made.directories, made.ports = (other.tunnels,), other.ports
            return remote(other.link)

        wan_port = kind.wan_port(process.ports)
        made = Node(kind.backend, process.tunnels, process.ports, open_server, wan_port, holders=(process.pid,))
        yield made
        assert made.leftovers() == []


@contextmanager
def two_nodes(directory: Path, kind: Flavour, **changes: object) -> Iterator[list[NodeProcess]]:
    """Run two nodes with 20 ports each, one after the other, and their control ports behind these."""
    with ports(42) as all_, ExitStack() as stack:
        ranges = (PortRange(all_.first + begin, all_.first + begin + 19) for begin in (0, 20))
        yield [
            stack.enter_context(node_process(directory, range_, kind, f"n{i}", all_.first + 39 + i, **changes))
            for i, range_ in enumerate(ranges, 1)
        ]


@asynccontextmanager
async def as_one(processes: list[NodeProcess], directory: Path) -> AsyncIterator[DataServer]:
    """Open the data server of several nodes; this host takes no sessions."""
    here = LocalDataServer(config(directory / "here", PortRange(1024, 1024), flavour("nginx")))
    server = Nodes({each.link: Rate() for each in processes}, here, tuple, lambda name: False, here=False)
    await server.open()
    try:
        yield server
    finally:
        await server.close()


def on_two_nodes(processes: list[NodeProcess], kind: Flavour, directory: Path) -> Iterator[Node]:
    """Give two nodes that run as one, or others where a test wants them to be different."""
    with ExitStack() as stack:

        def see(seen: list[NodeProcess]) -> None:
            made.directories = tuple(each.tunnels for each in seen)
            made.ports = PortRange(seen[0].ports.first, seen[1].ports.last)
            made.holders = tuple(each.pid for each in seen)

        def open_server(**more: object) -> AbstractAsyncContextManager[DataServer]:
            if not more:
                return as_one(processes, directory)
            others = stack.enter_context(two_nodes(directory, kind, **more))
            see(others)
            return as_one(others, directory)

        made = Node(kind.backend, directory, PortRange(1, 1), open_server)
        see(processes)
        yield made
        assert made.leftovers() == []


@pytest.fixture
async def server(node: Node) -> AsyncIterator[DataServer]:
    before = node.sockets()
    async with node.open() as opened:
        yield opened
    gc.collect()  # an exception that a test has caught may name its connection, in a circle
    for _ in range(100):
        if node.sockets() <= before:
            return
        await asyncio.sleep(0.05)  # a node notices a moment later that nobody calls any more
    assert node.sockets() <= before


@asynccontextmanager
async def running(
    server: DataServer, num_conn: int = 1, name: bytes = b"app"
) -> AsyncIterator[tuple[Session, tuple[Endpoint, ...]]]:
    """Run a producer's tunnel to an application that answers with a name."""
    async with application(answering(name)) as target:
        session = Session()
        spec = session.spec(Role.PROD, num_conn)
        reserved = await server.reserve(spec)
        await server.start(spec.id, session.bridge(reserved, Role.PROD, target))
        yield session, reserved.listeners
        await server.stop(spec.id)


async def leader(server: DataServer) -> int:
    """The process that a lone tunnel's data goes through."""
    (status,) = await server.list()
    return status.pids[0]


async def test_reserve_takes_ports_that_do_not_listen_yet(node: Node, server: DataServer) -> None:
    free = server.free_ports(Role.PROD)
    reserved = await server.reserve(Session().spec(Role.PROD, 4))
    assert reserved.backend == node.backend
    assert server.free_ports(Role.PROD) == free - 4
    assert listening(node.ports) == set()
    if node.wan_port:
        assert [e.port for e in reserved.listeners] == [node.wan_port] * 4
        return
    assert len({e.port for e in reserved.listeners}) == 4
    assert all(node.ports.first <= e.port <= node.ports.last for e in reserved.listeners)
    for endpoint in reserved.listeners:
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind((endpoint.host, endpoint.port))
    (status,) = await server.list()
    assert (status.state, status.pids, status.listeners) == (TunnelState.RESERVED, (), reserved.listeners)


async def test_list_gives_all_or_those_asked_for(server: DataServer) -> None:
    session = Session()
    for id in ("a", "b", "c"):
        await server.reserve(session.spec(Role.PROD, id=id))
    assert {status.id for status in await server.list()} == {"a", "b", "c"}
    assert {status.id for status in await server.list("c", "a", "unknown")} == {"a", "c"}
    assert await server.list("unknown") == ()


async def test_the_request_is_for_a_key_that_only_this_tunnel_has(server: DataServer) -> None:
    session = Session()
    mine = await server.reserve(session.spec(Role.PROD, id="a"))
    other = await server.reserve(session.spec(Role.PROD, id="b"))
    assert mine.csr != other.csr
    with pytest.raises(InvalidArgument, match="not for the key"):
        await server.start("a", session.bridge(other, Role.PROD, NOBODY))
    await server.start("a", session.bridge(mine, Role.PROD, NOBODY))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"backend": "nosuch"}, InvalidArgument, "nosuch.*nginx"),
        ({"num_conn": 0}, InvalidArgument, "num_conn 0"),
        ({"num_conn": 21}, ResourceExhausted, "20 (free ports|ports of .* are free)"),
        ({"num_conn": 10**6}, ResourceExhausted, "20 (free ports|ports of .* are free)"),
        ({"id": "../x"}, InvalidArgument, "tunnel id"),
    ],
)
async def test_reserve_refuses_and_keeps_nothing(
    node: Node, server: DataServer, changes: dict[str, object], error: type[ScistreamError], message: str
) -> None:
    before = node.sockets()
    with pytest.raises(error, match=message):
        await server.reserve(Session().spec(Role.PROD, **changes))  # type: ignore[arg-type]
    assert node.sockets() == before
    assert await server.list() == ()


async def test_taken_ports_are_skipped_and_a_full_range_is_told(node: Node, server: DataServer) -> None:
    taken = range(node.ports.first, node.ports.last - 1)
    held = [socket.create_server(("127.0.0.1", port)) for port in taken]
    try:
        reserved = await server.reserve(Session().spec(Role.PROD, 2))
        own = {node.wan_port} if node.wan_port else {node.ports.last - 1, node.ports.last}
        assert {e.port for e in reserved.listeners} == own
        with pytest.raises(ResourceExhausted, match=rf"0 ports of \d+-{node.ports.last} are free on 127.0.0.1"):
            await server.reserve(Session().spec(Role.CONS))
    finally:
        for each in held:
            each.close()


async def test_verbs_in_the_wrong_order(server: DataServer) -> None:
    session = Session()
    spec = session.spec(Role.PROD)
    await server.stop(spec.id)
    reserved = await server.reserve(spec)
    bridge = session.bridge(reserved, Role.PROD, NOBODY)
    for verb in (server.start, server.update):
        with pytest.raises(NotFound, match="no tunnel 'other'"):
            await verb("other", bridge)
    with pytest.raises(AlreadyExists):
        await server.reserve(spec)
    with pytest.raises(FailedPrecondition, match="RESERVED"):
        await server.update(spec.id, bridge)
    await server.start(spec.id, bridge)
    with pytest.raises(FailedPrecondition, match="started before"):
        await server.start(spec.id, bridge)
    await server.stop(spec.id)
    await server.stop(spec.id)
    with pytest.raises(NotFound):
        await server.start(spec.id, bridge)
    assert await server.list() == ()


async def test_targets_are_addresses(server: DataServer) -> None:
    session = Session()
    spec = session.spec(Role.PROD)
    reserved = await server.reserve(spec)
    with pytest.raises(InvalidArgument, match="name"):
        await server.start(spec.id, session.bridge(reserved, Role.PROD, Endpoint("localhost", 5000)))
    with pytest.raises(InvalidArgument, match="no target"):
        await server.start(spec.id, session.bridge(reserved, Role.PROD))
    assert (await server.list())[0].state is TunnelState.RESERVED


async def test_it_serves_and_says_what_it_negotiated(node: Node, server: DataServer) -> None:
    async with running(server, 3) as (session, listeners):
        for number, endpoint in enumerate(listeners):
            async with calling(endpoint, session, number) as caller:
                assert await caller.ask(b"one") == b"app one"
        for _ in range(100):
            (status,) = await server.list()
            if status.tls_version:
                break
            await asyncio.sleep(0.05)
        assert (status.tls_version, status.tls_cipher) == ("TLSv1.3", "TLS_AES_128_GCM_SHA256")
        assert (status.state, status.backend, status.restarts) == (TunnelState.RUNNING, node.backend, 0)
        assert status.backend_version
        for _ in range(100):
            (status,) = await server.list()
            if (status.traffic.open, status.traffic.total) == (0, 3):  # a proxy may tell of the last a moment later
                break
            await asyncio.sleep(0.05)
        traffic = status.traffic
        assert (traffic.from_consumer, traffic.from_producer, traffic.total) == (3 * 4, 3 * 8, 3)
        assert node.processes() == set(status.pids)


async def test_listeners_do_not_block(node: Node, server: DataServer) -> None:
    """A proxy's worker that loses the race for a connection must not hang in accept()."""
    async with running(server, 4):
        for pid in (await server.list())[0].pids:
            for number in range(3, 7):
                if Path(f"/proc/{pid}/fd/{number}").is_symlink():
                    flags = Path(f"/proc/{pid}/fdinfo/{number}").read_text().splitlines()[1]
                    assert int(flags.split()[1], 8) & os.O_NONBLOCK


async def test_listeners_lead_to_the_targets_in_turn(server: DataServer) -> None:
    async with AsyncExitStack() as stack:
        targets = [await stack.enter_async_context(application(answering(name))) for name in (b"a", b"b")]
        session = Session()
        reserved = await server.reserve(session.spec(Role.PROD, 3, id="x"))
        await server.start("x", session.bridge(reserved, Role.PROD, *targets))
        for number, (endpoint, name) in enumerate(zip(reserved.listeners, (b"a", b"b", b"a"), strict=True)):
            async with calling(endpoint, session, number) as caller:
                assert await caller.ask(b"?") == name + b" ?"
        await server.stop("x")


async def test_many_at_once_do_not_disturb_each_other(node: Node, server: DataServer) -> None:
    async def life(number: int) -> None:
        async with running(server, 2, b"%d" % number) as (session, listeners), calling(listeners[1], session) as caller:
            assert await caller.ask(b"hello") == b"%d hello" % number

    await asyncio.gather(*(life(i) for i in range(10)))
    assert await server.list() == ()


async def test_the_same_verb_many_times_at_once(server: DataServer) -> None:
    session = Session()
    reserved = await server.reserve(session.spec(Role.PROD, id="x"))
    bridge = session.bridge(reserved, Role.PROD, NOBODY)
    started = await asyncio.gather(*(server.start("x", bridge) for _ in range(5)), return_exceptions=True)
    assert [type(e) for e in started].count(FailedPrecondition) == 4
    await asyncio.gather(*(server.update("x", bridge) for _ in range(2)))
    await asyncio.gather(*(server.stop("x") for _ in range(5)))
    assert await server.list() == ()


@pytest.mark.parametrize("after_ms", [0, 1, 5, 15, 40])
async def test_stop_during_start_leaves_nothing(node: Node, server: DataServer, after_ms: int) -> None:
    session = Session()
    reserved = await server.reserve(session.spec(Role.PROD, 2, id="x"))
    start = asyncio.create_task(server.start("x", session.bridge(reserved, Role.PROD, NOBODY)))
    await asyncio.sleep(after_ms / 1000)
    await server.stop("x")
    (outcome,) = await asyncio.gather(start, return_exceptions=True)
    assert outcome is None or isinstance(outcome, (Unavailable, NotFound))
    assert node.leftovers() == []


async def test_verbs_that_come_while_it_stops_hear_of_that(node: Node) -> None:
    async with node.open(grace_s=600) as server, application(answering(b"app")) as target:
        session = Session()
        reserved = await server.reserve(session.spec(Role.PROD, id="x"))
        bridge = session.bridge(reserved, Role.PROD, target)
        await server.start("x", bridge)
        proxy = await leader(server)
        os.kill(proxy, signal.SIGSTOP)  # it ends when it is killed, and not before
        try:
            stop = asyncio.create_task(server.stop("x"))
            async with asyncio.timeout(60):
                while (await server.list())[0].state is not TunnelState.STOPPING:
                    await asyncio.sleep(0.01)
            for late in (server.start, server.update, server.verify):
                with pytest.raises(Unavailable, match="stopped meanwhile; request a new session"):
                    await late("x", bridge)
        finally:
            os.kill(proxy, signal.SIGKILL)
        await stop
    assert node.leftovers() == []


@pytest.mark.parametrize("after_ms", [1, 8])
async def test_a_start_given_up_leaves_no_process(node: Node, server: DataServer, after_ms: int) -> None:
    session = Session()
    reserved = await server.reserve(session.spec(Role.PROD, id="x"))
    start = asyncio.create_task(server.start("x", session.bridge(reserved, Role.PROD, NOBODY)))
    await asyncio.sleep(after_ms / 1000)
    if start.cancel():
        with pytest.raises(asyncio.CancelledError):
            await start
        (status,) = await server.list()
        # It may have been done, but for the answer; else nothing is to be left.
        assert status.state is TunnelState.RUNNING or node.processes() == set()
    await server.stop("x")
    assert node.leftovers() == []


async def test_a_stop_given_up_goes_on(node: Node, server: DataServer) -> None:
    async with running(server) as _:
        stop = asyncio.create_task(server.stop((await server.list())[0].id))
        await asyncio.sleep(0)
        stop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stop
        for _ in range(200):
            if node.leftovers() == []:
                break
            await asyncio.sleep(0.02)
        assert node.leftovers() == []


async def test_stop_ends_live_streams_after_the_grace_period(node: Node, server: DataServer) -> None:
    async with running(server) as (session, listeners), calling(listeners[0], session) as caller:
        assert await caller.ask(b"x") == b"app x"
        await server.stop((await server.list())[0].id)
        assert node.leftovers() == []
        assert await caller.reader.read() == b""


async def test_a_cut_waits_for_no_stream_and_ends_a_wait_that_is_under_way(node: Node) -> None:
    async with (
        node.open(grace_s=600) as server,
        running(server) as (session, listeners),
        calling(listeners[0], session) as caller,
    ):
        assert await caller.ask(b"x") == b"app x"
        id = (await server.list())[0].id
        release = asyncio.create_task(server.stop(id))
        await asyncio.sleep(0)
        async with asyncio.timeout(60):
            await server.stop(id, cut=True)
            await release
        assert node.leftovers() == []
        assert await caller.reader.read() == b""


async def test_close_ends_all_tunnels_and_watches(node: Node) -> None:
    async with application(answering(b"app")) as target, node.open() as server:
        watch = server.watch()
        for role in Role:
            session = Session()
            reserved = await server.reserve(session.spec(role, 2))
            await server.start(f"{session.uid}-{role}", session.bridge(reserved, role, target))
        await server.reserve(Session().spec(Role.PROD))
    assert node.leftovers() == []
    assert [event async for event in watch] == []


async def test_a_killed_proxy_comes_back_on_its_sockets(node: Node, server: DataServer) -> None:
    watch = server.watch()
    async with running(server, 2) as (session, listeners):
        inodes = listening(node.ports)
        os.kill(await leader(server), signal.SIGKILL)
        died = await asyncio.wait_for(anext(watch), 10)
        assert died.change is Change.EXITED
        assert "SIGKILL" in died.reason
        assert (await server.list())[0].state in (TunnelState.BACKOFF, TunnelState.RUNNING)  # the latter a moment later
        assert listening(node.ports) == inodes  # whoever connects now waits, and is served
        async with calling(listeners[1], session) as caller:
            assert await caller.ask(b"patient") == b"app patient"
        assert (await asyncio.wait_for(anext(watch), 10)).change is Change.RUNNING
        (status,) = await server.list()
        assert (status.state, status.restarts) == (TunnelState.RUNNING, 1)
        assert "SIGKILL" in status.reason


async def test_too_many_deaths_are_fatal(node: Node) -> None:
    async with node.open(max_restarts=1, backoff_s=0.01) as server:
        watch = server.watch()
        async with running(server) as (session, listeners):
            for expected in ((Change.EXITED, Change.RUNNING), (Change.FATAL,)):
                os.kill(await leader(server), signal.SIGKILL)
                assert [(await asyncio.wait_for(anext(watch), 10)).change for _ in expected] == list(expected)
            (status,) = await server.list()
            assert (status.state, status.pids) == (TunnelState.FATAL, ())
            assert status.reason
            with pytest.raises(ConnectionRefusedError if not node.wan_port else OSError):
                async with calling(listeners[0], session):
                    pass


async def test_update_leads_new_connections_elsewhere_and_leaves_streams(node: Node, server: DataServer) -> None:
    session = Session()
    async with application(answering(b"old")) as old, application(answering(b"new")) as new:
        reserved = await server.reserve(session.spec(Role.PROD, id="x"))
        await server.start("x", session.bridge(reserved, Role.PROD, old))
        (at,) = reserved.listeners
        async with calling(at, session) as stream:
            assert await stream.ask(b"1") == b"old 1"
            await server.update("x", session.bridge(reserved, Role.PROD, new))
            async with calling(at, session) as other:
                assert await other.ask(b"2") == b"new 2"
            assert await stream.ask(b"3") == b"old 3"
            for _ in range(3):
                await server.update("x", session.bridge(reserved, Role.PROD, old))
                await server.update("x", session.bridge(reserved, Role.PROD, new))
            assert await stream.ask(b"4") == b"old 4"
            async with calling(at, session) as other:
                assert await other.ask(b"5") == b"new 5"
        await server.stop("x")
    assert node.leftovers() == []


async def test_update_with_other_credentials(server: DataServer) -> None:
    session, later = Session("same-uid"), Session("same-uid")
    async with application(answering(b"app")) as target:
        reserved = await server.reserve(session.spec(Role.PROD, id="x"))
        await server.start("x", session.bridge(reserved, Role.PROD, target))
        (at,) = reserved.listeners
        async with calling(at, session) as stream:
            assert await stream.ask(b"1") == b"app 1"
            await server.update("x", later.bridge(reserved, Role.PROD, target))
            async with calling(at, later) as other:
                assert await other.ask(b"2") == b"app 2"
            assert await stream.ask(b"3") == b"app 3"
            with pytest.raises(OSError):  # noqa: PT011 - the old CA is trusted on neither side any more
                async with calling(at, session) as refused:
                    assert await refused.ask(b"4") == b""
        await server.stop("x")


async def test_an_updated_proxy_that_dies_comes_back_updated(server: DataServer) -> None:
    session = Session()
    watch = server.watch()
    async with application(answering(b"old")) as old, application(answering(b"new")) as new:
        reserved = await server.reserve(session.spec(Role.PROD, id="x"))
        await server.start("x", session.bridge(reserved, Role.PROD, old))
        await server.update("x", session.bridge(reserved, Role.PROD, new))
        os.kill(await leader(server), signal.SIGKILL)
        assert [(await asyncio.wait_for(anext(watch), 10)).change for _ in "12"] == [Change.EXITED, Change.RUNNING]
        async with calling(reserved.listeners[0], session) as caller:
            assert await caller.ask(b"x") == b"new x"
        await server.stop("x")


async def test_backends_names_all_and_what_they_can(node: Node, server: DataServer) -> None:
    infos = {info.name: info for info in server.backends()}
    assert set(infos) == {"nginx", "haproxy", "stunnel"}
    assert infos[node.backend].available
    assert infos[node.backend].version
