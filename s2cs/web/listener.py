"""An HTTP listener in the event loop of the gateway, over plain HTTP or TLS."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterable, Iterator

import uvicorn
from starlette.types import ASGIApp

from scistream.errors import Unavailable
from scistream.vocabulary import Endpoint

_IDLE_S = 30
_MOST_HEADERS = 16 * 1024  # bytes


class _Server(uvicorn.Server):
    """Leave the signals to the gateway."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Listener:
    """Serve an application on some addresses.

    Args:
        app: what is served.
        listen: where.
        table: of the settings, for whoever has to change it.
        most: connections at once; who comes then is answered 503.
        context: TLS; None is plain HTTP.
    """

    def __init__(
        self,
        app: ASGIApp,
        listen: Iterable[Endpoint],
        table: str,
        most: int,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._listen = tuple(listen)
        self._table = table
        self._sockets: list[socket.socket] = []
        self._task: asyncio.Task[None] | None = None
        config = uvicorn.Config(
            app,
            http="h11",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # who calls is who is connected, whatever it says
            lifespan="off",
            ws="none",
            limit_concurrency=most,
            h11_max_incomplete_event_size=_MOST_HEADERS,
            timeout_keep_alive=_IDLE_S,
            timeout_graceful_shutdown=1,
        )
        config.load()
        config.ssl = context
        self._server = _Server(config)

    def bind(self) -> None:
        """Take the ports.

        Raises:
            Unavailable: one is taken, or an address is not this host's.
        """
        for endpoint in self._listen:
            family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_STREAM)
            self._sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((endpoint.host, endpoint.port))
            except OSError:
                self.close()
                raise Unavailable(
                    f"{self._table} cannot be served on {endpoint}: the port is taken, or the address is not this "
                    f"host's; change [{self._table}] listen"
                ) from None

    async def start(self) -> None:
        """Serve."""
        if self._sockets:
            self._task = asyncio.create_task(self._server.serve(self._sockets))

    async def stop(self) -> None:
        """Stop, and let the ports go."""
        if self._task is not None:
            self._server.should_exit = True
            await self._task
        self.close()

    def close(self) -> None:
        """Let the ports go."""
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
