"""The library for programs without asyncio: the same words, and each call waits for its end.

The work is done on an event loop in a thread of its own, so that it goes inside notebooks too, where a
loop runs already.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterable, Mapping
from datetime import datetime
from functools import cache
from types import TracebackType
from typing import Any, Self, TypeVar

from s2uc import session as aio
from s2uc.gateway import TIMEOUT_S, Gateway
from s2uc.keys import AppKey
from s2uc.saga import OpenSide, silent
from s2uc.side import Report
from scistream.errors import FailedPrecondition
from scistream.machine import State
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Endpoint, Rate, Role, Transport, Uid

_T = TypeVar("_T")
_UNDO_S = 15.0
# The system may give a signal to any thread, and then nothing wakes this one: it looks from time to time.
_LOOK_S = 0.5


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="s2uc", daemon=True).start()
    return loop


_forked = threading.Event()
# The thread is not in a forked child, and gRPC does not work there: said at once, where it would hang.
os.register_at_fork(after_in_child=lambda: _forked.set() if _loop.cache_info().currsize else None)


def wait_for(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end; an interrupt cancels it and waits for what it undoes."""
    if _forked.is_set():
        work.close()
        raise FailedPrecondition(
            "this process was forked from one that had used s2uc, where gRPC cannot work; "
            'start it with multiprocessing.get_context("spawn")'
        )
    ended, given_up = threading.Event(), threading.Event()
    begun: list[asyncio.Task[Any]] = []

    async def tracked() -> _T:
        try:
            begun.extend(filter(None, [asyncio.current_task()]))
            if given_up.is_set():
                work.close()
                raise asyncio.CancelledError
            return await work
        finally:
            ended.set()

    loop = _loop()
    try:
        # An interrupt may come in here as well: the work goes on by then, and nobody has its future.
        future = asyncio.run_coroutine_threadsafe(tracked(), loop)
        while not ended.wait(_LOOK_S):
            pass
        return future.result()
    except BaseException:
        given_up.set()
        if begun and not ended.is_set():
            loop.call_soon_threadsafe(begun[0].cancel)
            ended.wait(_UNDO_S)
        raise


class Session:
    """A session that is open, or reserved and to be opened. ConsApp connects to `listeners`.

    `with` releases it at the end of the block.
    """

    def __init__(self, session: aio.Session) -> None:
        self._session = session

    def __repr__(self) -> str:
        return repr(self._session)

    @property
    def uid(self) -> Uid:
        """The session's unique id."""
        return self._session.uid

    @property
    def state(self) -> State:
        """RESERVED before `open`, then ACTIVE, and RELEASED after `release`."""
        return self._session.state

    @property
    def expires_at(self) -> datetime:
        """The end of the lease (UTC)."""
        return self._session.expires_at

    @property
    def listeners(self) -> tuple[Endpoint, ...]:
        """Where ConsApp connects to."""
        return self._session.listeners

    @property
    def producer(self) -> OpenSide:
        """The producer's side."""
        return self._session.producer

    @property
    def consumer(self) -> OpenSide:
        """The consumer's side."""
        return self._session.consumer

    @property
    def keys(self) -> Mapping[Role, str]:
        """The secrets with which the two applications say Hello."""
        return self._session.keys

    @property
    def producer_key(self) -> AppKey:
        """With what ProdApp says Hello, from anywhere."""
        return self._session.producer_key

    @property
    def consumer_key(self) -> AppKey:
        """With what ConsApp says Hello, from anywhere."""
        return self._session.consumer_key

    def open(self, prod_listeners: Iterable[str | Endpoint] = (), hello_timeout: float | None = None) -> None:
        """Open a reserved session: steps 4 to 7. Opening again is harmless, and so it is after a failure.

        Args:
            prod_listeners: where ProdApp listens, as `HOST:PORT`; empty means to wait for its Hello.
            hello_timeout: seconds to wait for ProdApp; None is as long as its gateway does.

        Raises:
            InvalidArgument: an address that cannot be one, too many of them, or that the gateway does not forward to.
            FailedPrecondition: it has ended.
            DeadlineExceeded: a gateway or the producer did not answer in time, or the lease is over.
            Unavailable: a gateway cannot be reached, or its proxy does not start.
        """
        wait_for(self._session.open(prod_listeners, hello_timeout))

    def status(self) -> list[pb.SessionInfo | None]:
        """Ask both gateways how it is.

        Returns:
            The protocol's SessionInfo of the producer's gateway, and of the consumer's; None where it is unknown.

        Raises:
            NotFound: neither knows it.
            Unavailable: one does not answer.
        """
        return wait_for(self._session.status())

    def renew(self, lease_s: int = 0) -> None:
        """Make it live longer, at both gateways; running streams notice nothing.

        Args:
            lease_s: seconds from now; 0 is the gateways' default.

        Raises:
            InvalidArgument: longer than a gateway allows.
            FailedPrecondition: it is not open.
            NotFound: it has ended.
            Unavailable: a gateway does not answer; try again.
        """
        wait_for(self._session.renew(lease_s))

    def release(self) -> None:
        """Give everything back on both sides. Releasing again is harmless.

        Raises:
            Unavailable: a gateway does not answer; release again, or the end of the lease does it there.
        """
        wait_for(self._session.release())

    def as_dict(self) -> dict[str, Any]:
        """Give what `s2uc request --json` prints."""
        return self._session.as_dict()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        wait_for(self._session.__aexit__(kind, error, trace))


def request(
    producer: Gateway,
    consumer: Gateway,
    *,
    prod_listeners: tuple[str | Endpoint, ...] | list[str] = (),
    num_conn: int = 1,
    rate: Rate | str = "0",
    lease_s: int = 0,
    backend: str = "",
    uid: str = "",
    labels: Mapping[str, str] | None = None,
    protocol: Transport | str = Transport.TCP,
    unencrypted: bool = False,
    timeout: float = TIMEOUT_S,
    hello_timeout: float | None = None,
    on_step: Report = silent,
) -> Session:
    """Open a session between two gateways, and wait until the way is open; see `s2uc.aio.request`."""
    return Session(
        wait_for(
            aio.request(
                producer,
                consumer,
                prod_listeners=prod_listeners,
                num_conn=num_conn,
                rate=rate,
                lease_s=lease_s,
                backend=backend,
                uid=uid,
                labels=labels,
                protocol=protocol,
                unencrypted=unencrypted,
                timeout=timeout,
                hello_timeout=hello_timeout,
                on_step=on_step,
            )
        )
    )


def reserve(
    producer: Gateway,
    consumer: Gateway,
    *,
    num_conn: int = 1,
    rate: Rate | str = "0",
    lease_s: int = 0,
    backend: str = "",
    uid: str = "",
    labels: Mapping[str, str] | None = None,
    protocol: Transport | str = Transport.TCP,
    unencrypted: bool = False,
    timeout: float = TIMEOUT_S,
    on_step: Report = silent,
) -> Session:
    """Reserve a session at two gateways, to be opened by `Session.open`; see `s2uc.aio.reserve`."""
    return Session(
        wait_for(
            aio.reserve(
                producer,
                consumer,
                num_conn=num_conn,
                rate=rate,
                lease_s=lease_s,
                backend=backend,
                uid=uid,
                labels=labels,
                protocol=protocol,
                unencrypted=unencrypted,
                timeout=timeout,
                on_step=on_step,
            )
        )
    )
