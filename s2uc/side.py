"""One gateway's part of a session, from REQ to the open way, and back."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from uuid import uuid4

from s2uc.gateway import Gateway, GatewayClient, wait_until
from s2uc.life import update_message
from scistream.errors import DeadlineExceeded, InvalidArgument, NotFound, ScistreamError, Unavailable
from scistream.machine import State
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Endpoint, Rate, Role, Transport, Uid, parse_endpoints, shown
from scistream.x509 import Credentials, SessionCA

_SETTLE_S = 2.0  # how long an undo waits for the answer to a REQ that is under way
_UNDO_S = 8.0


class Step(StrEnum):
    """What happens in a session, in the protocol's words; the last three when it fails or ends."""

    REQ = "REQ"
    RESP = "RESP"
    HELLO = "Hello"
    PROD_LSTN = "ProdLstn"
    UPDATE_TARGETS = "UpdateTargets"
    ACTIVE = "ACTIVE"
    REL = "REL"
    UNDONE = "undone"
    STUCK = "not undone"


@dataclass(frozen=True, slots=True)
class StepEvent:
    """A step at one gateway. `at` is in seconds since the session was asked for."""

    step: Step
    role: Role
    gateway: str
    at: float
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.at * 1000:8.1f} ms  {self.role}  {self.gateway:<12}  {self.step:<13}  {self.detail}".rstrip()


Report = Callable[[StepEvent], None]


def new_uid() -> Uid:
    """Make a uid that nobody has used."""
    return Uid(str(uuid4()))


def new_key() -> str:
    """Make the secret with which one application says Hello in one session."""
    return secrets.token_urlsafe(32)


@dataclass(frozen=True, slots=True)
class Terms:
    """What both gateways are asked for alike.

    Args:
        num_conn: connections, and so listeners, on each side.
        rate: for the whole session; 0 is no limit.
        lease_s: wanted life in seconds; 0 is the gateway's default.
        backend: stunnel, haproxy, nginx or auto; empty is the gateway's choice.
        producer: the producer's address, or its gateway as the user names it.
        consumer: the same of the consumer.
        labels: the user's own notes.
        protocol: TCP, which is always encrypted between the gateways, or UDP, which is not.
        unencrypted: has to be said of UDP.
    """

    uid: Uid = field(default_factory=new_uid)
    num_conn: int = 1
    rate: Rate = Rate()
    lease_s: int = 0
    backend: str = ""
    producer: str = ""
    consumer: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    protocol: Transport = Transport.TCP
    unencrypted: bool = False

    def __post_init__(self) -> None:
        if self.udp and not self.unencrypted:
            raise InvalidArgument(
                "udp goes between the gateways in plain, since no proxy encrypts it; say --unencrypted "
                "(unencrypted=True) if that may be, or use tcp"
            )
        if self.unencrypted and not self.udp:
            raise InvalidArgument("tcp is always encrypted between the gateways; leave --unencrypted out")
        if self.udp and self.rate.bytes_per_s:
            raise InvalidArgument("no rate can be kept for udp; ask for none, or use tcp")
        if not 1 <= self.num_conn <= 65535:
            raise InvalidArgument(f"num_conn {shown(self.num_conn)} is not 1-65535, and a gateway has as many ports")
        labels = [("label", f"{key}={value}") for key, value in self.labels.items()]
        for name, text in [
            ("backend", self.backend),
            ("producer", self.producer),
            ("consumer", self.consumer),
            *labels,
        ]:
            if not text.isprintable():
                raise InvalidArgument(f"{name} {shown(text)} has characters that cannot be printed; leave them out")
        if not 0 <= self.lease_s < 2**32:
            raise InvalidArgument(f"lease {shown(self.lease_s)} is not a number of seconds a gateway could count")

    @property
    def udp(self) -> bool:
        """True of UDP."""
        return self.protocol is Transport.UDP


