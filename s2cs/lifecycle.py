"""A session's way from state to state: stepped, saved, told, and carried out by the data server.

Steps take no time and are never interrupted; what takes time (reserving, starting, stopping) runs in a task of the
session, one after another, and reports back as an event.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from s2cs.audit.log import Audit, moved
from s2cs.clock import Clock
from s2cs.effects import carry_out
from s2cs.live import Live, News
from s2cs.logs import about
from s2cs.s2ds.contract import DataServer, PreSharedKey, Traffic
from s2cs.sessions import Sessions
from scistream.errors import DeadlineExceeded, FailedPrecondition, ScistreamError, Unavailable
from scistream.machine import Broke, Effect, Event, Hello, Kept, Release, Renew, Session, State, Update, step
from scistream.vocabulary import Role

log = logging.getLogger(__name__)

_ENDING = (Effect.STOP, Effect.CUT)

# The session before and after a step, what it has moved in all if it ended and that is known, and when.
Observer = Callable[[Session, Session, Traffic | None, float], None]


class Lifecycle:
    """Apply events to sessions, and see to what follows from them."""

    def __init__(
        self,
        sessions: Sessions,
        data_server: DataServer,
        clock: Clock,
        audit: Audit,
        shared_key: Callable[[Session], PreSharedKey] | None = None,
    ) -> None:
        self.observers: list[Observer] = []
        self._sessions = sessions
        self._data_server = data_server
        self._clock = clock
        self._audit = audit
        self._shared_key = shared_key

    def apply(self, live: Live, event: Event) -> Session:
        """Step a session, save it, tell the watchers, begin what is to be done.

        What a caller asks for is refused when it cannot be saved. What has happened, and what gives back, goes on:
        it is saved as soon as that is possible again.

        Raises:
            FailedPrecondition: not now.
            InvalidArgument: not this way.
            ResourceExhausted, Unavailable: it cannot be saved.
        """
        before = live.session
        after, effects = step(before, event, self._clock.now())
        if after is not before:
            if isinstance(event, (Hello, Update, Renew)):
                self._sessions.save(after)
            else:
                self._sessions.save_sometime(after)
            self._sessions.become(live, after)
            for observer in self.observers:
                observer(before, after, live.traffic, self._clock.now())
            if after.state.ended and not before.state.ended:
                live.ended_at = self._clock.now()
        for effect in effects:
            if effect is Effect.FORWARD:
                if after.role is Role.PROD:
                    live.publish(News.PROD_LISTENERS, "the producer listens")
            else:
                self.act(live, effect)
        if after.state is not before.state:
            level = logging.WARNING if after.state in (State.RECOVERING, State.FAILED) else logging.INFO
            words = ("session %s: %s -> %s %s", after.uid, before.state, after.state, after.reason)
            log.log(level, *words, extra=about(after, state=str(after.state), reason=after.reason))
            live.publish(News.STATE, after.reason)
            self._record(before, live)
        return after

    def report(self, live: Live, event: Event) -> None:
        """Apply what the data server or the clock says; it may be late, and then it means nothing."""
        try:
            self.apply(live, event)
        except FailedPrecondition as error:
            log.debug("%s", error)

    def act(self, live: Live, effect: Effect) -> None:
        """Begin to carry an effect out, after those before it; what was to be cut once is not stopped gently later."""
        live.cut = live.cut or effect is Effect.CUT
        if effect is Effect.STOP and live.cut:
            effect = Effect.CUT
        live.task = asyncio.create_task(self._carry_out(live, effect, live.task))

    def catch_up(self, live: Live) -> None:
        """Do what is due since the data server could not be reached, now that there is news of it."""
        if live.task is not None and not live.task.done():
            return
        match live.session.state:
            case State.CLOSING:
                self.act(live, Effect.STOP)
            case State.STARTING:
                self.act(live, Effect.START)
            case State.ACTIVE if live.unsure:
                live.unsure = False
                self.act(live, Effect.UPDATE)

    async def settled(self, live: Live) -> None:
        """Wait until a running data server has taken over what was asked for, or refused it."""
        while live.session.state is State.ACTIVE and live.task is not None and not live.task.done():
            await asyncio.wait([live.task])

    async def taken_over(self, live: Live) -> Session:
        """Wait until the data server has done what an update or a renewal asked for.

        Raises:
            FailedPrecondition: the session ended meanwhile.
            ScistreamError: it was refused.
        """
        await self.settled(live)
        session = await live.until(lambda session: session.state is not State.STARTING)
        if session.state is State.CLOSING or session.state.ended:
            error = live.error
            with suppress(ScistreamError):
                session = await self.ended(live)
            raise error or FailedPrecondition(f"session {session.uid} is {session.state}: {session.reason}")
        if live.error is not None:
            raise live.error
        return session

    async def ended(self, live: Live) -> Session:
        """Wait until a session that is being ended has ended.

        Raises:
            Unavailable: its data server cannot end it now; that is tried again until it can.
        """
        ending = asyncio.ensure_future(live.until(lambda session: session.state.ended))
        try:
            while not live.session.state.ended:
                task = live.task
                await asyncio.wait([ending, *([task] if task else [])], return_when=asyncio.FIRST_COMPLETED)
                if task is live.task and (task is None or task.done()) and not live.session.state.ended:
                    raise live.error or Unavailable(f"session {live.session.uid} cannot be ended now")
        finally:
            ending.cancel()
        return live.session

    @contextmanager
    def waiting(self, live: Live) -> Iterator[None]:
        """Count a call that waits for Hello; when its caller goes, and no other waits, all is given back.

        Such a caller has had no answer: it knows of nothing that it could use later.
        """
        live.waiting += 1
        try:
            yield
        except asyncio.CancelledError:
            if live.waiting == 1 and live.session.state in (State.REQUESTED, State.RESERVED):
                self.report(live, Release("its client went away while it waited for Hello"))
            raise
        finally:
            live.waiting -= 1

    async def hello_came(self, live: Live) -> Session:
        """Wait until a session that is RESERVED has had its Hello.

        Raises:
            DeadlineExceeded: it did not come; what the session had is given back.
            FailedPrecondition: the session ended before.
        """
        session = await live.until(lambda session: session.state is not State.RESERVED)
        if session.state is State.CLOSING or session.state.ended:
            session = await live.until(lambda session: session.state.ended)
            kind = DeadlineExceeded if session.state is State.EXPIRED else FailedPrecondition
            raise kind(f"session {session.uid} ended before Hello came: {session.reason}; ask again")
        return session

    async def _carry_out(self, live: Live, effect: Effect, earlier: asyncio.Task[None] | None) -> None:
        if earlier is not None:
            if effect in _ENDING:
                earlier.cancel()  # stopping interrupts what is under way
            await asyncio.wait([earlier])
        try:
            event: Event | None = await carry_out(self._data_server, live.session, effect, live.moved, self._shared_key)
        except ScistreamError as error:
            live.error = error
            event = Kept() if effect is Effect.UPDATE else Broke(str(error))
        except Exception:
            log.exception("session %s: %s failed", live.session.uid, effect.value, extra=about(live.session))
            live.error = ScistreamError("the gateway has an internal fault; its operator finds it in the log")
            event = Kept() if effect is Effect.UPDATE else Broke(str(live.error))
        if effect in _ENDING and isinstance(event, Broke):
            live.error = Unavailable(f"session {live.session.uid} is given back as soon as it can be: {event.reason}")
            about_it = about(live.session, reason=event.reason)
            log.warning("session %s: is stopped again soon: %s", live.session.uid, event.reason, extra=about_it)
            live.publish(News.DATA_SERVER, str(live.error))
            return  # the deadline of CLOSING stops it again
        if event is not None:
            self.report(live, event)

    def _record(self, before: Session, live: Live) -> None:
        """Write down where a session begins to carry data, and where it ends."""
        after = live.session
        if after.state is State.ACTIVE and before.state is State.STARTING:
            self._audit.write("session.active", session=after, backend=after.backend, targets=after.targets)
        elif after.state.ended:
            self._audit.write(
                "session.end",
                session=after,
                reason=after.reason,
                outcome=after.state,
                lasted_s=round(self._clock.now() - after.created_at, 3),
                **moved(live.traffic),
            )
