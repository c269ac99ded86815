"""Frame after frame to a page that is open, and nothing when nobody looks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from s2cs.web.asking import Refused
from s2cs.web.guard import refused
from s2cs.web.logins import Login, Logins
from scistream.errors import ResourceExhausted

_HEADERS = [(b"content-type", b"text/event-stream")]
_SLOW_S = 20.0  # for a frame to be taken; who takes longer is cut off


class Stream(Response):
    """Send server-sent events for as long as the log-in lasts and somebody reads.

    Args:
        logins: where it is counted.
        login: whose it is.
        frames: what is sent; each is one line.
    """

    def __init__(self, logins: Logins, login: Login, frames: AsyncIterator[str]) -> None:
        self._logins = logins
        self._login = login
        self._frames = frames
        self._over: list[asyncio.Task[object]] = []

    async def rest(self, seconds: float) -> None:
        """Wait until the next frame is due, or there is nobody to send it to."""
        await asyncio.wait(self._over, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        try:
            self._logins.attach(self._login)
        except ResourceExhausted as error:
            await refused(429, str(error))(scope, receive, send)
            return
        self._over = [asyncio.create_task(_gone(receive)), asyncio.create_task(self._login.over.wait())]
        begun = False
        try:
            async with aclosing(self._frames) as frames:  # type: ignore[type-var]
                async for frame in frames:
                    if self._over[0].done():
                        return
                    if not begun:
                        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                        begun = True
                    await _sent(send, f"data: {frame}\n\n")
            await _sent(send, "event: over\ndata: {}\n\n", last=True)
        except Refused as refusal:
            if refusal.status == 401:
                self._login.over.set()
            if begun:
                await _sent(send, f"event: over\ndata: {json.dumps({'error': str(refusal)})}\n\n", last=True)
            else:
                await refused(refusal.status, str(refusal))(scope, receive, send)
        except TimeoutError:
            return  # the connection is ended, since its answer is not
        finally:
            self._logins.detach(self._login)
            for task in self._over:
                task.cancel()


async def _sent(send: Send, text: str, last: bool = False) -> None:
    async with asyncio.timeout(_SLOW_S):
        await send({"type": "http.response.body", "body": text.encode(), "more_body": not last})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