class Side:
    """What one gateway does for one session."""

    def __init__(self, client: GatewayClient, role: Role, terms: Terms, key: str, report: Report, begin: float) -> None:
        self.client = client
        self.role = role
        self.terms = terms
        self.listeners: tuple[Endpoint, ...] = ()
        self.targets: tuple[Endpoint, ...] = ()
        self.csr = b""
        self.wan_host = ""  # of UDP: what its datagrams to the other gateway come from
        self.backend = ""
        self.state = ""  # as RESP says: a REQ that was sent before may be answered with an open way
        self.expires_at = datetime.max.replace(tzinfo=UTC)
        self._key_sha256 = hashlib.sha256(key.encode()).digest()
        self._report, self._begin = report, begin
        self._req: asyncio.Task[pb.Response] | None = None

    @property
    def gateway(self) -> Gateway:
        """The gateway that serves this side."""
        return self.client.gateway

    async def reserve(self) -> None:
        """REQ, and take in RESP."""
        terms = self.terms
        request = pb.Request(
            uid=terms.uid,
            role=self.role,
            num_conn=terms.num_conn,
            rate=terms.rate.kb_per_s,
            rate_bytes_per_s=terms.rate.bytes_per_s,
            immediate=True,
            protocol=terms.protocol,
            unencrypted=terms.unencrypted,
            producer=terms.producer,
            consumer=terms.consumer,
            lease_s=terms.lease_s,
            backend=terms.backend,
            labels=dict(terms.labels),
            hello_key_sha256=self._key_sha256,
        )
        self.tell(Step.REQ, f"{terms.num_conn} connections, rate {terms.rate}")
        # A task of its own: when all else is cancelled, its answer still says whether there is something to undo.
        self._req = asyncio.create_task(self.client.req(request))
        response = await asyncio.shield(self._req)
        self.listeners = parse_endpoints(response.listeners)
        self.csr, self.backend, self.state = response.csr, response.backend, response.state
        self.wan_host = response.wan_host
        if response.HasField("expires_at"):
            self.expires_at = response.expires_at.ToDatetime(tzinfo=UTC)
        if not self.listeners or not self.csr:
            raise Unavailable(
                f"gateway {self.gateway.name}: it answers like an old gateway, without a certificate request"
            )
        if len(self.listeners) != terms.num_conn:
            found = f"{len(self.listeners)} listeners for {terms.num_conn} connections"
            raise Unavailable(f"gateway {self.gateway.name}: it gives {found}; is it a gateway?")
        if self.expires_at <= datetime.now(UTC):
            raise DeadlineExceeded(
                f"gateway {self.gateway.name}: the session ends at {self.expires_at:%Y-%m-%d %H:%M:%S} UTC, which is "
                "over; ask for a longer lease, or compare the two hosts' clocks"
            )
        if terms.udp and not self.wan_host:
            raise Unavailable(
                f"gateway {self.gateway.name}: it does not say from where it sends udp; its version is too old for that"
            )
        self.tell(Step.RESP, f"{_joined(self.listeners)} by {self.backend}")

    def credentials(self, ca: SessionCA) -> Credentials | None:
        """Sign what this gateway asked for; UDP has no credentials."""
        if self.terms.udp:
            return None
        try:
            return ca.issue(self.csr, self.role)
        except InvalidArgument as error:
            raise Unavailable(f"gateway {self.gateway.name}: {error}; is it a gateway?") from None

    async def announce(self, prod_listeners: tuple[Endpoint, ...] = ()) -> tuple[Endpoint, ...]:
        """Say Hello in the application's place."""
        hello = pb.Hello(uid=self.terms.uid, role=self.role, prod_listeners=map(str, prod_listeners))
        await self.client.hello(hello)
        self.tell(Step.HELLO, _joined(prod_listeners))
        return prod_listeners

    async def await_hello(self, timeout: float | None) -> tuple[Endpoint, ...]:
        """Wait for ProdApp's own Hello (ProdLstn), at most as long as the gateway does."""
        try:
            async with asyncio.timeout(timeout):
                info = await wait_until(self.client, self.terms.uid, lambda info: bool(info.prod_listeners))
        except TimeoutError:
            raise DeadlineExceeded(f"the producer application has not said Hello within {timeout:g} s") from None
        self.tell(Step.PROD_LSTN, _joined(parse_endpoints(info.prod_listeners)))
        return parse_endpoints(info.prod_listeners)

    async def open(
        self, credentials: Credentials | None, targets: tuple[Endpoint, ...], wan_peers: tuple[str, ...] = ()
    ) -> None:
        """UpdateTargets; the way is open on this side when it returns."""
        self.tell(Step.UPDATE_TARGETS, f"to {_joined(targets)}")
        message = update_message(self.terms.uid, self.role, map(str, targets), credentials)
        message.wan_peers.extend(wan_peers)
        await self.client.update(message)
        self.targets = targets
        self.tell(Step.ACTIVE)

    async def undo(self) -> None:
        """Give back what this side may have taken; never raises, and tells what it did."""
        if self._req is None:
            return
        await asyncio.wait([self._req], timeout=_SETTLE_S)
        if not self._req.done():
            self._req.cancel()
        elif _refused(self._req) or self.state == State.ACTIVE:
            return  # nothing was taken: what has that uid there is not ours, or was open before
        try:
            await self.client.release(self.terms.uid, timeout=_UNDO_S / 2)
        except NotFound:
            return
        except ScistreamError as error:
            self.tell(Step.STUCK, f"{error}; what it may hold ends with its own time-outs")
        else:
            self.tell(Step.UNDONE, "released")

    def tell(self, step: Step, detail: str = "") -> None:
        """Report a step."""
        self._report(StepEvent(step, self.role, self.gateway.name, time.monotonic() - self._begin, detail))


def _refused(req: asyncio.Task[pb.Response]) -> bool:
    """True when it is certain that a REQ that is over took nothing."""
    error = None if req.cancelled() else req.exception()
    return isinstance(error, ScistreamError) and not isinstance(error, (Unavailable, DeadlineExceeded))


@asynccontextmanager
async def undone_on_failure(*sides: Side) -> AsyncIterator[None]:
    """Undo all sides, at once and in bounded time, when the block fails or is cancelled."""
    try:
        yield
    except BaseException:
        undoing = [asyncio.create_task(side.undo()) for side in sides]
        try:
            await asyncio.wait(undoing, timeout=_UNDO_S)
        finally:
            for task in undoing:
                task.cancel()
        raise


def _joined(endpoints: tuple[Endpoint, ...]) -> str:
    if len(endpoints) > 4:
        return f"{endpoints[0]} ... {endpoints[-1]} ({len(endpoints)})"
    return ", ".join(map(str, endpoints))
