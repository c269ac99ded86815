"""Wire everything together and serve until told to stop."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import scistream
from s2cs import notify, runtime
from s2cs.audit.acts import account
from s2cs.audit.log import Audit
from s2cs.control import Control
from s2cs.credentials import credentials_of, methods_of
from s2cs.data_server import configure, links
from s2cs.data_server import data_server as data_server_of
from s2cs.gateway import Gateway
from s2cs.identity.authenticator import Authenticator
from s2cs.lock import locked
from s2cs.metrics import Metrics
from s2cs.policy.sessions import objections
from s2cs.s2ds.confinement import keep_keys_in
from s2cs.s2ds.kubernetes.cluster import Cluster
from s2cs.s2ds.local import LocalDataServer
from s2cs.s2ds.nodes import Nodes
from s2cs.settings import Settings, succeed
from s2cs.settings_file import fingerprint, load
from s2cs.store import SqliteStore, Store
from scistream.errors import ScistreamError, Unavailable

if TYPE_CHECKING:
    from s2cs.replicas.replica import Replica
    from s2cs.web.listener import Listener
    from s2cs.web.page import Page

log = logging.getLogger(__name__)

RELOADED = "reloaded"  # the fact that tells how the last reload went


async def serve(file: Path | None) -> bool:
    """Serve until SIGTERM or SIGINT, then stop as `on_shutdown` says; SIGHUP reads settings and certificate again.

    Returns:
        True when this program is to be started anew: it has led a facility's S2CS and does so no longer, or it has
        other settings now and no sessions of its own.

    Raises:
        SettingsError: the settings cannot be used.
        FailedPrecondition: the state directory, a certificate or the store cannot be used.
        Unavailable: a port to listen on is taken.
    """
    settings = load(file)
    keep_keys_in()
    told = Told()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.stop.set)
    loop.add_signal_handler(signal.SIGHUP, told.reload.set)
    with locked(settings.server.state_dir):
        if settings.store.etcd:
            from s2cs.replicas.serving import serve_as_one_of_several  # noqa: PLC0415 - an extra that few have

            return await serve_as_one_of_several(settings, file, told)
        store = SqliteStore(settings.server.state_dir / "s2cs.db")
        try:
            async with running(settings, fingerprint(file), store) as gateway:
                await until_told(gateway, settings, file, told)
        finally:
            store.close()
    return False


class Told:
    """What the service manager wants."""

    def __init__(self) -> None:
        self.stop, self.reload = asyncio.Event(), asyncio.Event()


async def until_told(running: Running, settings: Settings, file: Path | None, told: Told) -> None:
    """Serve, and read the settings again when that is wanted."""
    where = ", ".join(map(str, settings.server.listen))
    log.info("gateway %s serves on %s", settings.server.name, where)
    notify.tell("READY=1")
    telling = asyncio.create_task(notify.keep_telling(lambda: f"serves on {where}; {running.sessions}"))
    lost = asyncio.create_task(running.control.lost())
    try:
        while not told.stop.is_set():
            await first_of(lost, told.stop, told.reload)
            if lost.done():
                raise Unavailable(f"control port {where} closed by itself; streams go on, start s2cs again")
            if told.reload.is_set():
                told.reload.clear()
                notify.reloading()
                await running.reload(file)
                notify.tell("READY=1")
    finally:
        lost.cancel()
        telling.cancel()
    log.info("gateway %s stops", settings.server.name)
    notify.tell("STOPPING=1", f"STATUS=stops; {running.sessions}")


async def first_of(task: asyncio.Task[None], *events: asyncio.Event) -> None:
    """Wait for a task's end or one of several events."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait([task, *waits], return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


