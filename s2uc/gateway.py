"""One gateway as its users see it: where it is, how it is trusted, and the verbs of its control server."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from google.protobuf.message import Message

from s2uc.answers import sound
from s2uc.channels import Channels
from s2uc.probe import diagnose

if TYPE_CHECKING:
    from scistream.proto.scistream_pb2_grpc import ControlAsyncStub
from scistream.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    ScistreamError,
    Unauthenticated,
    Unavailable,
)
from scistream.machine import State
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Endpoint, printable
from scistream.wire import AGAIN, OWN_WORDS, error_from, grpc

_Q = TypeVar("_Q")
_A = TypeVar("_A", bound=Message)
TIMEOUT_S = 30.0
_FIRST_CONTACT_S = 3.0  # how long one that was never there may refuse; one that was there may be restarting
_FIRST_PART = 0.6
_ATTEMPT_S = 12.0  # then a call counts as lost; longer than a gateway needs for any of them
_ELSEWHERE_S = 4.0  # the same, for a connection where there is another address
_LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)  # by its stop


class TokenSource(Protocol):
    """Something that gives a good token whenever one is wanted."""

    async def token(self, rejected: str = "") -> str:
        """Give a token; another one than that which the gateway has rejected."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """A facility's control server, as a user knows it.

    Args:
        name: the user's word for it.
        endpoint: where it listens.
        ca_pem: the CA certificates that its own must come from (PEM); None means this computer's.
        token: the user's token there, or an application's key for one session.
        certificate: the user's certificate (PEM, with those between it and its CA), for the control channel.
        key: the certificate's private key (PEM, not encrypted).
        source: gives the tokens of a login that is renewed by itself; `token` is not used then.
        others: further addresses, of a facility with several control servers: any of them will do.
    """

    name: str
    endpoint: Endpoint
    ca_pem: bytes | None = None
    token: str = field(default="", repr=False)
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    source: TokenSource | None = field(default=None, repr=False, compare=False)
    others: tuple[Endpoint, ...] = ()

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise InvalidArgument(f"gateway {self.name}: a client certificate and its key go together; give both")
        if not re.fullmatch(r"[\x21-\x7e]{0,12288}", self.token):
            raise InvalidArgument(
                f"the token for gateway {self.name} is not one line of printable characters; copy it again"
            )

    def with_token(self, token: str) -> Gateway:
        """Give the same gateway, for somebody else."""
        return replace(self, token=token, source=None)

    def for_application(self, key: str) -> Gateway:
        """Give the same gateway, with an application's key and nothing else of its user's."""
        return Gateway(self.name, self.endpoint, self.ca_pem, key, others=self.others)

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where it can be reached, at any of them."""
        return (self.endpoint, *self.others)

    @property
    def anonymous(self) -> bool:
        """True when nothing says who the user is."""
        return not (self.token or self.source or self.certificate)

    def __str__(self) -> str:
        shown_name = ",".join(map(str, self.endpoints))
        return shown_name if self.name == shown_name else f"{self.name} ({shown_name})"


