"""The way in: bounds, who calls, what the credentials are for, the record of the call, and errors as statuses."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from math import inf
from typing import Any, NoReturn

from google.protobuf.message import DecodeError

from s2cs.audit.calls import Call, address, current
from s2cs.audit.log import Audit
from s2cs.auth import WITHOUT_TOKEN, Caller, KeptOut, KeyHolder, bearer, digest, is_bare, user_only
from s2cs.bounds import Bounds, Visit
from s2cs.compat import Old, OldClients
from s2cs.identity.authenticator import Authenticator
from scistream.errors import InvalidArgument, PermissionDenied, ScistreamError, Unauthenticated
from scistream.vocabulary import printable
from scistream.wire import grpc, marks_of, status_of

log = logging.getLogger(__name__)

calling: ContextVar[Caller | KeyHolder] = ContextVar("caller")
_LOOK_S = 1.0  # between looks at the credentials of a caller whose call goes on
_OPEN_TO_ALL = ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/List", "/scistream.Control/methods")
_NOT_SERVED = "/grpc.health.v1.Health/Watch"  # would last as long as any stranger likes
_OPEN_TO_KEYS = ("/scistream.Control/hello", "/scistream.Control/watch")  # whose session it is, is seen there
_OPEN_WITHOUT_TOKEN = tuple(f"/scistream.Control/{name}" for name in ("req", "hello", "update", "release"))  # [compat]
_SCOPES = {  # what each method needs; those that are not named are for any user
    "/scistream.Control/req": "sessions",
    "/scistream.Control/hello": "sessions",
    "/scistream.Control/update": "sessions",
    "/scistream.Control/renew": "sessions",
    "/scistream.Control/release": "sessions",
    "/scistream.Control/list": "read",
    "/scistream.Control/watch": "read",
    "/scistream.Control/logs": "read",
    "/scistream.Control/verify": "sessions",
    "/scistream.Web/look": "read",
    "/scistream.Web/kill": "admin",
    "/scistream.Web/drain": "admin",
}


class Door(grpc.aio.ServerInterceptor):
    """Let in who has credentials, and turn errors into statuses: the one place for both."""

    def __init__(self, authenticator: Authenticator, bounds: Bounds, audit: Audit, old_clients: OldClients) -> None:
        self.gate: Callable[[], object] = lambda: None  # raises while nothing is to be answered here
        self._old_clients = old_clients
        self._authenticator = authenticator
        self._bounds = bounds
        self._audit = audit

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """Wrap a method's handler."""
        handler = await continuation(details)
        if handler is None or details.method == _NOT_SERVED:
            return None
        if handler.unary_unary:
            guarded = self.guard_unary(handler.unary_unary, handler.request_deserializer, details.method)
            return grpc.unary_unary_rpc_method_handler(guarded, None, handler.response_serializer)
        if handler.unary_stream:
            guarded = self.guard_stream(handler.unary_stream, handler.request_deserializer, details.method)
            return grpc.unary_stream_rpc_method_handler(guarded, None, handler.response_serializer)
        guarded = self.guard_stream(handler.stream_stream, lambda requests: requests, details.method)
        return grpc.stream_stream_rpc_method_handler(guarded, handler.request_deserializer, handler.response_serializer)

    def guard_unary(self, inner: Any, decode: Any, method: str) -> Any:
        """Let a call in that has one answer; `decode` reads its message, and `method` is its path."""

        async def guarded(request: Any, context: Any) -> Any:
            call = self._call(context, method)
            try:
                self.gate()
                async with self._visit(context, method) as visit:
                    await self._identify(context, method, visit, call)
                    call.asks(message := _read(decode, request))
                    answer = await inner(message, context)
                    visit.good()
            except asyncio.CancelledError:
                call.abandoned()
                raise
            except Exception as error:
                await self._refuse(error, context, method, call)
            call.allowed()
            return answer

        return guarded

    def guard_stream(self, inner: Any, decode: Any, method: str) -> Any:
        """Let a call in that has answers for as long as its caller's credentials are good."""

        async def guarded(request: Any, context: Any) -> AsyncIterator[Any]:
            call = self._call(context, method)
            try:
                self.gate()
                async with self._visit(context, method) as visit:
                    caller = await self._identify(context, method, visit, call)
                    call.asks(message := _read(decode, request))
                    async with _as_long_as(caller, lambda: self._still(context, caller)):
                        async for item in inner(message, context):
                            visit.good()
                            yield item
            except Exception as error:
                await self._refuse(error, context, method, call)

        return guarded

    def _call(self, context: Any, method: str) -> Call:
        call = Call(self._audit, method, context.peer())
        current.set(call)
        return call

    def _visit(self, context: Any, method: str) -> AbstractAsyncContextManager[Visit]:
        return self._bounds.visit(context.peer(), _credential(context), method in _OPEN_TO_ALL)

    async def _identify(self, context: Any, method: str, visit: Visit, call: Call) -> Caller | KeyHolder | None:
        if method in _OPEN_TO_ALL:
            return None
        values = _authorizations(context)
        if len(values) > 1:
            raise Unauthenticated("there is more than one authorization; send one")
        try:
            authorization, tokenless = "".join(values), method in _OPEN_WITHOUT_TOKEN
            caller = await self._authenticator.identify(authorization, _certificate(context), tokenless)
        except KeptOut as refusal:
            call.caller = refusal.caller
            raise
        if isinstance(caller, Caller) and caller.method == WITHOUT_TOKEN:
            self._old_clients.of_caller(Old.NO_TOKEN, caller, address(context.peer()))
        elif isinstance(caller, Caller) and bearer(authorization) and is_bare(authorization):
            self._old_clients.of_caller(Old.BARE_TOKEN, caller, address(context.peer()))
        if isinstance(caller, Caller):
            visit.good()
            call.by(caller)  # before it is refused for what its credentials are not for
        if isinstance(caller, Caller) or method not in _OPEN_TO_KEYS:
            user_only(caller).needs(_SCOPES.get(method, ""))
        call.caller = caller
        calling.set(caller)
        return caller

    async def _still(self, context: Any, caller: Caller | KeyHolder | None) -> bool:
        """Tell whether a caller's credentials are what they were; where that cannot be known now, they are."""
        try:
            again = await self._authenticator.identify("".join(_authorizations(context)), _certificate(context))
        except (Unauthenticated, PermissionDenied):
            return False
        except ScistreamError:
            return True
        return _standing(again) == _standing(caller)

    async def _refuse(self, error: Exception, context: Any, method: str, call: Call) -> NoReturn:
        if isinstance(error, grpc.aio.AbortError):
            raise error
        if not isinstance(error, ScistreamError):
            log.error("%s failed", method, exc_info=error)
            error = ScistreamError("the gateway has an internal fault; its operator finds it in the log")
        words = printable(str(error))  # whatever is quoted in it, a line of the log stays one line
        log.info("%s from %s refused: %s: %s", method, context.peer(), error.status, words)
        call.refused(error)
        await context.abort(status_of(error), words, marks_of(error))
        raise AssertionError("abort raises")


