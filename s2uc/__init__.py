"""The user's side of SciStream: client library, orchestration of two gateways, app controller, CLI.

    import s2uc

    with s2uc.request(s2uc.known_gateway("aps"), s2uc.known_gateway("alcf"), num_conn=4) as session:
        consume(session.listeners)

`s2uc.request` waits for its end; `s2uc.aio.request` is the same for asyncio. `s2uc.reserve` stops half-way, for the
programs that are to be started before the way is open.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from s2uc import login
    from s2uc import session as aio
    from s2uc.app import hello, open_way
    from s2uc.blocking import Session, request, reserve
    from s2uc.config import known_gateway
    from s2uc.gateway import Gateway, GatewayClient
    from s2uc.keys import AppKey
    from s2uc.side import Step, StepEvent
    from s2uc.ticket import Ticket

__all__ = [
    "AppKey",
    "Gateway",
    "GatewayClient",
    "Session",
    "Step",
    "StepEvent",
    "Ticket",
    "aio",
    "hello",
    "known_gateway",
    "login",
    "open_way",
    "request",
    "reserve",
]

_MODULES = {"aio": "s2uc.session", "login": "s2uc.login"}
_HOME = {
    "AppKey": "keys",
    "Gateway": "gateway",
    "GatewayClient": "gateway",
    "Session": "blocking",
    "Step": "side",
    "StepEvent": "side",
    "Ticket": "ticket",
    "hello": "app",
    "known_gateway": "config",
    "open_way": "app",
    "request": "blocking",
    "reserve": "blocking",
}


def __getattr__(name: str) -> object:
    """Import what is asked for, and not before: `s2uc --help` needs none of it (PEP 562)."""
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name in _HOME:
        return getattr(import_module(f"s2uc.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