class GatewayClient:
    """Speak with one gateway, from `async with` on.

    Every call has a deadline. What the network loses is sent again, because every request can be.
    """

    def __init__(self, gateway: Gateway, timeout: float = TIMEOUT_S) -> None:
        self.gateway = gateway
        self.timeout = timeout
        self._reached = False

    async def __aenter__(self) -> Self:
        self._channels = Channels(self.gateway)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channels.close()

    @property
    def endpoint(self) -> Endpoint:
        """Which of the gateway's addresses is used now: the one that answered last."""
        return self._channels.endpoint

    async def req(self, request: pb.Request) -> pb.Response:
        """REQ: reserve listeners."""
        return await self._call(lambda stub: stub.req, request)

    async def hello(self, hello: pb.Hello) -> pb.AppResponse:
        """Announce an application."""
        return await self._call(lambda stub: stub.hello, hello)

    async def update(self, update: pb.UpdateTargets) -> pb.Response:
        """UpdateTargets: send the connection map and the credentials."""
        return await self._call(lambda stub: stub.update, update)

    async def renew(self, renew: pb.Renew) -> pb.Response:
        """Ask for a longer lease, and send the next trust anchor."""
        return await self._call(lambda stub: stub.renew, renew)

    async def release(self, uid: str, timeout: float | None = None) -> pb.Response:
        """REL: give everything back."""
        return await self._call(lambda stub: stub.release, pb.Release(uid=uid), timeout)

    async def describe(self) -> pb.GatewayDescription:
        """Ask what the gateway is, and who the caller is to it."""
        return await self._call(lambda stub: stub.describe, pb.DescribeRequest())

    async def methods(self) -> tuple[pb.Method, ...]:
        """Ask how one can prove who one is; needs no credentials."""
        return tuple((await self._call(lambda stub: stub.methods, pb.MethodsRequest(), anonymous=True)).methods)

    async def list(self, uid: str = "") -> tuple[pb.SessionInfo, ...]:
        """The caller's sessions there, or only the one of that uid."""
        return tuple((await self._call(lambda stub: stub.list, pb.ListRequest(uid=uid))).sessions)

    async def logs(self, uid: str, lines: int = 0) -> pb.SessionLog:
        """Ask what became of a session, and what its proxies printed last; 0 lines are all that are kept."""
        return await self._call(lambda stub: stub.logs, pb.LogsRequest(uid=uid, lines=lines))

    async def verify(self, uid: str, passive: bool = False) -> pb.Verification:
        """Have the gateway try its legs of a session; passive: nothing that the producer's application would see."""
        return await self._call(lambda stub: stub.verify, pb.VerifyRequest(uid=uid, passive=passive))

    async def watch(self, uid: str, lost: Callable[[], None] = lambda: None) -> AsyncGenerator[pb.SessionEvent, None]:
        """Follow a session: its present state, then each change, until it has ended.

        A broken connection is made again; the state then comes once more.

        Args:
            uid: the session.
            lost: is called when the connection breaks, before it is made again.
        """
        attempt = 0
        lost_at: float | None = None
        clock = asyncio.get_running_loop().time
        token, again = await self._token(), False
        while True:
            endpoint = self._channels.endpoint
            call = self._channels.stub.watch(pb.WatchRequest(uid=uid), metadata=_bearer(token))
            try:
                async for event in call:
                    self._reached, again, attempt, lost_at = True, False, 0, None
                    yield sound(event, self.gateway)
                return
            except grpc.aio.AioRpcError as error:
                if not again and (found := await self._other_token(error, token)):
                    token, again = found, True
                    continue
                lost_at = lost_at or clock()
                pause = _pause(attempt)
                attempt += 1
                await self._judge(error, endpoint, attempt, lost_at, lost_at + self.timeout, pause)
                if attempt == 1:
                    lost()
                await asyncio.sleep(pause)
                token = await self._token()
            finally:
                call.cancel()

    async def _token(self, rejected: str = "") -> str:
        source = self.gateway.source
        return await source.token(rejected) if source else self.gateway.token

    async def _other_token(self, error: grpc.aio.AioRpcError, rejected: str) -> str:
        """Get another token after a refusal, where there may be one: clocks differ, and issuers end tokens early."""
        if error.code() is not grpc.StatusCode.UNAUTHENTICATED or self.gateway.source is None:
            return ""
        return await self._token(rejected)

    async def _call(
        self,
        method: Callable[[ControlAsyncStub], grpc.aio.UnaryUnaryMultiCallable[_Q, _A]],
        message: _Q,
        timeout: float | None = None,
        anonymous: bool = False,
    ) -> _A:
        token, again = "" if anonymous else await self._token(), False
        clock = asyncio.get_running_loop().time
        begin = clock()
        end = begin + (timeout or self.timeout)
        attempt = 0
        while True:
            try:
                # A part is left for finding out why, with one that was never there.
                left = (end - clock()) * (1.0 if self._reached else _FIRST_PART)
                most = _ELSEWHERE_S if len(self._channels) > 1 and not self._channels.ready else _ATTEMPT_S
                endpoint = self._channels.endpoint
                call = method(self._channels.stub)
                answer = await call(message, timeout=max(min(left, most), 0.05), metadata=_bearer(token))
            except grpc.aio.AioRpcError as error:
                if not again and (found := await self._other_token(error, token)):
                    token, again = found, True
                    continue
                pause = _pause(attempt)
                attempt += 1
                await self._judge(error, endpoint, attempt, begin, end, pause)
                await asyncio.sleep(pause)
            else:
                self._reached = True
                return sound(answer, self.gateway)

    async def _judge(
        self, error: grpc.aio.AioRpcError, endpoint: Endpoint, attempt: int, begin: float, end: float, pause: float
    ) -> None:
        """Return when the call is worth another attempt after the pause; else raise what it stands for.

        Args:
            error: how it went.
            endpoint: where it was sent.
            attempt: which one it was, from 1.
            begin: when it was asked for.
            end: when it has to have been answered.
            pause: seconds before the next attempt.
        """
        status, details = error.code(), error.details() or ""
        marks = dict(error.trailing_metadata() or ())
        name = self.gateway
        in_time = asyncio.get_running_loop().time() + pause < end
        if status not in _LOST or OWN_WORDS in marks:
            self._reached = True
            if AGAIN in marks and in_time:
                return
            raise _said_by(self.gateway, status, details)
        ready = self._channels.ready
        self._channels.turn(endpoint)
        if in_time and attempt % len(self._channels):
            return  # there are addresses left to try
        if ready or self._reached:  # the call was lost, or its answer: it can be sent again
            if in_time:
                return
            if status is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise DeadlineExceeded(f"gateway {name} did not answer in time ({end - begin:g} s); ask for its state")
        left = end - asyncio.get_running_loop().time()
        gateway = self.gateway
        found = await diagnose(endpoint, gateway.ca_pem, min(max(left, 0.5), 3.0), bool(gateway.certificate))
        if found and not (found.passing and status is grpc.StatusCode.UNAVAILABLE):
            raise Unavailable(f"gateway {name}: {found.sentence}")
        now = asyncio.get_running_loop().time()
        if now + pause < min(end, begin + _FIRST_CONTACT_S):
            return
        raise Unavailable(f"gateway {name}: {found.sentence if found else f'the connection is lost ({details})'}")


