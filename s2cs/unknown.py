"""Calls of methods that no server here has: answered apart, for gRPC to come to no harm by their names.

With gRPC for Python up to 1.85 at least, one call of a method whose name is no UTF-8 ends the server: whoever reaches
the port could, without credentials. Methods that are known come to it by another way, so it never sees such a name.
"""

from __future__ import annotations

import asyncio
import logging
from importlib import import_module
from typing import Any

from scistream.wire import grpc

log = logging.getLogger(__name__)
_core: Any = import_module("grpc._cython.cygrpc")  # has no types


class _ServerCore(_core.AioServer):  # type: ignore[misc]
    """gRPC's server, which gets from here no call but those of registered methods."""

    async def _request_call(self) -> Any:
        """Refuse call after call; the server waits in vain for one that it would have to look at."""
        refusals: set[asyncio.Task[None]] = set()
        while True:
            refusal = asyncio.create_task(_refuse(await super()._request_call()))
            refusals.add(refusal)
            refusal.add_done_callback(refusals.discard)


async def _refuse(call: Any) -> None:
    begin = _core.SendInitialMetadataOperation(None, 0)
    loop = asyncio.get_running_loop()
    try:
        await _core._send_error_status_from_server(
            call, _core.StatusCode.unimplemented, "there is no such method here", (), begin, loop
        )
    except _core.BaseError as error:
        log.debug("an unknown call could not be refused: %s", error)  # who called has gone


def server(**settings: Any) -> grpc.aio.Server:
    """Make a server as `grpc.aio.server` does; its handlers have to be registered ones, as generated code does it."""
    usual, _core.AioServer = _core.AioServer, _ServerCore
    try:
        return grpc.aio.server(**settings)
    finally:
        _core.AioServer = usual
