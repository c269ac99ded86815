"""Where the other S2CS of a facility pass calls on to the one that leads: its LAN port, by mutual TLS."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from s2cs.background import Background
from s2cs.control import Control, see_free
from s2cs.replicas.forwarder import CERTIFICATE, PEER
from s2cs.replicas.identity import Identity
from scistream.errors import Unavailable
from scistream.vocabulary import Endpoint
from scistream.wire import grpc

_GRACE_S = 30.0
_MOST_AT_ONCE = 10_000  # calls of all callers of another S2CS, on one connection


class Inner:
    """Serve the protocol to other S2CS, for their callers."""

    def __init__(self, control: Control, listen: Endpoint, identity: Identity) -> None:
        self._control = control
        self._listen = listen
        self._identity = identity
        self._known: frozenset[str] = frozenset()
        self._server: grpc.aio.Server | None = None
        self._ending = Background()

    async def know(self, certificates: Iterable[str]) -> None:
        """Serve those who have one of these certificates (PEM), and nobody else."""
        known = frozenset(certificates)
        if known == self._known:
            return
        self._known = known
        await self._replace(self._made(sorted(known)) if known else None)

    async def _replace(self, server: grpc.aio.Server | None) -> None:
        before, self._server = self._server, server
        if server is not None:
            await server.start()
        if before is not None:
            self._ending.begin(before.stop(_GRACE_S))

    async def stop(self) -> None:
        """Stop at once."""
        if self._server is not None:
            await self._server.stop(0)
        self._ending.cancel()

    def _made(self, known: list[str]) -> grpc.aio.Server:
        server = self._control.serving(_OnBehalf(), max_concurrent_streams=_MOST_AT_ONCE)
        own = self._identity.server
        roots = "".join(known).encode()
        asking = grpc.ssl_server_credentials([(own.key, own.certificate)], roots, require_client_auth=True)
        try:
            bound = server.add_secure_port(str(self._listen), asking)
        except RuntimeError:
            bound = 0
        if not bound:
            raise _taken(self._listen)
        return server


def see_port(listen: Endpoint) -> None:
    """See that the other S2CS could be served at an address.

    Raises:
        Unavailable: the port is taken, or the address is another host's.
    """
    try:
        see_free(listen)
    except Unavailable:
        raise _taken(listen) from None


def _taken(endpoint: Endpoint) -> Unavailable:
    return Unavailable(
        f"other S2CS cannot be served on {endpoint}: the port is taken, or the address is not this host's; "
        "change [store] listen"
    )


class _OnBehalf(grpc.aio.ServerInterceptor):
    """Let a call be that of who called the other S2CS."""

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """Wrap a method's handler."""
        handler = await continuation(details)
        if handler is None:
            return None
        if handler.unary_unary:

            async def unary(request: Any, context: Any) -> Any:
                return await handler.unary_unary(request, _Context(context))

            return grpc.unary_unary_rpc_method_handler(unary, handler.request_deserializer, handler.response_serializer)
        if handler.stream_stream:
            return None

        async def stream(request: Any, context: Any) -> Any:
            async for item in handler.unary_stream(request, _Context(context)):
                yield item

        return grpc.unary_stream_rpc_method_handler(stream, handler.request_deserializer, handler.response_serializer)


class _Context:
    """A call's context, with what the other S2CS says of the caller."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._marks = dict(context.invocation_metadata() or ())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def peer(self) -> str:
        """Where the call comes from, in gRPC's words."""
        return str(self._marks.get(PEER, ""))

    def auth_context(self) -> dict[str, list[bytes]]:
        """The caller's certificate, which the other S2CS has checked."""
        pem = self._marks.get(CERTIFICATE, b"")
        return {"x509_pem_cert": [pem]} if pem else {}