def _said_by(gateway: Gateway, status: grpc.StatusCode, details: str) -> ScistreamError:
    """Make an error of a gateway's own words."""
    error = error_from(status, f"gateway {gateway.name}: {printable(details) or status.name}")
    if isinstance(error, Unauthenticated) and gateway.anonymous:
        return Unauthenticated(f"gateway {gateway.name}: no token is known for it; run: s2uc login {gateway.name}")
    return error


def _bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),) if token else ()


def _pause(attempt: int) -> float:
    """Wait longer each time, and never in step with others."""
    return random.uniform(0.05, min(2.0, 0.1 * 2**attempt) + 0.05)  # noqa: S311 - spreads load, hides nothing


async def wait_until(client: GatewayClient, uid: str, ready: Callable[[pb.SessionInfo], bool]) -> pb.SessionInfo:
    """Follow a session until `ready(info)`.

    Raises:
        DeadlineExceeded: it expired first.
        FailedPrecondition: it ended otherwise.
    """
    async with aclosing(client.watch(uid)) as events:
        async for event in events:
            info = event.session
            if ready(info):
                return info
            if info.state and State(info.state).ended:
                kind = DeadlineExceeded if info.state == State.EXPIRED else FailedPrecondition
                raise kind(f"gateway {client.gateway.name}: session {uid} has ended: {info.reason or info.state}")
    raise Unavailable(f"gateway {client.gateway.name}: it stopped reporting on session {uid}")
