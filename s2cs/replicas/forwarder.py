"""What an S2CS answers while another one of its facility leads: what that one answers.

Messages pass as they are. Who calls is told beside them: the address, and the certificate that TLS has checked here.
A call that the leader has not answered when it dies is asked again of the next one, as every call can be.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from s2cs import unknown
from s2cs.background import Background
from s2cs.bounds import Peer
from s2cs.connections import Connections
from s2cs.control import Credentials, add_ports, see_free, server_options
from s2cs.replicas.identity import NAME, Identity
from s2cs.settings import Settings
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import printable
from scistream.wire import AGAIN, CHANNEL_OPTIONS, MAX_ANSWER_BYTES, OWN_WORDS, grpc

log = logging.getLogger(__name__)

PEER, CERTIFICATE = "scistream-peer", "scistream-certificate-bin"
_PATIENCE_S = 15.0  # for a leader to be there, and to answer; longer than it takes to have another one
_AGAIN_S, _LONG_S = 0.1, 1.0
_SILENT = "the S2CS that leads does not answer; ask again"
_HEALTH = "/grpc.health.v1.Health/"
_OPTIONS = [
    *CHANNEL_OPTIONS,
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    ("grpc.ssl_target_name_override", NAME),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]


class Forwarder:
    """Serve the control ports by asking the S2CS that leads.

    Args:
        settings: of this one.
        identity: with which it asks.
        leader: what the one that leads says of itself; empty while none does.
        away: why the shared store cannot be asked; empty when it can.
    """

    def __init__(
        self, settings: Settings, identity: Identity, leader: Callable[[], dict[str, str]], away: Callable[[], str]
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._leader = leader
        self._away = away
        self._changed = asyncio.Event()
        self._known: dict[str, str] = {}
        self._channel: grpc.aio.Channel | None = None
        self._closing = Background()
        self._server: grpc.aio.Server | None = None
        listen = (*settings.server.listen, *settings.auth.certificates.listen)
        self._connections = Connections({endpoint.port for endpoint in listen}, lambda: settings.limits)

    async def start(self, credentials: Credentials) -> None:
        """Take the ports, and serve.

        Raises:
            Unavailable: a port is taken.
        """
        for endpoint in (*self._settings.server.listen, *credentials.client_listen):
            see_free(endpoint)
        self._server = server = unknown.server(interceptors=[], options=server_options())
        service = pb.DESCRIPTOR.services_by_name["Control"]
        for name, methods in (
            (service.full_name, {method.name: method.server_streaming for method in service.methods}),
            (_HEALTH.strip("/"), {"Check": False, "List": False}),
        ):
            handlers = {method: self._handler(f"/{name}/{method}", streams) for method, streams in methods.items()}
            server.add_registered_method_handlers(name, handlers)
        add_ports(server, credentials, self._settings.server.listen)
        await server.start()
        self._connections.start()
        self.look()

    def look(self) -> None:
        """See who leads now, and wake the calls that wait for it."""
        leader = self._leader()
        if leader != self._known:
            self._known = leader
            self._changed.set()
            self._changed = asyncio.Event()
            before, self._channel = self._channel, None
            if before is not None:
                self._closing.begin(before.close(_PATIENCE_S))
            if leader.get("serving"):
                pair = self._identity.client
                keys = grpc.ssl_channel_credentials(leader["server"].encode(), pair.key, pair.certificate)
                self._channel = grpc.aio.secure_channel(leader["address"], keys, options=_OPTIONS)

    async def stop(self, grace_s: float) -> None:
        """Take no new calls; those under way may end."""
        self._connections.stop()
        if self._server is not None:
            await self._server.stop(grace_s)
        if self._channel is not None:
            await self._channel.close()
        await self._closing.ended()

    @property
    def fault(self) -> str:
        """Say why no call could be passed on now; empty when it could."""
        if self._channel is not None:
            return ""
        return self._away() or "no S2CS of this facility leads at the moment; one will within seconds"

    def _handler(self, method: str, streams: bool) -> Any:
        if streams:
            return grpc.unary_stream_rpc_method_handler(self._stream(method))
        return grpc.unary_unary_rpc_method_handler(self._unary(method))

    def _unary(self, method: str) -> Any:
        async def forwarded(request: bytes, context: Any) -> bytes:
            deadline = _deadline(context)
            while True:
                channel, changed = await self._led(context, deadline)
                begin = _now()
                call: Any = _unary_of(channel, method)(
                    request, timeout=context.time_remaining(), metadata=_from(context)
                )
                try:
                    answer: bytes = await _unless(changed, call)
                except (grpc.aio.AioRpcError, _Changed) as error:
                    if _now() - begin > _LONG_S:  # it was being waited for, and is anew
                        deadline = _deadline(context)
                    if isinstance(error, grpc.aio.AioRpcError) and not (_lost(error) and _now() + _AGAIN_S < deadline):
                        await self._refuse(context, error)
                    await asyncio.sleep(_AGAIN_S)
                    continue
                self._prove(context)
                return answer

        return forwarded

    def _stream(self, method: str) -> Any:
        async def forwarded(request: bytes, context: Any) -> AsyncIterator[bytes]:
            deadline = _deadline(context)
            channel, changed = await self._led(context, deadline)
            call: Any = _stream_of(channel, method)(request, timeout=context.time_remaining(), metadata=_from(context))
            ending = asyncio.create_task(_cancel_when(changed, call))
            try:
                async for message in call:
                    self._prove(context)
                    yield message
            except grpc.aio.AioRpcError as error:
                await self._refuse(context, error)
            except asyncio.CancelledError:
                if not changed.is_set():
                    raise
                await context.abort(grpc.StatusCode.UNAVAILABLE, "another S2CS leads now; ask again")
            finally:
                ending.cancel()
                call.cancel()

        return forwarded

    async def _led(self, context: Any, deadline: float) -> tuple[grpc.aio.Channel, asyncio.Event]:
        """Wait for somebody who leads."""
        while self._channel is None:
            changed = self._changed
            try:
                async with asyncio.timeout(deadline - _now()):
                    await changed.wait()
            except TimeoutError:
                words = printable(self.fault or _SILENT)
                marks = ((OWN_WORDS, "UNAVAILABLE"), (AGAIN, "yes"))
                await context.abort(grpc.StatusCode.UNAVAILABLE, words, marks)
        return self._channel, self._changed

    async def _refuse(self, context: Any, error: grpc.aio.AioRpcError) -> None:
        if error.code() is not grpc.StatusCode.UNAUTHENTICATED and _own(error):
            self._prove(context)
        marks = [(key, value) for key, value in error.trailing_metadata() or () if key in (OWN_WORDS, AGAIN)]
        # Where the one that leads is, is nobody's affair; without a mark, the caller asks another S2CS next.
        words = _SILENT if _lost(error) and not _own(error) else error.details() or ""
        await context.abort(error.code(), words, tuple(marks))

    def _prove(self, context: Any) -> None:
        self._connections.prove(Peer.of(context.peer()))


def _unary_of(channel: grpc.aio.Channel, method: str) -> Any:
    return channel.unary_unary(method)


def _stream_of(channel: grpc.aio.Channel, method: str) -> Any:
    return channel.unary_stream(method)


class _Changed(Exception):
    """Another one leads."""


async def _unless(changed: asyncio.Event, call: Any) -> Any:
    """Wait for an answer, unless another S2CS begins to lead: the one that was asked may be there and do nothing."""
    answer, other = asyncio.ensure_future(call), asyncio.create_task(changed.wait())
    try:
        await asyncio.wait([answer, other], return_when=asyncio.FIRST_COMPLETED)
        if answer.done() and not answer.cancelled():
            return answer.result()
        raise _Changed
    finally:
        other.cancel()
        if not answer.done():
            answer.cancel()


async def _cancel_when(changed: asyncio.Event, call: Any) -> None:
    await changed.wait()
    call.cancel()


def _now() -> float:
    return asyncio.get_running_loop().time()


def _deadline(context: Any) -> float:
    left = context.time_remaining()
    return _now() + (_PATIENCE_S if left is None else min(left, _PATIENCE_S))


def _from(context: Any) -> tuple[tuple[str, Any], ...]:
    """Give what is passed on beside a message: the caller's credentials, and where they come from."""
    marks: Iterable[tuple[str, Any]] = context.invocation_metadata() or ()
    kept = [(key, value) for key, value in marks if key == "authorization"]
    pem = next(iter(context.auth_context().get("x509_pem_cert", ())), b"")
    return (*kept, (PEER, context.peer()), *([(CERTIFICATE, pem)] if pem else []))


def _own(error: grpc.aio.AioRpcError) -> bool:
    return any(key == OWN_WORDS for key, _ in error.trailing_metadata() or ())


def _again(error: grpc.aio.AioRpcError) -> bool:
    return any(key == AGAIN for key, _ in error.trailing_metadata() or ())


def _lost(error: grpc.aio.AioRpcError) -> bool:
    """Tell whether a call is to be asked again: nobody has answered, or who was asked stopped (CANCELLED) meanwhile."""
    gone = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    return gone and (not _own(error) or _again(error))
