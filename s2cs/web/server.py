"""The HTTP listener: metrics and health, in the event loop of the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from s2cs.gateway import Gateway
from s2cs.health import unhealthy, unready
from s2cs.metrics import Metrics
from scistream.errors import Unavailable
from scistream.vocabulary import Endpoint

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MOST_AT_ONCE = 64  # connections; a monitoring system has one or two
_IDLE_S = 30


class _Server(uvicorn.Server):
    """Leave the signals to the gateway."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Web:
    """Serve `/metrics`, `/healthz` and `/readyz`."""

    def __init__(self, gateway: Gateway, metrics: Metrics, listen: tuple[Endpoint, ...]) -> None:
        self._gateway = gateway
        self._metrics = metrics
        self._listen = listen
        self._sockets: list[socket.socket] = []
        self._task: asyncio.Task[None] | None = None
        self._server = _Server(
            uvicorn.Config(
                Starlette(
                    routes=[
                        Route("/metrics", self._metrics_page),
                        Route("/healthz", self._healthz),
                        Route("/readyz", self._readyz),
                    ]
                ),
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                ws="none",
                limit_concurrency=_MOST_AT_ONCE,
                timeout_keep_alive=_IDLE_S,
                timeout_graceful_shutdown=1,
            )
        )

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
                    f"metrics cannot be served on {endpoint}: the port is taken, or the address is not this host's; "
                    "change [metrics] listen"
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

    async def _metrics_page(self, request: Request) -> Response:
        return Response(await self._metrics.text(), headers={"Content-Type": _METRICS_TYPE})

    async def _healthz(self, request: Request) -> Response:
        return _verdict(unhealthy(self._gateway))

    async def _readyz(self, request: Request) -> Response:
        return _verdict(unready(self._gateway))


def _verdict(fault: str) -> Response:
    return PlainTextResponse(f"{fault or 'ok'}\n", status_code=503 if fault else 200)
