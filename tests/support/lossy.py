"""A control network that loses calls: it stands before a gateway, with the gateway's own certificate."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from scistream.vocabulary import Endpoint
from scistream.wire import grpc
from tests.support.gateways import GatewayProcess

_BLACK_HOLE = 0.02  # of the lost calls, those of which nobody ever hears again


class Lossy(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Pass unary calls on; 30% are dropped before, 30% after they took effect, 30% come late."""

    def __init__(self, channel: grpc.aio.Channel, chance: random.Random) -> None:
        self._channel = channel
        self._chance = chance
        self.fates: Counter[str] = Counter()

    def service(self, details: Any) -> Any:
        """Handle every method alike."""

        async def call(message: bytes, context: Any) -> bytes:
            fate = self._chance.choices(["before", "after", "late", "clean"], [30, 30, 30, 10])[0]
            self.fates[fate] += 1
            if fate == "before":
                await self._lose(context)
            if fate == "late":
                await asyncio.sleep(self._chance.uniform(0.05, 0.5))
            metadata = [(key, value) for key, value in context.invocation_metadata() if key == "authorization"]
            try:
                answer = await self._channel.unary_unary(details.method)(message, metadata=metadata, timeout=60)
            except grpc.aio.AioRpcError as error:
                if fate == "after":
                    await self._lose(context)
                await context.abort(error.code(), error.details(), tuple(error.trailing_metadata() or ()))
            if fate == "after":
                await self._lose(context)
            return bytes(answer)

        return grpc.unary_unary_rpc_method_handler(call)

    async def _lose(self, context: Any) -> None:
        if self._chance.random() < _BLACK_HOLE:
            await asyncio.sleep(3600)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the network lost it")


@asynccontextmanager
async def lossy(gateway: GatewayProcess, seed: int) -> AsyncIterator[tuple[Endpoint, Lossy]]:
    """Put a lossy network before a gateway; where to reach it."""
    certs = gateway.directory / "certs"
    key, certificate = (certs / "server.key").read_bytes(), (certs / "server.crt").read_bytes()
    async with grpc.aio.secure_channel(gateway.address, grpc.ssl_channel_credentials(gateway.ca)) as channel:
        handler = Lossy(channel, random.Random(seed))
        server = grpc.aio.server(handlers=(handler,))
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
        await server.start()
        try:
            yield Endpoint("127.0.0.1", port), handler
        finally:
            await server.stop(0)
