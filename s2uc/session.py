"""Sessions over two gateways: steps 0 to 7 as one saga, and what is there afterwards.

What was done is undone on both sides when a step fails or the caller is cancelled.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from s2uc import life
from s2uc.gateway import TIMEOUT_S, Gateway, GatewayClient
from s2uc.life import together
from s2uc.side import Report, Side, StepEvent, Terms, new_key, new_uid, undone_on_failure
from scistream.errors import InvalidArgument
from scistream.machine import State
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Endpoint, Rate, Role, Uid, parse_endpoints
from scistream.x509 import SessionCA


def _new_keys() -> dict[Role, str]:
    return {role: new_key() for role in Role}


def silent(event: StepEvent) -> None:
    """Report nothing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A session to be made: which gateways, on what terms, with which applications' keys.

    Args:
        producer: the producer's gateway.
        consumer: the consumer's; another one.
        prod_listeners: where ProdApp listens; empty means to wait for its Hello.
    """

    producer: Gateway
    consumer: Gateway
    terms: Terms
    prod_listeners: tuple[Endpoint, ...] = ()
    keys: Mapping[Role, str] = field(default_factory=_new_keys, repr=False)

    def __post_init__(self) -> None:
        if self.producer.endpoint == self.consumer.endpoint:
            raise InvalidArgument(
                f"producer and consumer are both at gateway {self.producer}; a session needs one gateway for each side"
            )
        check_prod_listeners(self.prod_listeners, self.terms)


def check_prod_listeners(prod_listeners: tuple[Endpoint, ...], terms: Terms) -> None:
    """Refuse more addresses than connections, before a gateway does."""
    if len(prod_listeners) > terms.num_conn:
        raise InvalidArgument(
            f"{len(prod_listeners)} producer listeners are too many for num_conn {terms.num_conn}; "
            "give at most one for each connection"
        )


@dataclass(frozen=True, slots=True)
class OpenSide:
    """One side of an open session: its gateway, where that listens and where it leads."""

    gateway: Gateway
    listeners: tuple[Endpoint, ...]
    targets: tuple[Endpoint, ...]
    backend: str = ""

    @classmethod
    def of(cls, side: Side) -> Self:
        """Keep what a side has come to."""
        return cls(side.gateway, side.listeners, side.targets, side.backend)


@dataclass(slots=True)
class Session:
    """An open session. ConsApp connects to `consumer.listeners`.

    `async with` releases it at the end of the block.
    """

    uid: Uid
    expires_at: datetime
    producer: OpenSide
    consumer: OpenSide
    keys: Mapping[Role, str] = field(repr=False)
    state: State = State.ACTIVE

    @property
    def listeners(self) -> tuple[Endpoint, ...]:
        """Where ConsApp connects to."""
        return self.consumer.listeners

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
        await self.release()


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
    terms = Terms(
        uid=Uid(uid) if uid else new_uid(),
        num_conn=num_conn,
        rate=Rate.parse(rate) if isinstance(rate, str) else rate,
        lease_s=lease_s,
        backend=backend,
        producer=str(endpoints[0]) if endpoints else producer.name,
        consumer=consumer.name,
        labels=labels or {},
    )
    plan = Plan(producer, consumer, terms, endpoints)
    return await carry_out(plan, timeout=timeout, hello_timeout=hello_timeout, on_step=on_step)


async def carry_out(
    plan: Plan, *, timeout: float = TIMEOUT_S, hello_timeout: float | None = None, on_step: Report = silent
) -> Session:
    """Open the session of a plan; see `request`."""
    begin = time.monotonic()
    async with AsyncExitStack() as stack:
        producer, consumer = [
            Side(
                await stack.enter_async_context(GatewayClient(gateway, timeout)), role, plan.terms, key, on_step, begin
            )
            for gateway, role, key in (
                (plan.producer, Role.PROD, plan.keys[Role.PROD]),
                (plan.consumer, Role.CONS, plan.keys[Role.CONS]),
            )
        ]
        async with undone_on_failure(producer, consumer):
            await together(producer.reserve(), consumer.reserve())
            announced = (
                producer.announce(plan.prod_listeners) if plan.prod_listeners else producer.await_hello(hello_timeout)
            )
            prod_listeners, _ = await together(announced, consumer.announce())
            expires_at = min(producer.expires_at, consumer.expires_at)
            if producer.state == consumer.state == State.ACTIVE:  # asked for again: new credentials would only disturb
                producer.targets, consumer.targets = prod_listeners, producer.listeners
            else:
                ca = SessionCA.create(plan.terms.uid, expires_at)
                await together(
                    producer.open(producer.credentials(ca), prod_listeners),
                    consumer.open(consumer.credentials(ca), producer.listeners),
                )
    return Session(plan.terms.uid, expires_at, OpenSide.of(producer), OpenSide.of(consumer), plan.keys)