def _authorizations(context: Any) -> list[str]:
    return [value for key, value in context.invocation_metadata() or () if key == "authorization"]


def _certificate(context: Any) -> bytes:
    """The client's certificate in PEM, which TLS has checked; empty on ports that want none."""
    found: bytes = next(iter(context.auth_context().get("x509_pem_cert", ())), b"")
    return found


def _credential(context: Any) -> str:
    """What a call brings, for counting: tokens begin with what tells them apart, and a JWT ends with it."""
    token = bearer("".join(_authorizations(context)))
    if not token:
        certificate = _certificate(context)
        return digest(certificate.decode()).hex() if certificate else ""
    return token[::-1] if token.count(".") == 2 else token


def _standing(caller: Caller | KeyHolder | None) -> tuple[object, ...]:
    return (caller.id, caller.role, caller.scopes) if isinstance(caller, Caller) else ()


async def _look_again(bound: asyncio.Timeout, still: Callable[[], Awaitable[bool]]) -> None:
    await asyncio.sleep(_LOOK_S)
    while await still():  # noqa: ASYNC110 - another process takes them away
        await asyncio.sleep(_LOOK_S)
    bound.reschedule(0)


@asynccontextmanager
async def _as_long_as(caller: Caller | KeyHolder | None, still: Callable[[], Awaitable[bool]]) -> AsyncIterator[None]:
    """End what goes on when a user's credentials end, or are taken away; a session's key ends with its session."""
    looking = None
    left = caller.expires_at - time.time() if isinstance(caller, Caller) and caller.expires_at != inf else None
    try:
        async with asyncio.timeout(left) as bound:
            if isinstance(caller, Caller):
                looking = asyncio.create_task(_look_again(bound, still))
            yield
    except TimeoutError:
        if bound.expired():
            raise Unauthenticated("your credentials have come to their end meanwhile; log in again") from None
        raise
    finally:
        if looking is not None:
            looking.cancel()


def _read(decode: Callable[[Any], Any], request: Any) -> Any:
    """Decode a message here rather than in gRPC, which would answer UNKNOWN with Python's words."""
    try:
        return decode(request)
    except DecodeError:
        raise InvalidArgument("the message is not of this protocol; compare the client's version") from None
