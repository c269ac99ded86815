"""The control channel: the gRPC server, its bounds, and a change of its certificate."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Iterable
from typing import NamedTuple

from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from s2cs import unknown
from s2cs.audit.log import Audit
from s2cs.background import Background
from s2cs.bounds import Bounds
from s2cs.calls import CallCounter
from s2cs.compat import HELLO_WAIT_S
from s2cs.connections import Connections
from s2cs.door import Door
from s2cs.gateway import Gateway
from s2cs.health import unready
from s2cs.identity.authenticator import Authenticator
from s2cs.metrics import Metrics
from s2cs.servicer import Servicer
from scistream.errors import Unavailable
from scistream.proto import scistream_pb2 as pb
from scistream.proto.scistream_pb2_grpc import add_ControlServicer_to_server
from scistream.vocabulary import Endpoint
from scistream.wire import CHANNEL_OPTIONS, MAX_MESSAGE_BYTES, MAX_METADATA_BYTES, grpc

_SERVICE = pb.DESCRIPTOR.services_by_name["Control"].full_name
_HEALTH_S = 0.5
_LOOK_S, _REFUSALS = 2.0, 3  # whether the port is still there
_GRACE_S = HELLO_WAIT_S  # for what is under way on connections with the certificate before: no call waits longer
_MOST = "grpc.max_allowed_incoming_connections"
_OPTIONS = [
    *CHANNEL_OPTIONS,
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 1),  # two servers share the ports while the certificate changes
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),  # a hard bound; the other alone refuses by chance
    ("grpc.max_concurrent_streams", 100),  # of one connection
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.server_handshake_timeout_ms", 10_000),  # who connects and says nothing does not stay
    ("grpc.max_connection_idle_ms", 300_000),  # nor who has no call under way
    ("grpc.compression_enabled_algorithms_bitset", 1),  # none: a small message stays small
]


class Credentials(NamedTuple):
    """What TLS on the control ports needs; all in PEM."""

    certificate: bytes  # the gateway's own, with its chain
    key: bytes
    client_listen: tuple[Endpoint, ...] = ()  # the ports that want a client's certificate
    client_ca: bytes = b""  # who issues those


class Control:
    """Serve the protocol on the gateway's control ports.

    A server keeps its certificate; a new one gets a new server beside it, and then the old one ends. gRPC could
    ask for the certificate at each handshake instead, but with 1.85 that crashes the process when many connect.
    """

    def __init__(self, gateway: Gateway, authenticator: Authenticator, metrics: Metrics, audit: Audit) -> None:
        self._gateway = gateway
        self._counter = CallCounter(metrics)
        self.servicer = Servicer(gateway)
        self._listen = gateway.settings.server.listen
        ports, most = {endpoint.port for endpoint in self._listen}, _most_connections()
        self.connections = Connections(ports, lambda: gateway.settings.limits, most // 2)
        bounds = Bounds(lambda: gateway.settings.limits, self.connections.prove)
        self.door = Door(authenticator, bounds, audit, gateway.old_clients)
        self._health = health.aio.HealthServicer()
        self._client_listen: tuple[Endpoint, ...] = ()
        self._server: grpc.aio.Server | None = None
        self._telling: asyncio.Task[None] | None = None
        self._ending = Background()

    def bind(self, credentials: Credentials, shared: bool = False) -> None:
        """Take the ports; nothing is served yet.

        Args:
            credentials: what TLS needs.
            shared: this process serves on these ports already, and soon no more.

        Raises:
            Unavailable: a port is taken, or an address is not this host's.
        """
        for endpoint in () if shared else (*self._listen, *credentials.client_listen):
            see_free(endpoint)
        self._server = self._made(credentials)
        self._client_listen = credentials.client_listen
        self.connections.watch_also(endpoint.port for endpoint in credentials.client_listen)

    async def start(self) -> None:
        """Serve, and say so to those who ask for the gateway's health."""
        assert self._server is not None
        await self._server.start()
        self.connections.start()
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        self._telling = asyncio.create_task(self._tell_health())

    async def _tell_health(self) -> None:
        """Keep what gRPC's health service says of the protocol's service the same as what `/readyz` says."""
        while True:
            status = health_pb2.HealthCheckResponse
            await self._health.set(_SERVICE, status.NOT_SERVING if unready(self._gateway) else status.SERVING)
            await asyncio.sleep(_HEALTH_S)

    async def lost(self) -> None:
        """Wait until the control port refuses connections although nobody closed it: gRPC's own loop has ended.

        It does not come back by itself, and does not tell.
        """
        refused = 0
        while refused < _REFUSALS:
            await asyncio.sleep(_LOOK_S)
            refused = refused + 1 if await _refuses(self._listen[0]) else 0

    async def replace(self, credentials: Credentials) -> None:
        """Serve new connections with other credentials; what is under way on the old ones may end.

        Raises:
            Unavailable: a new port is taken; all stays as it is.
        """
        for endpoint in set(credentials.client_listen) - set(self._client_listen):
            see_free(endpoint)
        before, self._server = self._server, self._made(credentials)
        self._client_listen = credentials.client_listen
        self.connections.watch_also(endpoint.port for endpoint in credentials.client_listen)
        await self._server.start()
        if before is not None:
            self._ending.begin(before.stop(_GRACE_S))

    async def stop(self) -> None:
        """Stop at once: a watch never ends by itself, and what a caller asked for goes on without it."""
        self.connections.stop()
        if self._telling is not None:
            self._telling.cancel()
        await self._health.enter_graceful_shutdown()
        if self._server is not None:
            await self._server.stop(0)
        self._ending.cancel()

    def _made(self, credentials: Credentials) -> grpc.aio.Server:
        server = self.serving()
        reflection.enable_server_reflection((_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        add_ports(server, credentials, self._listen)
        return server

    def serving(self, *before: grpc.aio.ServerInterceptor, **bounds: int) -> grpc.aio.Server:
        """Make a server of the protocol, with no ports; `before` stand before the door, bounds are gRPC's options."""
        options = dict(server_options()) | {f"grpc.{name}": value for name, value in bounds.items()}
        server = unknown.server(interceptors=[self._counter, *before, self.door], options=list(options.items()))
        add_ControlServicer_to_server(self.servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        return server


def server_options() -> list[tuple[str, int]]:
    """Give what bounds a server of the control ports."""
    return [*_OPTIONS, (_MOST, _most_connections())]


def add_ports(server: grpc.aio.Server, credentials: Credentials, listen: Iterable[Endpoint]) -> None:
    """Let a server have the control ports.

    Raises:
        Unavailable: a port is taken, or an address is not this host's.
    """
    own = [(credentials.key, credentials.certificate)]
    _add_ports(server, listen, grpc.ssl_server_credentials(own))
    if credentials.client_listen:  # of their own: gRPC for Python has no certificate that a client may leave out
        asking = grpc.ssl_server_credentials(own, credentials.client_ca, require_client_auth=True)
        _add_ports(server, credentials.client_listen, asking)


async def _refuses(endpoint: Endpoint) -> bool:
    try:
        async with asyncio.timeout(_LOOK_S):
            _, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError):
        return False
    writer.close()
    return False


def see_free(endpoint: Endpoint) -> None:
    """See that nobody has a port: gRPC would share it with another gateway, and each caller get one by chance."""
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    try:
        addresses = socket.getaddrinfo(endpoint.host, endpoint.port, family if endpoint.ip else 0, socket.SOCK_STREAM)
        for found, kind, protocol, _, address in addresses:
            with socket.socket(found, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError:
        raise _cannot_listen(endpoint) from None


def _add_ports(server: grpc.aio.Server, listen: Iterable[Endpoint], credentials: grpc.ServerCredentials) -> None:
    for endpoint in listen:
        try:
            bound = server.add_secure_port(str(endpoint), credentials)
        except RuntimeError:
            bound = 0
        if not bound:
            raise _cannot_listen(endpoint)


def _cannot_listen(endpoint: Endpoint) -> Unavailable:
    return Unavailable(
        f"the gateway cannot listen on {endpoint}: the port is taken, or the address is not this host's; "
        "change listen in [server] or [auth.certificates]"
    )


def _most_connections() -> int:
    """Bound the control connections to each address: anybody can open them, and without descriptors gRPC crashes."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 10_000 if limit < 0 else min(limit // 4, 10_000)
