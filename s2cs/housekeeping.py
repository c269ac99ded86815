"""What happens to sessions without a caller: time passes, an operator revokes, a proxy dies.

Nothing that goes wrong here ends it: without it no lease would end, and no session would be forgotten.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from math import inf

from s2cs.clock import Clock
from s2cs.effects import meaning
from s2cs.lifecycle import Lifecycle
from s2cs.live import Live, News
from s2cs.revocation import Revocations
from s2cs.s2ds.contract import Change, TunnelEvent
from s2cs.sessions import Sessions
from scistream.errors import ResourceExhausted, Unavailable
from scistream.machine import Revoke, Timeout

log = logging.getLogger(__name__)

_TICK_S = 0.25
_LOOK_S = 10.0  # a session whose time has not come is looked at so rarely: of ten thousand hardly any has
_STALLED_S = 15.0
_WARNING_S = 300.0  # before the end of a lease; a tenth of a short one


class Housekeeping:
    """Look at the sessions now and then, and listen to the data server.

    Args:
        lifecycle: where what is due is done.
        sessions: all there are.
        revocations: what is to be ended from outside of the protocol.
        clock: of leases.
        keep_ended: how many seconds an ended session is still known.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        sessions: Sessions,
        revocations: Revocations,
        clock: Clock,
        keep_ended: Callable[[], float],
    ) -> None:
        self._lifecycle = lifecycle
        self._sessions = sessions
        self._revocations = revocations
        self._clock = clock
        self._keep_ended = keep_ended
        self._tasks: list[asyncio.Task[None]] = []
        self._looked_at = inf  # when the sessions' deadlines were last looked at
        self._blind = False  # the store cannot say what is revoked

    @property
    def stalled(self) -> bool:
        """True when deadlines are no longer looked at."""
        return self._clock.now() - self._looked_at > _STALLED_S

    def start(self, news: AsyncIterator[TunnelEvent]) -> None:
        """Begin, and take the news of the data server for sessions' events."""
        self._looked_at = self._clock.now()
        self._tasks = [asyncio.create_task(self._watch_time()), asyncio.create_task(self._follow(news))]

    async def stop(self) -> None:
        """Stop."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch_time(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                self._sessions.save_again()
                self._revoke()
                now = self._clock.now()
                for live in self._sessions:
                    if now >= live.look_at:
                        self._look_at(live, now)
                self._looked_at = self._clock.now()
            except Exception:
                log.exception("the sessions' deadlines could not be looked at; they are looked at again")

    def _revoke(self) -> None:
        """End at once what an operator or the loss of its user ends; leases end without the store, too."""
        try:
            for session, reason in self._revocations.due(live.session for live in self._sessions.running):
                if (live := self._sessions.get(session.id)) is not None:
                    self._lifecycle.report(live, Revoke(reason))
            self._revocations.tidy()
            self._blind = False
        except (ResourceExhausted, Unavailable) as error:
            if not self._blind:
                log.error("%s; what is revoked ends when it can be used again", error)
            self._blind = True

    def _look_at(self, live: Live, now: float) -> None:
        """Do what is due for a session: forget it, end it, or warn of its end."""
        session = live.session
        warning = session.expires_at - min(_WARNING_S, (session.expires_at - session.created_at) / 10)
        if session.state.ended:
            due = live.ended_at + self._keep_ended()
            if now > due:
                self._sessions.forget(live)
        elif now >= session.deadline:
            self._lifecycle.report(live, Timeout())
            return
        elif not live.warned and now > warning:
            live.warned = True
            live.publish(News.EXPIRY, f"the lease ends in {session.expires_at - now:.0f} s")
            due = session.deadline
        else:
            due = session.deadline if live.warned else min(session.deadline, warning)
        live.look_at = min(due, now + _LOOK_S)

    async def _follow(self, news: AsyncIterator[TunnelEvent]) -> None:
        async for event in news:
            if (live := self._sessions.get(event.id)) is None:
                continue
            try:
                live.publish(News.DATA_SERVER, event.reason or event.change.value.lower())
                if (means := meaning(event)) is not None:
                    self._lifecycle.report(live, means)
                if event.change is not Change.LOST:
                    self._lifecycle.catch_up(live)
            except Exception:
                log.exception("session %s: news of its data server could not be taken", live.session.uid)
