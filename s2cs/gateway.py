"""The gateway: the one place where rules, store, policy and data server meet.

Each call loads a session, steps it, saves it, and then acts. Steps take no time and are never
interrupted; what takes time (reserving, starting, stopping) runs in a task of the session, one after
another, and reports back as an event. A caller that goes away interrupts nothing.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from math import inf

from s2cs import admission
from s2cs.audit.log import Audit, moved
from s2cs.auth import Caller, KeyHolder, user_only
from s2cs.clock import Clock
from s2cs.effects import carry_out, meaning, reconciled
from s2cs.live import Item, Live, News
from s2cs.logs import about
from s2cs.policy.decision import Lease, decide, usual_lease
from s2cs.policy.resolver import Resolver
from s2cs.policy.sessions import admit_targets, backend_for, check_quota, held_by_others, judged, objection
from s2cs.revocation import Revocations
from s2cs.s2ds.contract import DataServer, Traffic, TunnelStatus
from s2cs.sessions import Sessions
from s2cs.settings import Settings
from s2cs.store import Store
from s2cs.users import Rank
from s2cs.validation import check_proof, check_request, check_role
from scistream.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    ScistreamError,
    Unavailable,
)
from scistream.machine import (
    Broke,
    Effect,
    Event,
    Hello,
    Kept,
    Proof,
    Release,
    Renew,
    Request,
    Revoke,
    Session,
    State,
    Timeout,
    Update,
    Waits,
    open_session,
    step,
)
from scistream.vocabulary import Endpoint, Role, Uid, parse_endpoints
from scistream.x509 import Certificate

log = logging.getLogger(__name__)

DRAINING = "draining"  # the fact in the store
HELLO_WAIT_S = 180.0  # how long a `req` that waits for Hello may block
_TICK_S = 0.25
_STALLED_S = 15.0
_WARNING_S = 300.0  # before the end of a lease; a tenth of a short one


_ENDING = (Effect.STOP, Effect.CUT)

# The session before and after a step, what it has moved in all if it ended and that is known, and when.
Observer = Callable[[Session, Session, Traffic | None, float], None]


class Gateway:
    """Serve the sessions of one facility's gateway."""

    def __init__(self, settings: Settings, store: Store, data_server: DataServer, audit: Audit | None = None) -> None:
        self.settings = settings
        self.data_server = data_server
        self.clock = Clock.of(store)
        self._store = store
        self._audit = audit or Audit()
        self._sessions = Sessions(store)
        self.observers: list[Observer] = []
        self._resolver = Resolver()
        self._revocations = Revocations(store)
        self._background: list[asyncio.Task[None]] = []
        self._looked_at = inf  # when the sessions' deadlines were last looked at

    async def open(self) -> None:
        """Take up the sessions in the store, compare them with what the data server has, and begin to watch."""
        tunnels = {status.id: status for status in await self.data_server.list()}
        for session in self._sessions.stored():
            live = Live(session, self.clock.now() if session.state.ended else inf)
            self._sessions.keep(live)
            for each in reconciled(session, tunnels.pop(session.id, None)):
                if isinstance(each, Effect):
                    self._act(live, each)
                else:
                    self._report(live, each)
        for orphan in tunnels:
            log.warning("tunnel %s belongs to no session and is stopped", orphan)
            await self.data_server.stop(orphan)
        self._background = [asyncio.create_task(self._watch_time()), asyncio.create_task(self._watch_data_server())]

    async def close(self) -> None:
        """Stop. What becomes of the sessions is said by `on_shutdown`."""
        if self.settings.server.on_shutdown == "release":
            running = self._sessions.running
            for live in running:
                self._apply(live, Release("the gateway was shut down"))
            await asyncio.gather(*(live.until(lambda session: session.state.ended) for live in running))
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    @property
    def draining(self) -> bool:
        """True while new sessions are refused; noted in the store, so that it outlives this process."""
        return self._store.fact(DRAINING) == "yes"

    @property
    def running(self) -> list[Session]:
        """The sessions that have not ended."""
        return [live.session for live in self._sessions.running]

    @property
    def objections(self) -> list[str]:
        """The running sessions that the settings would not allow any more, each with its owner and what forbids it."""
        found = [(s, objection(self.settings, s.owner, s)) for s in self.running]
        return [f"{s.uid} of {s.owner.name} ({decision.rule})" for s, decision in found if decision is not None]

    @property
    def unsaved(self) -> int:
        """How many sessions' last change the store could not take yet."""
        return self._sessions.unsaved

    @property
    def unhealthy(self) -> str:
        """What only a restart would mend, in a sentence; empty when all is well."""
        if self.clock.now() - self._looked_at > _STALLED_S:
            return "the sessions' deadlines are no longer looked at"
        return ""

    @property
    def unready(self) -> str:
        """Why no new session could be opened now, in a sentence; empty when one could."""
        try:
            if self.draining:
                return "new sessions are not taken now: the gateway is being drained"
        except ScistreamError as error:
            return str(error)
        if self.unsaved:
            return f"{self.unsaved} sessions cannot be saved now; look at the disk of the state directory"
        backends = self.data_server.backends()
        if not any(backend.available for backend in backends):
            return "no proxy can be used: " + "; ".join(backend.reason for backend in backends)
        return ""

    def has_key(self, sha256: bytes) -> bool:
        """Tell whether a credential with this SHA-256 is the key of a session that is known here."""
        return any(KeyHolder(sha256).opens(live.session.request.hello_key_sha256) for live in self._sessions)

    # What callers ask for

    async def request(self, caller: Caller | KeyHolder, request: Request, wait_for_hello: bool = False) -> Session:
        """REQ: reserve listeners, or give the same answer again.

        Raises:
            AlreadyExists: the caller has a live session of that uid with other content.
            DeadlineExceeded: Hello was waited for and did not come; what was taken is given back.
            InvalidArgument, FailedPrecondition, PermissionDenied, ResourceExhausted: it cannot be had; nothing is kept.
        """
        owner = user_only(caller)
        check_request(self.settings, owner.owner, request)
        while (live := self._sessions.latest(owner.id, request.uid)) and live.session.state is State.CLOSING:
            await live.until(lambda session: session.state.ended)
        if live is None or live.session.state.ended:
            live = self._open(owner, request)
        elif live.session.request != request:
            raise AlreadyExists(
                f"session {request.uid} exists with other content; release it, or use another uid for the new one"
            )
        session = await live.until(lambda session: session.state is not State.REQUESTED)
        if live.error is not None and not session.listeners:
            error = live.error
            await live.until(lambda session: session.state.ended)
            self._sessions.forget(live)  # it never was one
            raise error
        if session.state is State.CLOSING or session.state.ended:
            session = await live.until(lambda session: session.state.ended)
            kind = DeadlineExceeded if session.state is State.EXPIRED else FailedPrecondition
            raise kind(f"session {session.uid} ended while its ports were being reserved: {session.reason}; ask again")
        if wait_for_hello:
            session = await self._wait_for_hello(live)
        return session

    async def hello(self, caller: Caller | KeyHolder, uid: Uid, role: Role, addresses: Iterable[str]) -> Session:
        """Hello: an application announces itself; the producer with where it listens.

        Raises:
            NotFound, Unauthenticated: no such session of this caller.
            InvalidArgument, FailedPrecondition, PermissionDenied: not this way, not now, not there.
        """
        live = self._sessions.find(caller, uid, Rank.ADMIN)
        check_role(live.session, role)
        endpoints = parse_endpoints(addresses) if live.session.role is Role.PROD else ()
        self._foresee(live.session, Hello(endpoints), endpoints)
        admitted = await self._admit(caller, live.session, Role.PROD, endpoints)
        return self._apply(live, Hello(admitted))

    async def update(
        self,
        caller: Caller | KeyHolder,
        uid: Uid,
        role: Role,
        addresses: Iterable[str],
        certificate: bytes,
        trust_anchor: bytes,
    ) -> Session:
        """UpdateTargets: open the way; returns when the data server serves it.

        Raises:
            NotFound: no such session of this caller.
            InvalidArgument, FailedPrecondition, PermissionDenied: not this way, not now, not there.
            Unavailable: the proxy does not come up; the session FAILs and gives everything back.
        """
        live = self._sessions.find(user_only(caller), uid, Rank.ADMIN)
        session = live.session
        check_role(session, role)
        endpoints = parse_endpoints(addresses)
        if not (certificate and trust_anchor):
            raise FailedPrecondition(
                f"session {uid} needs credentials for the WAN leg; send a certificate for the csr of req's answer "
                "and its trust_anchor, as s2uc does"
            )
        proof = Proof(certificate, trust_anchor)
        self._foresee(session, Update(endpoints, proof), endpoints)
        check_proof(session, proof)
        admitted = await self._admit(caller, session, session.role, endpoints)
        await self._settled(live)
        live.error = None
        self._apply(live, Update(admitted, proof))
        return await self._taken_over(live)

    async def renew(self, caller: Caller | KeyHolder, uid: Uid, lease_s: int, trust_anchor: bytes) -> Session:
        """Make a session live longer, and trust the anchor of the credentials that will come with an update.

        The update may then come to both gateways in any order: each trusts the old and the new meanwhile.

        Raises:
            NotFound: no such session of this caller.
            InvalidArgument, FailedPrecondition: not this way, or not now.
            PermissionDenied: what the session is would not be allowed any more.
            Unavailable: the data server refuses; the session goes on as it was.
        """
        live = self._sessions.find(user_only(caller), uid, Rank.ADMIN)
        user = judged(caller, live.session)
        decide(self.settings, user, Lease(lease_s)).require()
        if refusal := objection(self.settings, user, live.session):
            refusal.require()
        Certificate.from_der(trust_anchor)
        await self._settled(live)
        live.error = None
        expires_at = self.clock.now() + (lease_s or usual_lease(self.settings, user))
        self._apply(live, Renew(expires_at, trust_anchor))
        live.warned = False
        return await self._taken_over(live)

    async def release(self, caller: Caller | KeyHolder, uid: Uid) -> Session:
        """REL: give everything back; returns when it is back.

        Raises:
            NotFound: no such session of this caller.
        """
        user = user_only(caller)
        live = self._sessions.find(user, uid)
        by = "its user" if live.session.owner.id == user.id else f"{user.role} {user.name}"
        self._apply(live, Release(f"released by {by}"))
        return await live.until(lambda session: session.state.ended)

    async def list(
        self, caller: Caller | KeyHolder, uid: str = ""
    ) -> list[tuple[Session, TunnelStatus | None, Traffic | None]]:
        """Give the caller's sessions, or everybody's to an operator, newest last; what they moved, where it is known.

        Raises:
            NotFound: a uid was given, and the caller has no such session.
        """
        user = user_only(caller)
        if uid:
            found = [self._sessions.find(user, Uid(uid))]
        else:
            found = [live for live in self._sessions if user.operator or live.session.owner.id == user.id]
        running = [live.session.id for live in found if not live.session.state.ended]
        tunnels = {status.id: status for status in await self.data_server.list(*running)} if running else {}
        listed = [(live, tunnels.get(live.session.id)) for live in found]
        return [(live.session, tunnel, tunnel.traffic if tunnel else live.traffic) for live, tunnel in listed]

    def watch(self, caller: Caller | KeyHolder, uid: Uid) -> AsyncIterator[Item]:
        """Follow a session until it has ended.

        Raises:
            NotFound, Unauthenticated: no such session of this caller.
        """
        return self._sessions.find(caller, uid).watch()

    async def _admit(
        self, caller: Caller | KeyHolder, session: Session, role: Role, endpoints: Iterable[Endpoint]
    ) -> tuple[Endpoint, ...]:
        """Resolve where a session is to lead to, and see that it may."""
        held = held_by_others(self.running, session.owner)
        user = judged(caller, session)
        return await admit_targets(self.settings, self._resolver, user, session, role, endpoints, held)

    def _foresee(self, session: Session, event: Event, endpoints: Iterable[Endpoint]) -> None:
        """Refuse early what the rules refuse anyway. Of names, only too many: they are not resolved to be refused."""
        named = list(endpoints)
        if all(endpoint.ip for endpoint in named) or len(named) > session.request.num_conn:
            step(session, event, self.clock.now())

    # Steps and effects

    def _open(self, owner: Caller, request: Request) -> Live:
        limits = self.settings.limits
        if self.draining:
            raise Unavailable(f"gateway {self.settings.server.name} takes no new sessions now; use another, or wait")
        self._audit.require()
        user = owner.owner
        check_quota(self.settings, user, request, self.running)
        admission.admit(limits, self.running, request)
        waits = Waits(hello=limits.hello_wait, update=limits.update_wait)
        lease_s = request.lease_s or usual_lease(self.settings, user)
        session = open_session(secrets.token_hex(8), user, request, self.clock.now(), lease_s, waits)
        session = replace(session, backend=backend_for(self.settings, user, request, self.data_server.backends()))
        self._sessions.save(session)
        self._revocations.look_again()
        live = Live(session)
        self._sessions.keep(live)
        self._act(live, Effect.RESERVE)
        return live

    def _apply(self, live: Live, event: Event) -> Session:
        """Step a session, save it, tell the watchers, begin what is to be done.

        What a caller asks for is refused when it cannot be saved. What has happened, and what gives back, goes on:
        it is saved as soon as that is possible again.
        """
        before = live.session
        after, effects = step(before, event, self.clock.now())
        if after is not before:
            if isinstance(event, (Hello, Update, Renew)):
                self._sessions.save(after)
            else:
                self._sessions.save_sometime(after)
            live.become(after)
            for observer in self.observers:
                observer(before, after, live.traffic, self.clock.now())
            if after.state.ended and not before.state.ended:
                live.ended_at = self.clock.now()
        for effect in effects:
            if effect is Effect.FORWARD:
                if after.role is Role.PROD:
                    live.publish(News.PROD_LISTENERS, "the producer listens")
            else:
                self._act(live, effect)
        if after.state is not before.state:
            level = logging.WARNING if after.state in (State.RECOVERING, State.FAILED) else logging.INFO
            words = ("session %s: %s -> %s %s", after.uid, before.state, after.state, after.reason)
            log.log(level, *words, extra=about(after, state=str(after.state), reason=after.reason))
            live.publish(News.STATE, after.reason)
            self._record(before, live)
        return after

    def _record(self, before: Session, live: Live) -> None:
        """Write down where a session begins to carry data, and where it ends."""
        after = live.session
        if after.state is State.ACTIVE and before.state is State.STARTING:
            self._audit.write("session.active", session=after, backend=after.backend, targets=after.targets)
        elif after.state.ended:
            lasted = round(self.clock.now() - after.created_at, 3)
            self._audit.write(
                "session.end",
                session=after,
                reason=after.reason,
                outcome=after.state,
                lasted_s=lasted,
                **moved(live.traffic),
            )

    def _report(self, live: Live, event: Event) -> None:
        """Apply what the data server or the clock says; it may be late, and then it means nothing."""
        try:
            self._apply(live, event)
        except FailedPrecondition as error:
            log.debug("%s", error)

    async def _settled(self, live: Live) -> None:
        """Wait until a running data server has taken over what was asked for, or refused it."""
        while live.session.state is State.ACTIVE and live.task is not None and not live.task.done():
            await asyncio.wait([live.task])

    async def _taken_over(self, live: Live) -> Session:
        """Wait until the data server has done what an update or a renewal asked for.

        Raises:
            FailedPrecondition: the session ended meanwhile.
            ScistreamError: it was refused.
        """
        await self._settled(live)
        session = await live.until(lambda session: session.state is not State.STARTING)
        if session.state is State.CLOSING or session.state.ended:
            session = await live.until(lambda session: session.state.ended)
            raise live.error or FailedPrecondition(f"session {session.uid} is {session.state}: {session.reason}")
        if live.error is not None:
            raise live.error
        return session

    def _act(self, live: Live, effect: Effect) -> None:
        live.task = asyncio.create_task(self._carry_out(live, effect, live.task))

    async def _carry_out(self, live: Live, effect: Effect, earlier: asyncio.Task[None] | None) -> None:
        if earlier is not None:
            if effect in _ENDING:
                earlier.cancel()  # stopping interrupts what is under way
            await asyncio.wait([earlier])
        try:
            backend = self.settings.s2ds.backend
            event: Event | None = await carry_out(self.data_server, live.session, effect, backend, live.moved)
        except ScistreamError as error:
            live.error = error
            event = Kept() if effect is Effect.UPDATE else Broke(str(error))
        except Exception:
            log.exception("session %s: %s failed", live.session.uid, effect.value, extra=about(live.session))
            live.error = ScistreamError("the gateway has an internal fault; its operator finds it in the log")
            event = Kept() if effect is Effect.UPDATE else Broke(str(live.error))
        if effect in _ENDING and isinstance(event, Broke):
            about_it = about(live.session, reason=event.reason)
            log.warning("session %s: is stopped again soon: %s", live.session.uid, event.reason, extra=about_it)
            return  # the deadline of CLOSING stops it again
        if event is not None:
            self._report(live, event)

    async def _wait_for_hello(self, live: Live) -> Session:
        try:
            async with asyncio.timeout(HELLO_WAIT_S):
                session = await live.until(lambda session: session.state is not State.RESERVED)
        except TimeoutError:
            self._report(live, Release("no Hello came"))
            raise DeadlineExceeded(
                f"no Hello came for session {live.session.uid} within {HELLO_WAIT_S:.0f} s; it was released"
            ) from None
        if session.state is State.CLOSING or session.state.ended:
            raise FailedPrecondition(f"session {session.uid} ended before Hello came: {session.reason}")
        return session

    # What happens by itself

    async def _watch_time(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                self._looked_at = self.clock.now()
                self._sessions.save_again()
                self._revoke()
                for live in self._sessions:
                    self._look_at(live, self.clock.now())
            except Exception:  # without this task no session would ever end by itself
                log.exception("the sessions' deadlines could not be looked at; they are looked at again")

    def _revoke(self) -> None:
        """End at once what an operator or the loss of its user ends."""
        for session, reason in self._revocations.due(self.running):
            if (live := self._sessions.get(session.id)) is not None:
                self._report(live, Revoke(reason))
            self._revocations.done(session)

    def _look_at(self, live: Live, now: float) -> None:
        """Do what is due for a session: forget it, end it, or warn of its end."""
        session = live.session
        left = session.expires_at - now
        if session.state.ended:
            if now > live.ended_at + self.settings.limits.keep_ended:
                self._sessions.forget(live)
        elif now >= session.deadline:
            self._report(live, Timeout())
        elif not live.warned and left < min(_WARNING_S, (session.expires_at - session.created_at) / 10):
            live.warned = True
            live.publish(News.EXPIRY, f"the lease ends in {left:.0f} s")

    async def _watch_data_server(self) -> None:
        async for event in self.data_server.watch():
            live = self._sessions.get(event.id)
            if live is not None:
                live.publish(News.DATA_SERVER, event.reason or event.change.value.lower())
                self._report(live, meaning(event))
