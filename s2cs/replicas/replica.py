"""One of several S2CS of a facility: it passes calls on until it leads, and is the gateway while it does."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

from cryptography import x509

from s2cs.control import Control, Credentials
from s2cs.replicas.forwarder import Forwarder
from s2cs.replicas.identity import identity
from s2cs.replicas.inner import Inner, see_port
from s2cs.replicas.leadership import REPLICAS, Leadership
from s2cs.replicas.store import Deposed, EtcdStore
from s2cs.settings import Settings
from scistream.errors import ScistreamError, TryAgain, Unavailable
from scistream.vocabulary import Endpoint

log = logging.getLogger(__name__)

_AGAIN_S = 0.5
_GRACE_S = 5.0  # for the calls that are being passed on when this one begins to lead


class Replica:
    """Stand for the lead, and pass calls on meanwhile.

    Raises:
        FailedPrecondition: the state directory cannot be written.
    """

    def __init__(self, settings: Settings) -> None:
        assert isinstance(settings.store.listen, Endpoint)
        self._listen = settings.store.listen
        self._settings = settings
        self._identity = identity(settings.server.state_dir)
        self._store: EtcdStore | None = None
        self._leadership: Leadership | None = None
        self._failed: ScistreamError | None = None
        self._fault = "the shared store has not been asked yet"
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._forwarder = Forwarder(settings, self._identity, self._leader, self._away)

    @property
    def store(self) -> EtcdStore:
        """The shared store.

        Raises:
            TryAgain: it has not been reached yet.
        """
        if self._store is None:
            raise TryAgain(self._fault)
        return self._store

    @property
    def fault(self) -> str:
        """Say why no call could be passed on now; empty when it could."""
        return self._forwarder.fault

    @property
    def won(self) -> bool:
        """True as soon as this one leads."""
        return self._leadership is not None and self._leadership.term > 0

    @property
    def deposed(self) -> bool:
        """True when it has led, and does not any more."""
        return self._leadership is not None and self._leadership.lost

    def term(self) -> int:
        """Say in which term this one leads, at this moment.

        Raises:
            Deposed: it does not.
        """
        if self._leadership is None or not self._leadership.leads:
            raise Deposed("this S2CS does not lead any more; ask again")
        return self._leadership.term

    async def changed(self) -> None:
        """Wait until something may be different.

        Raises:
            FailedPrecondition: the shared store can never be used with these settings.
        """
        await self._changed.wait()
        self._changed.clear()
        if self._failed is not None:
            raise self._failed
        self._forwarder.look()
        if self._leadership is not None:
            self._leadership.wake()

    @asynccontextmanager
    async def following(self, credentials: Credentials) -> AsyncIterator[None]:
        """Take the ports and pass calls on, and stand for the lead; at the end another one may have it at once.

        Raises:
            Unavailable: a port is taken; also the one that is needed as soon as this one leads.
        """
        see_port(self._listen)
        await self._forwarder.start(credentials)
        connecting = asyncio.create_task(self._connect())
        try:
            yield
        finally:
            connecting.cancel()
            await self._forwarder.stop(0)
            if self._leadership is not None:
                await asyncio.to_thread(self._leadership.stop)
            if self._store is not None:
                await asyncio.to_thread(self._store.close)

    async def prepare(self) -> None:
        """Know all that was written before this one led, and write for its term from now on.

        Raises:
            TryAgain: the shared store cannot be reached.
        """
        assert self._leadership is not None
        self.store.term = self._leadership.term
        await asyncio.to_thread(self.store.mirror.refresh)

    @asynccontextmanager
    async def leading(self, control: Control) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Serve the others, and let what waits here be served; gives what is to be done when something has changed.

        Raises:
            Deposed, TryAgain: another one leads, or the shared store cannot be reached.
            Unavailable: the port for the others is taken.
        """
        assert self._leadership is not None
        inner = Inner(control, self._listen, self._identity)
        see_port(self._listen)

        async def look() -> None:
            await inner.know([self._identity.about["client"], *self._others()])

        try:
            await look()
            control.door.gate = self.term  # what is in the memory of one that does not lead is not true any more
            await asyncio.to_thread(self._leadership.serve)
            self._forwarder.look()
            await self._forwarder.stop(_GRACE_S)
            yield look
        finally:
            await inner.stop()

    async def _connect(self) -> None:
        """Reach the shared store, however long that takes."""
        try:
            await self._reach()
        except ScistreamError as error:
            self._failed = error
        self._changed.set()

    async def _reach(self) -> None:
        told = ""
        while self._store is None:
            try:
                self._store = await asyncio.to_thread(EtcdStore, self._settings.store)
            except Unavailable as error:  # it may be mended there
                self._fault = str(error)
                if told != self._fault:
                    told = self._fault
                    log.error("%s", error)
                await asyncio.sleep(_AGAIN_S)
        self._fault = ""
        self._store.mirror.told = self._tell
        about = self._identity.about | {"address": str(self._listen)}
        self._leadership = Leadership(self._settings.store, self._store, about, self._tell)
        self._leadership.start()

    def _others(self) -> Iterator[str]:
        """Give the certificates of all S2CS that run."""
        for name, entry in self.store.mirror.under(REPLICAS).items():
            try:
                certificate = str(json.loads(entry.value)["client"])
                x509.load_pem_x509_certificate(certificate.encode())
                yield certificate
            except (ValueError, KeyError, TypeError):
                log.warning("what S2CS %s says of itself is not understood; are all of one version?", name)

    def _tell(self) -> None:
        """Wake who waits, from another thread."""
        self._loop.call_soon_threadsafe(self._changed.set)

    def _leader(self) -> dict[str, str]:
        return self._store.leader() if self._store is not None else {}

    def _away(self) -> str:
        return self._store.mirror.away if self._store is not None else self._fault
