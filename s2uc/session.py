"""Sessions over two gateways: asked for in one go, or reserved first and opened later, and what they can do then.

What was done is undone on both sides when a step fails or the caller is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from s2uc import life
from s2uc.gateway import TIMEOUT_S, Gateway
from s2uc.keys import AppKey
from s2uc.saga import OpenSide, Plan, Saga, check_prod_listeners, silent
from s2uc.side import Report, Terms, new_uid, undone_on_failure
from scistream.errors import FailedPrecondition, ScistreamError
from scistream.machine import State
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Endpoint, Rate, Role, Transport, Uid, parse_endpoints


@dataclass(slots=True)
class Session:
    """A session that is open, or reserved and to be opened. ConsApp connects to `consumer.listeners`.

    `async with` releases it at the end of the block.
    """

    uid: Uid
    expires_at: datetime
    producer: OpenSide
    consumer: OpenSide
    keys: Mapping[Role, str] = field(repr=False)
    state: State = State.ACTIVE
    _saga: Saga | None = field(default=None, repr=False, compare=False)
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False, compare=False)

    @classmethod
    def of(cls, saga: Saga, state: State) -> Self:
        """Make it of what the two sides have come to."""
        sides = OpenSide.of(saga.producer), OpenSide.of(saga.consumer)
        return cls(saga.plan.terms.uid, saga.expires_at, *sides, saga.plan.keys, state, saga)

    @property
    def producer_key(self) -> AppKey:
        """With what ProdApp says Hello, from anywhere."""
        return self._key(self.producer.gateway, Role.PROD)

    @property
    def consumer_key(self) -> AppKey:
        """With what ConsApp says Hello, from anywhere."""
        return self._key(self.consumer.gateway, Role.CONS)

    def _key(self, gateway: Gateway, role: Role) -> AppKey:
        return AppKey(self.uid, role, gateway.for_application(self.keys[role]))

    @property
    def listeners(self) -> tuple[Endpoint, ...]:
        """Where ConsApp connects to."""
        return self.consumer.listeners

    async def open(self, prod_listeners: Iterable[str | Endpoint] = (), hello_timeout: float | None = None) -> None:
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
        endpoints = parse_endpoints(map(str, prod_listeners))
        async with self._opening:
            await self._open(endpoints, hello_timeout)

    async def _open(self, prod_listeners: tuple[Endpoint, ...], hello_timeout: float | None) -> None:
        if self.state is State.ACTIVE:
            return
        if self._saga is None or self.state is not State.RESERVED:
            raise FailedPrecondition(f"session {self.uid} has been released; ask for another one")
        check_prod_listeners(prod_listeners, self._saga.plan.terms)
        async with self._saga.connected():
            await self._saga.open(prod_listeners, hello_timeout)
        self.producer, self.consumer = OpenSide.of(self._saga.producer), OpenSide.of(self._saga.consumer)
        self.state = State.ACTIVE

    async def status(self) -> list[pb.SessionInfo | None]:
        """Ask both gateways how it is.

        Returns:
            The protocol's SessionInfo of the producer's gateway, and of the consumer's; None where it is unknown.

        Raises:
            NotFound: neither knows it.
            Unavailable: one does not answer.
        """
        return await life.status(self.uid, self._gateways())

    async def renew(self, lease_s: int = 0) -> None:
        """Make it live longer, at both gateways; running streams notice nothing.

        Args:
            lease_s: seconds from now; 0 is the gateways' default.

        Raises:
            InvalidArgument: longer than a gateway allows.
            FailedPrecondition: it is not open.
            NotFound: it has ended.
            Unavailable: a gateway does not answer; try again.
        """
        self.expires_at = await life.renew(self.uid, self._gateways(), lease_s)

    async def release(self) -> None:
        """Give everything back on both sides. Releasing again is harmless.

        Raises:
            Unavailable: a gateway does not answer; release again, or the end of the lease does it there.
        """
        await life.release(self.uid, self._gateways())
        self.state = State.RELEASED

    def as_dict(self) -> dict[str, Any]:
        """Give what `s2uc request --json` prints."""
        producer, consumer = self.producer, self.consumer
        return {
            "uid": str(self.uid),
            "state": str(self.state),
            "expires_at": self.expires_at.isoformat(),
            "producer": {
                "gateway": producer.gateway.name,
                "listeners": [str(x) for x in producer.listeners],
                "targets": [str(x) for x in producer.targets],
            },
            "consumer": {"gateway": consumer.gateway.name, "listeners": [str(x) for x in consumer.listeners]},
        }

    def _gateways(self) -> list[Gateway]:
        return [self.producer.gateway, self.consumer.gateway]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.release()
        except ScistreamError as failed:
            if error is None:
                raise
            error.add_note(f"and the session could not be released: {failed}")  # what failed first is told first


async def request(
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
    """Open a session between two gateways: steps 0 to 7 of the protocol.

    Args:
        producer: the producer's gateway.
        consumer: the consumer's; another one.
        prod_listeners: where ProdApp listens, as `HOST:PORT`; empty means to wait for its Hello.
        num_conn: connections.
        rate: as `10Gb/s`, for the whole session; 0 is no limit.
        lease_s: wanted life in seconds; 0 is the gateways' default.
        backend: stunnel, haproxy, nginx or auto; empty is each gateway's choice.
        uid: empty means a new one; the same uid with the same content gives the same session.
        labels: your own notes, shown in lists.
        protocol: "tcp", always encrypted between the gateways, or "udp", which is not.
        unencrypted: has to be True for "udp".
        timeout: seconds for each call.
        hello_timeout: seconds to wait for ProdApp; None is as long as its gateway does.
        on_step: called with each step as it happens.

    Raises:
        InvalidArgument: a value that cannot be right; nothing was asked for.
        Unauthenticated: a gateway does not take the credentials.
        PermissionDenied: a gateway does not allow it to this user.
        ResourceExhausted: a gateway has no room for it.
        AlreadyExists: the uid is in use with other content.
        FailedPrecondition: a gateway is not set up for it.
        Unavailable: a gateway cannot be reached, or its proxy does not start.
        DeadlineExceeded: a gateway or the producer did not answer in time.

    Whatever fails, nothing is left of the session at either gateway.
    """
    endpoints = parse_endpoints(map(str, prod_listeners))
    terms = _terms(
        producer,
        consumer,
        endpoints,
        uid=uid,
        num_conn=num_conn,
        rate=rate,
        lease_s=lease_s,
        backend=backend,
        labels=labels,
        protocol=protocol,
        unencrypted=unencrypted,
    )
    plan = Plan(producer, consumer, terms, endpoints)
    return await carry_out(plan, timeout=timeout, hello_timeout=hello_timeout, on_step=on_step)


async def reserve(
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
    """Reserve a session at two gateways: steps 0 to 3 of the protocol. `Session.open` does the rest.

    In between the applications are started, with the session's keys, and where they connect to is known. A gateway
    waits for ProdApp as long as its operator has set (`hello_wait`, 10 minutes by default), then it gives all back.

    The arguments, and what is raised, are those of `request`.
    """
    terms = _terms(
        producer,
        consumer,
        (),
        uid=uid,
        num_conn=num_conn,
        rate=rate,
        lease_s=lease_s,
        backend=backend,
        labels=labels,
        protocol=protocol,
        unencrypted=unencrypted,
    )
    saga = Saga(Plan(producer, consumer, terms), timeout, on_step)
    async with saga.connected(), undone_on_failure(saga.producer, saga.consumer):
        await saga.reserve()
    return Session.of(saga, State.ACTIVE if saga.is_open else State.RESERVED)


def _terms(
    producer: Gateway,
    consumer: Gateway,
    prod_listeners: tuple[Endpoint, ...],
    *,
    uid: str,
    rate: Rate | str,
    labels: Mapping[str, str] | None,
    protocol: Transport | str,
    **more: Any,
) -> Terms:
    return Terms(
        uid=Uid(uid) if uid else new_uid(),
        rate=Rate.parse(rate) if isinstance(rate, str) else rate,
        producer=str(prod_listeners[0]) if prod_listeners else producer.name,
        consumer=consumer.name,
        labels=labels or {},
        protocol=Transport.parse(protocol),
        **more,
    )


async def carry_out(
    plan: Plan, *, timeout: float = TIMEOUT_S, hello_timeout: float | None = None, on_step: Report = silent
) -> Session:
    """Open the session of a plan; see `request`."""
    saga = Saga(plan, timeout, on_step)
    async with saga.connected(), undone_on_failure(saga.producer, saga.consumer):
        await saga.reserve()
        await saga.open(plan.prod_listeners, hello_timeout)
    return Session.of(saga, State.ACTIVE)