class Running:
    """What a reload changes."""

    def __init__(
        self,
        store: Store,
        gateway: Gateway,
        data_server: LocalDataServer | Nodes | Cluster,
        control: Control,
        authenticator: Authenticator,
        audit: Audit,
        page: Page | None,
        replica: Replica | None,
    ) -> None:
        self._store = store
        self._audit = audit
        self._gateway = gateway
        self._data_server = data_server
        self.control = control
        self._page = page
        self._authenticator = authenticator
        self._credentials = credentials_of(gateway.settings)
        self._term = replica.term if replica else None
        control.bind(self._credentials, replica is not None)

    @property
    def sessions(self) -> str:
        """How many sessions there are, and what will become of them, in words."""
        number = len(self._gateway.running)
        fate = "kept" if self._gateway.settings.server.on_shutdown == "keep" else "released"
        return f"{number} session{'' if number == 1 else 's'}, {fate} at a stop"

    async def reload(self, file: Path | None) -> None:
        """Bring new settings and a new certificate into force, or keep all of the old and say why."""
        try:
            settings, read = load(file), fingerprint(file)
            credentials, methods = credentials_of(settings), methods_of(settings)
            nodes = self._data_server if isinstance(self._data_server, Nodes) else None
            ways = links(settings, self._term) if nodes else {}
            if credentials != self._credentials:
                await self.control.replace(credentials)
                self._credentials = credentials
        except ScistreamError as error:
            log.error("not reloaded, the old settings stay in force: %s", error)
            self._audit.write("gateway.reload", decision="refused", reason=str(error))
            self._tell(fault=str(error))
            return
        settings, waiting = succeed(self._gateway.settings, settings, with_nodes=nodes is not None)
        if waiting:
            log.warning("reloaded, but %s waits for a restart", ", ".join(waiting))
        self._gateway.settings = settings
        if self._page is not None:
            self._page.certify()
        self._authenticator.adopt(methods)
        configure(self._data_server, settings)
        if nodes is not None:
            nodes.rearrange(ways, settings.s2ds.local)
        log.info("settings and certificate reloaded")
        forbidden = objections(settings, self._gateway.running)
        if forbidden:
            log.warning("no longer allowed, and kept until their leases end: %s", ", ".join(forbidden))
        self._audit.write("gateway.reload", decision="allowed", waiting=waiting, **read)
        self._tell(fault="", restart=waiting, forbidden=forbidden)

    def _tell(self, **outcome: object) -> None:
        """Note how it went for who asked for it; who cannot be told is no reason to end."""
        try:
            self._store.note(RELOADED, json.dumps({"at": time.time(), **outcome}))
        except ScistreamError as error:
            log.error("how the reload went cannot be noted: %s", error)


@asynccontextmanager
async def running(
    settings: Settings, fingerprint: Mapping[str, Any], store: Store, replica: Replica | None = None
) -> AsyncIterator[Running]:
    """Be the gateway.

    Args:
        settings: of this one.
        fingerprint: which settings they are, for the audit log.
        store: what outlives this process.
        replica: where this is one of several S2CS.
    """
    async with AsyncExitStack() as stack:
        stack.callback(runtime.forget, settings)
        audit = Audit.of(settings)
        data_server = data_server_of(settings, store, replica.term if replica else None)
        gateway = Gateway(settings, store, data_server, audit)
        metrics = Metrics(gateway)
        authenticator = Authenticator(methods_of(settings), store, gateway.has_key)
        stack.push_async_callback(authenticator.close)
        control = Control(gateway, authenticator, metrics, audit)
        page = _page(gateway, control, store, stack)
        running = Running(store, gateway, data_server, control, authenticator, audit, page, replica)
        monitoring = _monitoring(gateway, metrics, stack)
        stack.enter_context(_recording(audit, fingerprint))
        await data_server.open()
        stack.push_async_callback(_close, gateway, data_server)
        await gateway.open()
        stack.push_async_callback(gateway.close)
        await authenticator.open()
        await control.start()
        stack.push_async_callback(control.stop)
        for http in (monitoring, page):
            if http is not None:
                await http.start()
                stack.push_async_callback(http.stop)
        yield running


def _monitoring(gateway: Gateway, metrics: Metrics, stack: AsyncExitStack) -> Listener | None:
    """Take the ports of HTTP, where there are any to take."""
    if not gateway.settings.metrics.listen:
        return None
    from s2cs.web.monitoring import Monitoring  # noqa: PLC0415 - a fifth of the time to start

    monitoring = Monitoring(gateway, metrics, gateway.settings.metrics.listen)
    monitoring.bind()
    stack.callback(monitoring.close)
    return monitoring


def _page(gateway: Gateway, control: Control, store: Store, stack: AsyncExitStack) -> Page | None:
    """Take the ports of the page; who connects there is bounded together with who connects to the control port."""
    listen = gateway.settings.web.listen
    if not listen:
        return None
    from s2cs.web.page import Page  # noqa: PLC0415 - as above

    page = Page(gateway, control.door, control.servicer, store)
    page.bind()
    stack.callback(page.close)
    control.connections.watch_also(endpoint.port for endpoint in listen)
    return page


@contextmanager
def _recording(audit: Audit, fingerprint: Mapping[str, Any]) -> Iterator[None]:
    """Keep the audit log, from the start of the gateway to its end."""
    audit.start()
    audit.write("gateway.start", version=scistream.__version__, account=account(), **fingerprint)
    try:
        yield
    finally:
        audit.close("gateway.stop")


async def _close(gateway: Gateway, data_server: LocalDataServer | Nodes | Cluster) -> None:
    if gateway.settings.server.on_shutdown == "keep":
        await data_server.leave()
    else:
        await data_server.close()
