"""The connections to a gateway: one for each of its addresses, made when it is wanted, and which is used now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scistream.proto.scistream_pb2_grpc import ControlStub
from scistream.vocabulary import Endpoint
from scistream.wire import CHANNEL_OPTIONS, MAX_ANSWER_BYTES, grpc

if TYPE_CHECKING:
    from s2uc.gateway import Gateway
    from scistream.proto.scistream_pb2_grpc import ControlAsyncStub

_OPTIONS: list[tuple[str, Any]] = [
    *CHANNEL_OPTIONS,
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # what an attempt gets at least: TCP and TLS handshake, far away or busy
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.use_local_subchannel_pool", 1),  # one client's failures do not slow down the next one
]


class Channels:
    """Reach a gateway at one of its addresses, and at the next when that is of no use."""

    def __init__(self, gateway: Gateway) -> None:
        self._credentials = grpc.ssl_channel_credentials(gateway.ca_pem, gateway.key, gateway.certificate)
        self._endpoints = gateway.endpoints
        self._made: dict[Endpoint, tuple[grpc.aio.Channel, ControlAsyncStub]] = {}
        self._at = 0

    def __len__(self) -> int:
        return len(self._endpoints)

    @property
    def endpoint(self) -> Endpoint:
        """The address that is used now."""
        return self._endpoints[self._at]

    @property
    def stub(self) -> ControlAsyncStub:
        """The verbs, at that address."""
        return self._now()[1]

    @property
    def ready(self) -> bool:
        """True while there is a connection."""
        return self._now()[0].get_state() is grpc.ChannelConnectivity.READY

    def turn(self, of: Endpoint) -> None:
        """Use the next address from now on, if one is used still that was of no use."""
        if of == self.endpoint:
            self._at = (self._at + 1) % len(self._endpoints)

    async def close(self) -> None:
        """Let go of all."""
        for channel, _ in self._made.values():
            await channel.close()

    def _now(self) -> tuple[grpc.aio.Channel, ControlAsyncStub]:
        endpoint = self.endpoint
        if endpoint not in self._made:
            options = list(_OPTIONS)
            if endpoint.ip is not None and endpoint.ip.is_loopback:
                options.append(("grpc.enable_http_proxy", 0))
            channel = grpc.aio.secure_channel(str(endpoint), self._credentials, options)
            self._made[endpoint] = channel, ControlStub(channel)
        return self._made[endpoint]
