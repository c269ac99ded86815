"""One WAN port for all sessions: a relay that reads which session a connection asks for, and decrypts nothing.

Firewalls open one port instead of a range. Behind it each session has its own proxy as ever, which ends TLS; those
listen on loopback then. A connection says by its TLS server name which way it wants (`scistream.x509.way_name`).
HAProxy leads it there by a table that is changed while it runs, and refuses a name that is not in it. The relay
outlives the control server as proxies do. It is the one thing that sessions share: if it dies, all their connections
end, and it is started again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from signal import Signals

from s2cs.s2ds.backends import BACKENDS
from s2cs.s2ds.backends.base import HANDSHAKE_S, IDLE_S, Found
from s2cs.s2ds.buffers import send_buffer
from s2cs.s2ds.config import Interface
from s2cs.s2ds.files import make, room, write
from s2cs.s2ds.generations import entrust
from s2cs.s2ds.launchers.base import Job, Running
from s2cs.s2ds.logs import SessionLog, last_words
from s2cs.s2ds.meter import Ledger
from s2cs.s2ds.ports import Listeners, inherited
from s2cs.s2ds.proxy import Proxy, clear, until_serving
from s2cs.s2ds.render import render
from s2cs.s2ds.runner import Means
from scistream.errors import FailedPrecondition, ScistreamError, Unavailable
from scistream.vocabulary import Role, shown

log = logging.getLogger(__name__)

DIRECTORY = "_router"
"""Its directory, beside those of the tunnels: no tunnel is called that."""

_TEMPLATE = "router.cfg.j2"
_CONFIG, _WAYS, _CONTROL, _HANDLE, _LOG = "router.cfg", "routes", "control", "proxy-1.handle", "proxy-1.log"
FILES = (_CONFIG, _WAYS, _CONTROL)
"""What it has there beside what tunnels have."""

RELAY = "haproxy"
"""The backend whose program it is."""

_BACKEND = BACKENDS[RELAY]
_BATCH = 50  # commands in a line: HAProxy's buffer has to hold it
_ANSWER_S = 5.0


class Router:
    """Lead what comes to one WAN port to the sessions' own proxies."""

    def __init__(self, means: Means) -> None:
        config = means.config
        self._means = means
        self._directory = config.directory / DIRECTORY
        self._interface = Interface(config.wan.bind, config.wan.advertise)
        self._listeners: Listeners | None = None
        self._control: socket.socket | None = None
        self._proxy: Proxy | None = None
        self._ways: dict[str, Mapping[str, int]] = {}  # by tunnel: name asked for, port on loopback
        self._stale = False  # the relay's table may be another than what is wanted
        self._lock = asyncio.Lock()  # one change of the table, or of the process, at a time
        self._watching: asyncio.Task[None] | None = None

    async def open(self, ways: Mapping[str, Mapping[str, int]]) -> None:
        """Take up the relay that an earlier server left, or start one.

        Args:
            ways: of the tunnels there are.

        Raises:
            FailedPrecondition: there is no HAProxy, another program has the port, or the relay does not come up.
        """
        self._ways = dict(ways)
        found = self._found()
        if found.reason:
            raise FailedPrecondition(
                f"[network] wan_port needs HAProxy, whatever carries sessions: {found.reason}; or leave wan_port out"
            )
        try:
            if not await self._regain():
                await self._launch()
        except ScistreamError as error:
            self._close_sockets()
            port = self._port
            raise FailedPrecondition(f"[network] wan_port {port} cannot be served: {error}; or name another") from None
        self._watching = asyncio.create_task(self._watch())

    async def lead(self, tunnel: str, ways: Mapping[str, int]) -> None:
        """Say which names lead to a tunnel, all of them; none is to lead there any more when there are none.

        Raises:
            Unavailable: the relay runs and does not take new names.
        """
        before = self._ways.pop(tunnel, {})
        if ways:
            self._ways[tunnel] = ways
        less, more = _difference(before, ways)
        told = False
        try:
            async with self._lock:
                if self._stale:  # what is not known to be there is looked up, rather than taken for granted
                    self._stale = False
                    less, more = _difference(await self._there(), self._wanted())
                await self._change(less, more)
                told = True
        except Unavailable:
            if more:
                raise
        finally:  # given up, too
            self._stale = self._stale or not told

    async def tidy(self) -> None:
        """Keep the log from filling the disk, and tell the relay what it has missed."""
        if self._proxy is not None:
            self._proxy.log.bound()
        if self._stale:
            async with self._lock:
                await self._reconcile()

    async def close(self) -> None:
        """End the relay, and all connections through it."""
        if (proxy := self._proxy) is not None:
            self.let_go(proxy_too=False)
            await proxy.process.stop(Signals.SIGKILL, 0)
            shutil.rmtree(self._directory, ignore_errors=True)

    def let_go(self, proxy_too: bool = True) -> None:
        """Leave it running for the server that opens the directory next."""
        if self._watching is not None:
            self._watching.cancel()
        if self._proxy is not None and proxy_too:
            self._proxy.process.let_go()
        self._proxy = None
        self._close_sockets()

    async def _regain(self) -> bool:
        """Take up a living relay with its sockets, and bring its table up to date; False when none lives."""
        handle = self._directory / _HANDLE
        process = self._means.launcher.adopt(handle)
        if process is None:
            return False
        sockets = inherited(process.pid, 2)
        port = self._port
        if len(sockets) == 2 and sockets[0].getsockname()[:2] == (self._interface.bind, port):
            self._listeners, self._control = Listeners(self._interface, (sockets[0],)), sockets[1]
        else:
            for each in sockets:
                each.close()
            if len(sockets) == 2:  # it serves another port than the settings have now
                await process.stop(Signals.SIGKILL, 0)
                return False
            self._listeners = Listeners(self._interface, (), (port,))
        self._proxy = self._proxy_of(process)
        await self._reconcile()
        return True

    async def _launch(self) -> None:
        """Start it on its sockets with all ways there are; return when it serves.

        Raises:
            Unavailable: it does not come up, or another program has the port.
        """
        means, config = self._means, self._means.config
        if not self._directory.exists():
            with room(self._directory):
                make(self._directory)
        for name in (_CONFIG, _WAYS):
            (self._directory / name).unlink(missing_ok=True)
        clear(self._directory / _HANDLE)
        reader = means.confinement.reader
        table = "".join(f"{name} {port}\n" for name, port in self._wanted().items())
        with room(self._directory):
            write(self._directory / _CONFIG, render(_TEMPLATE, handshake_s=HANDSHAKE_S, idle_s=IDLE_S).encode(), reader)
            write(self._directory / _WAYS, table.encode(), reader)
            entrust(self._directory, means.confinement)
        if self._listeners is None:
            self._listeners = Listeners(self._interface, (), (self._port,))
        self._listeners.listen(send_buffer=send_buffer(config.in_flight))
        if self._control is None:
            self._control = self._bind_control()
        command = _BACKEND.command(self._found().program, self._directory / _CONFIG)
        sockets = (*self._listeners.sockets, self._control)
        job = Job(command, self._directory, means.confinement, sockets, {}, Path(_LOG), Path(_HANDLE), "router")
        proxy = self._proxy_of(await means.launcher.launch(job))
        try:
            await until_serving(proxy, _BACKEND, self._listeners.inodes, config.start_timeout_s)
        except BaseException:
            await asyncio.shield(proxy.process.stop(Signals.SIGKILL, 0))
            raise
        self._proxy, self._stale = proxy, False

    async def _watch(self) -> None:
        """Start it again whenever it dies, for as long as it takes: without it no session has a WAN."""
        config = self._means.config
        pause = config.backoff_s
        while self._proxy is not None:
            await self._proxy.process.wait()
            reason = f"{self._proxy.process.ended}{last_words(self._proxy.log.since())}"
            log.error("the relay of WAN port %d %s; it is started again", self._port, reason)
            while self._down:
                await asyncio.sleep(pause)
                pause = min(2 * pause, config.backoff_max_s)
                try:
                    async with self._lock:
                        await self._launch()
                except Exception as error:
                    log.error("the relay of WAN port %d does not come up: %s", self._port, error)
            pause = config.backoff_s

    @property
    def _down(self) -> bool:
        """True while no relay runs: the next one is started with all names."""
        return self._proxy is None or bool(self._proxy.process.ended)

    def _wanted(self) -> dict[str, int]:
        return {name: port for ways in self._ways.values() for name, port in ways.items()}

    async def _reconcile(self) -> None:
        """Compare the relay's table with what is wanted; tried again later where it does not answer."""
        try:
            self._stale = False
            await self._change(*_difference(await self._there(), self._wanted()))
        except Unavailable as error:
            self._stale = True
            log.error("%s; it is tried again", error)

    async def _there(self) -> dict[str, int]:
        """Ask the running relay for its table; empty when there is none.

        Raises:
            Unavailable: it does not answer.
        """
        lines = (line.split() for line in (await self._ask(f"show map {_WAYS}")).splitlines())
        return {words[1]: int(words[2]) for words in lines if len(words) == 3}

    async def _change(self, less: Iterable[str], more: Mapping[str, int]) -> None:
        """Change the table of the running relay.

        Raises:
            Unavailable: it does not do so.
        """
        commands = [f"del map {_WAYS} {name}" for name in less]
        commands += [f"add map {_WAYS} {name} {port}" for name, port in more.items()]
        for i in range(0, len(commands), _BATCH):
            said = (await self._ask(";".join(commands[i : i + _BATCH]))).splitlines()
            # A relay that was started meanwhile has never had what is taken out.
            if faults := [line for line in said if line.strip() and "not found" not in line]:
                raise Unavailable(f"the relay of WAN port {self._port} refuses a name: {shown(faults[0])}")

    async def _ask(self, line: str) -> str:
        """Say something to the running relay, and give its answer; none when there is no relay, or no more.

        Raises:
            Unavailable: it does not answer.
        """
        if (proxy := self._proxy) is None or proxy.process.ended:
            return ""
        asked, ended = asyncio.create_task(self._exchange(line)), asyncio.create_task(proxy.process.wait())
        try:
            await asyncio.wait({asked, ended}, timeout=_ANSWER_S, return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                return asked.result()
            if ended.done():
                return ""
        except OSError as error:
            raise Unavailable(f"the relay of WAN port {self._port} cannot be asked: {error.strerror}") from None
        finally:
            asked.cancel()
            ended.cancel()
        raise Unavailable(
            f"the relay of WAN port {self._port} does not answer; its operator looks at process {proxy.process.pid}"
        )

    async def _exchange(self, line: str) -> str:
        with _short(self._directory) as directory:
            reader, writer = await asyncio.open_unix_connection(f"{directory}/{_CONTROL}")
        try:
            writer.write(line.encode() + b"\n")
            return (await reader.read(-1)).decode()
        finally:
            writer.close()

    @property
    def _port(self) -> int:
        return self._means.config.wan_port

    def _bind_control(self) -> socket.socket:
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            (self._directory / _CONTROL).unlink(missing_ok=True)
            with _short(self._directory) as directory:
                bound.bind(f"{directory}/{_CONTROL}")  # the umask makes it this user's own
            (self._directory / _CONTROL).chmod(0o600)
            bound.listen()
            bound.setblocking(False)
        except OSError as error:
            bound.close()
            raise Unavailable(
                f"{self._directory / _CONTROL} cannot be made ({error.strerror}); make room there"
            ) from None
        return bound

    def _proxy_of(self, process: Running) -> Proxy:
        ledger = Ledger(self._directory / "traffic.json")  # nothing is counted here: the sessions' own proxies tell
        return Proxy(
            process, SessionLog(self._directory / _LOG, _BACKEND, Role.PROD, ledger), self._directory / _HANDLE
        )

    def _found(self) -> Found:
        means = self._means
        return means.launcher.find(_BACKEND, means.config.programs.get(_BACKEND.name), means.confinement)

    def _close_sockets(self) -> None:
        if self._listeners is not None:
            self._listeners.close()
        if self._control is not None:
            self._control.close()
        self._listeners = self._control = None


def _difference(there: Mapping[str, int], wanted: Mapping[str, int]) -> tuple[list[str], dict[str, int]]:
    """Say what leads from one table to another: names to take out, and names to put in after that."""
    more = {name: port for name, port in wanted.items() if there.get(name) != port}
    return [name for name in there if name not in wanted or name in more], more


@contextmanager
def _short(directory: Path) -> Iterator[str]:
    """Give a path to a directory that is short enough for the address of a socket in it."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
