"""The library for programs without asyncio: the same words, and each call waits for its end.

The work is done on an event loop in a thread of its own, so that it goes inside notebooks too, where a
loop runs already.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from datetime import datetime
from functools import cache
from types import TracebackType
from typing import Any, Self, TypeVar

from s2uc import session as aio
from s2uc.gateway import TIMEOUT_S, Gateway
from s2uc.side import Report
from scistream.machine import State
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Endpoint, Rate, Role, Uid

_T = TypeVar("_T")
_UNDO_S = 15.0
# The system may give a signal to any thread, and then nothing wakes this one: it looks from time to time.
_LOOK_S = 0.5


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="s2uc", daemon=True).start()
    return loop


def wait_for(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end; an interrupt cancels it and waits for what it undoes."""
    ended = threading.Event()

    async def tracked() -> _T:
        try:
            return await work
        finally:
            ended.set()

    future = asyncio.run_coroutine_threadsafe(tracked(), _loop())
    try:
        while not ended.wait(_LOOK_S):
            pass
        return future.result()
    except BaseException:
        if future.cancel():
            ended.wait(_UNDO_S)
        raise


class Session:
    """An open session. ConsApp connects to `listeners`. `with` releases it at the end of the block."""

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
        """ACTIVE, or RELEASED after `release`."""
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
    def producer(self) -> aio.OpenSide:
        """The producer's side."""
        return self._session.producer

    @property
    def consumer(self) -> aio.OpenSide:
        """The consumer's side."""
        return self._session.consumer

    @property
    def keys(self) -> Mapping[Role, str]:
        """The secrets with which the two applications say Hello."""
        return self._session.keys

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
        self.release()


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
    timeout: float = TIMEOUT_S,
    hello_timeout: float | None = None,
    on_step: Report = aio.silent,
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
                timeout=timeout,
                hello_timeout=hello_timeout,
                on_step=on_step,
            )
        )
    )
