"""A session as a saga over two gateways: what is asked for, and the steps that both take together."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self

from s2uc.gateway import Gateway, GatewayClient
from s2uc.life import together
from s2uc.side import Report, Side, StepEvent, Terms, new_key
from scistream.errors import InvalidArgument
from scistream.machine import State
from scistream.vocabulary import Endpoint, Role
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


class Saga:
    """Both sides of a session that is being made. Its calls go inside `async with saga.connected()`."""

    def __init__(self, plan: Plan, timeout: float, on_step: Report) -> None:
        begin = time.monotonic()
        self.plan = plan
        self.producer, self.consumer = (
            Side(GatewayClient(gateway, timeout), role, plan.terms, plan.keys[role], on_step, begin)
            for gateway, role in ((plan.producer, Role.PROD), (plan.consumer, Role.CONS))
        )

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Have a channel to both gateways; again and again, if need be."""
        async with AsyncExitStack() as stack:
            for side in (self.producer, self.consumer):
                await stack.enter_async_context(side.client)
            yield

    @property
    def is_open(self) -> bool:
        """True when both gateways said with RESP that the way is open already."""
        return self.producer.state == self.consumer.state == State.ACTIVE

    @property
    def expires_at(self) -> datetime:
        """The end of the shorter lease."""
        return min(self.producer.expires_at, self.consumer.expires_at)

    async def reserve(self) -> None:
        """REQ and RESP, at both."""
        await together(self.producer.reserve(), self.consumer.reserve())

    async def open(self, prod_listeners: tuple[Endpoint, ...], hello_timeout: float | None) -> None:
        """Do all from Hello to the open way, at both."""
        producer, consumer = self.producer, self.consumer
        announced = producer.announce(prod_listeners) if prod_listeners else producer.await_hello(hello_timeout)
        prod_listeners, _ = await together(announced, consumer.announce())
        if self.is_open:  # asked for again: new credentials would only disturb
            producer.targets, consumer.targets = prod_listeners, producer.listeners
            return
        ca = SessionCA.create(self.plan.terms.uid, self.expires_at)
        wan_peers = (consumer.wan_host,) if self.plan.terms.udp else ()
        await together(
            producer.open(producer.credentials(ca), prod_listeners, wan_peers),
            consumer.open(consumer.credentials(ca), producer.listeners),
        )
