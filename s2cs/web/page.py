"""The page for people: its files, log-in and log-out, what it shows, and the two acts of an admin."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from s2cs.auth import Caller, user_only
from s2cs.door import Door, calling
from s2cs.gateway import Gateway
from s2cs.servicer import Servicer
from s2cs.store import Store
from s2cs.web.asking import Refused, ask, follow
from s2cs.web.guard import Guard, refused, sent
from s2cs.web.listener import Listener
from s2cs.web.logins import Login, Logins
from s2cs.web.stream import Stream
from s2cs.web.view import View
from scistream.errors import InvalidArgument, ScistreamError
from scistream.vocabulary import Endpoint, Uid
from scistream.x509 import names_of

log = logging.getLogger(__name__)

_FILES = Path(__file__).parent / "static"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_LOOK_S = 1.0  # between looks whether somebody has changed users
_MOST_CONNECTIONS = 512  # those of one address are bounded together with the control port's


@dataclass(frozen=True, slots=True)
class Kill:
    """What an admin asks: the end of a session."""

    uid: Uid
    owner: str
    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    """What an admin asks: no new sessions, or new ones again."""

    on: bool


class Page:
    """Serve the page.

    Args:
        gateway: that it is about.
        door: through which its callers go, too.
        servicer: of the API, whose words it shows.
        store: with the gateway's users.
    """

    def __init__(self, gateway: Gateway, door: Door, servicer: Servicer, store: Store) -> None:
        self._gateway = gateway
        self._store = store
        self._door = door
        self._logins = Logins(lambda: gateway.settings.web)
        self._view = View(gateway, servicer)
        self._cookie = f"scistream-{gateway.settings.server.name}"  # browsers tell hosts apart by it, not ports
        self._context: ssl.SSLContext | None = None
        self._names: frozenset[str] = frozenset()
        self._looking: asyncio.Task[None] | None = None
        files = [path for path in _FILES.iterdir() if path.suffix in _TYPES]
        app = Starlette(
            routes=[
                *(Route(f"/{path.name}", _file(path)) for path in files if path.suffix != ".html"),
                Route("/", _file(_FILES / "index.html")),
                Route("/api/login", self._answered(self._login), methods=["POST"]),
                Route("/api/logout", self._answered(self._logout), methods=["POST"]),
                Route("/api/overview", self._answered(self._overview)),
                Route("/api/events", self._answered(self._events)),
                Route("/api/sessions/{uid}", self._answered(self._session)),
                Route("/api/sessions/{uid}/kill", self._answered(self._kill), methods=["POST"]),
                Route("/api/drain", self._answered(self._drain), methods=["POST"]),
            ],
        )
        guarded = Guard(app, lambda: self._names)
        listen = gateway.settings.web.listen
        near = [endpoint for endpoint in listen if _is_loopback(endpoint)]
        far = [endpoint for endpoint in listen if not _is_loopback(endpoint)]
        if far:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._listeners = [Listener(guarded, near, "web", _MOST_CONNECTIONS)] if near else []
        if far:
            self._listeners.append(Listener(guarded, far, "web", _MOST_CONNECTIONS, self._context))
        self.certify()

    def certify(self) -> None:
        """Take the gateway's certificate as it is now: for TLS, and for the names that the page is asked for by."""
        server, listen = self._gateway.settings.server, self._gateway.settings.web.listen
        self._names = frozenset({*names_of(server.certificate.read_bytes()), *(endpoint.host for endpoint in listen)})
        if self._context is not None:
            self._context.load_cert_chain(server.certificate, server.key)

    def bind(self) -> None:
        """Take the ports.

        Raises:
            Unavailable: one cannot be had.
        """
        for listener in self._listeners:
            listener.bind()

    async def start(self) -> None:
        """Serve."""
        for listener in self._listeners:
            await listener.start()
        self._looking = asyncio.create_task(self._look_after_users())

    async def stop(self) -> None:
        """Log everybody out and stop."""
        if self._looking is not None:
            self._looking.cancel()
        self._logins.close_all()
        for listener in self._listeners:
            await listener.stop()

    def close(self) -> None:
        """Let the ports go."""
        for listener in self._listeners:
            listener.close()

    async def _look_after_users(self) -> None:
        """Log out whose user is disabled or removed, so that no cookie is good again when the user is."""
        seen: int | None = None
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                if (version := self._store.version()) != seen:
                    self._logins.close_all(self._is_gone)
                    seen = version
            except ScistreamError as error:
                log.debug("whether users are still there is not known: %s", error)

    def _is_gone(self, owner: str) -> bool:
        user = self._store.users.by_id(owner)
        return user is None or user.disabled

    def _answered(self, answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Answer, or say why not; whose credentials are not good any more is logged out."""

        async def answered(request: Request) -> Response:
            try:
                return await answer(request)
            except ScistreamError as error:
                refusal = Refused.by(error)
            except Refused as error:
                refusal = error
            if refusal.status == 401:
                self._logins.close(self._cookie_of(request))
            return refused(refusal.status, str(refusal))

        return answered

    def _cookie_of(self, request: Request) -> str:
        return request.cookies.get(self._cookie_name(request), "")

    def _cookie_name(self, request: Request) -> str:
        return f"__Host-{self._cookie}" if request.url.scheme == "https" else self._cookie

    def _who(self, request: Request) -> Login:
        login = self._logins.find(self._cookie_of(request))
        if login is None:
            raise Refused(401, "you are not logged in, or not any more")
        return login

    async def _login(self, request: Request) -> Response:
        given = await sent(request)
        token = str(given.get("token", "")).strip()
        if not token.isascii() or not token.isprintable():
            raise InvalidArgument("that is no token: it has characters that no token has; copy it again")
        caller = await ask(self._door, request, token, "login", None, _caller)
        self._logins.close(self._cookie_of(request))
        cookie = self._logins.open(token, caller.id)
        response = JSONResponse({"user": caller.name, "role": str(caller.role)})
        secure = request.url.scheme == "https"
        response.set_cookie(self._cookie_name(request), cookie, httponly=True, samesite="strict", secure=secure)
        return response

    async def _logout(self, request: Request) -> Response:
        self._logins.close(self._cookie_of(request))
        response = JSONResponse({})
        response.delete_cookie(self._cookie_name(request), httponly=True, samesite="strict")
        return response

    async def _overview(self, request: Request) -> Response:
        async def look(_: object) -> str:
            frame, _ = await self._view.frame(user_only(calling.get()))
            return frame

        return _json(await ask(self._door, request, self._who(request).token, "look", None, look))

    async def _session(self, request: Request) -> Response:
        uid = Uid(request.path_params["uid"])

        async def look(_: object) -> str:
            return await self._view.session(user_only(calling.get()), uid)

        return _json(await ask(self._door, request, self._who(request).token, "look", None, look))

    async def _kill(self, request: Request) -> Response:
        login, given = self._who(request), await sent(request)
        uid = Uid(request.path_params["uid"])
        kill = Kill(uid, str(given.get("owner", "")), str(given.get("reason", "")))

        async def act(kill: Kill) -> str:
            caller = user_only(calling.get())
            return (await self._gateway.orders.kill(caller, kill.uid, kill.owner, kill.reason)).reason

        return JSONResponse({"reason": await ask(self._door, request, login.token, "kill", kill, act)})

    async def _drain(self, request: Request) -> Response:
        login, given = self._who(request), await sent(request)
        on = given.get("on")
        if not isinstance(on, bool):
            raise InvalidArgument("on is neither true nor false; send one of them")

        async def act(_: object) -> None:
            self._gateway.orders.drain(user_only(calling.get()), on)

        await ask(self._door, request, login.token, "drain", Drain(on), act)
        return JSONResponse({"draining": on})

    async def _events(self, request: Request) -> Response:
        login = self._who(request)

        async def frames() -> AsyncIterator[str]:
            caller = user_only(calling.get())
            while self._logins.lasts(login):
                frame, seconds = await self._view.frame(caller)
                yield frame
                await stream.rest(seconds)

        stream = Stream(self._logins, login, follow(self._door, request, login.token, "look", frames))
        return stream


async def _caller(_: object) -> Caller:
    return user_only(calling.get())


def _is_loopback(endpoint: Endpoint) -> bool:
    return endpoint.host == "localhost" or (endpoint.ip is not None and endpoint.ip.is_loopback)


def _json(text: str) -> Response:
    return Response(text, media_type="application/json")


def _file(path: Path) -> Callable[[Request], Awaitable[Response]]:
    content, kind = path.read_bytes(), _TYPES[path.suffix]

    async def file(request: Request) -> Response:
        return Response(content, media_type=kind)

    return file
