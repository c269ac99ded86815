"""What monitoring asks for: metrics and health, without credentials."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from s2cs.gateway import Gateway
from s2cs.health import unhealthy, unready
from s2cs.metrics import Metrics, following
from s2cs.settings import Settings
from s2cs.web.listener import Listener
from scistream.vocabulary import Endpoint

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MOST_AT_ONCE = 64  # connections; a monitoring system has one or two


class Monitoring(Listener):
    """Serve `/metrics`, `/healthz` and `/readyz`."""

    def __init__(self, gateway: Gateway, metrics: Metrics, listen: tuple[Endpoint, ...]) -> None:
        self._gateway = gateway
        self._metrics = metrics
        routes = [
            Route("/metrics", self._metrics_page),
            Route("/healthz", self._healthz),
            Route("/readyz", self._readyz),
        ]
        super().__init__(Starlette(routes=routes), listen, "metrics", _MOST_AT_ONCE)

    async def _metrics_page(self, request: Request) -> Response:
        return Response(await self._metrics.text(), headers={"Content-Type": _METRICS_TYPE})

    async def _healthz(self, request: Request) -> Response:
        return _verdict(unhealthy(self._gateway))

    async def _readyz(self, request: Request) -> Response:
        return _verdict(unready(self._gateway))


class FollowersMonitoring(Listener):
    """Serve the same for an S2CS that passes calls on to another one: it is well when it can."""

    def __init__(self, settings: Settings, fault: Callable[[], str]) -> None:
        self._fault = fault
        self._text = following(settings.server.name)
        routes = [
            Route("/metrics", self._metrics_page),
            Route("/healthz", self._healthz),
            Route("/readyz", self._readyz),
        ]
        super().__init__(Starlette(routes=routes), settings.metrics.listen, "metrics", _MOST_AT_ONCE)

    async def _metrics_page(self, request: Request) -> Response:
        return Response(self._text(), headers={"Content-Type": _METRICS_TYPE})

    async def _healthz(self, request: Request) -> Response:
        return _verdict("")

    async def _readyz(self, request: Request) -> Response:
        return _verdict(self._fault())


def _verdict(fault: str) -> Response:
    return PlainTextResponse(f"{fault or 'ok'}\n", status_code=503 if fault else 200)
