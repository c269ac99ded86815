"""The gateway: the one place where rules, store, policy and data server meet.

Each call loads a session, steps it, saves it, and then acts. Steps take no time and are never
interrupted; what takes time (reserving, starting, stopping) runs in a task of the session, one after
another, and reports back as an event. A caller that goes away interrupts nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from s2cs import admission
from s2cs.auth import Caller, KeyHolder
from s2cs.clock import Clock
from s2cs.live import Item, Live, News
from s2cs.policy import admit
from s2cs.s2ds.contract import Bridge, Change, DataServer, TunnelEvent, TunnelSpec, TunnelState, TunnelStatus
from s2cs.settings import Settings
from s2cs.store import Store
from scistream.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ScistreamError,
    Unauthenticated,
    Unavailable,
)
from scistream.machine import (
    Broke,
    Effect,
    Event,
    Exited,
    Hello,
    Kept,
    Proof,
    Release,
    Renew,
    Request,
    Reserved,
    Session,
    Started,
    State,
    Stopped,
    Timeout,
    Update,
    Waits,
    open_session,
    step,
)
from scistream.vocabulary import Endpoint, Role, Uid, parse_endpoints, shown
from scistream.x509 import Certificate, Credentials

log = logging.getLogger(__name__)

DRAINING = "draining"  # the fact in the store
HELLO_WAIT_S = 180.0  # how long a `req` that waits for Hello may block
_TICK_S = 0.25
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")


class Gateway:
    """Serve the sessions of one facility's gateway."""

    def __init__(self, settings: Settings, store: Store, data_server: DataServer) -> None:
        self.settings = settings
        self.data_server = data_server
        self.clock = Clock.of(store)
        self._store = store
        self._sessions: dict[str, Live] = {}
        self._by_uid: dict[tuple[str, Uid], Live] = {}  # the latest of an owner's sessions of that uid
        self._unsaved: set[str] = set()  # sessions whose last change the store could not take
        self._background: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Take up the sessions in the store, compare them with what the data server has, and begin to watch."""
        tunnels = {status.id: status for status in await self.data_server.list()}
        for session in self._store.sessions():
            live = Live(session)
            self._keep(live)
            self._reconcile(live, tunnels.pop(session.id, None))
        for orphan in tunnels:
            log.warning("tunnel %s belongs to no session and is stopped", orphan)
            await self.data_server.stop(orphan)
        self._background = [asyncio.create_task(self._watch_time()), asyncio.create_task(self._watch_data_server())]

    def _reconcile(self, live: Live, tunnel: TunnelStatus | None) -> None:
        """Bring a session of an earlier process together with its tunnel as it is now."""
        session = live.session
        if session.state.ended:
            if tunnel is not None:
                self._act(live, Effect.STOP)
            return
        if session.state is State.CLOSING:
            self._act(live, Effect.STOP)
        elif session.state is State.REQUESTED or tunnel is None or tunnel.state is TunnelState.FATAL:
            gone = tunnel.reason if tunnel else "its data server was gone when the control server started again"
            self._report(live, Broke(gone or "the control server was interrupted while it was being made"))
        elif tunnel.state is TunnelState.BACKOFF:
            self._report(live, Exited(tunnel.reason))
        elif tunnel.state is TunnelState.RUNNING:
            self._report(live, Started())
            if session.before_update is not None:
                self._act(live, Effect.UPDATE)  # it may have been saved and not done; twice does no harm
        elif session.state is State.STARTING:
            self._act(live, Effect.START)
        elif session.state in (State.ACTIVE, State.RECOVERING):
            self._report(live, Broke("its data server was lost"))

    async def close(self) -> None:
        """Stop. What becomes of the sessions is said by `on_shutdown`."""
        running = [live for live in self._sessions.values() if not live.session.state.ended]
        if self.settings.server.on_shutdown == "release":
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

    # What callers ask for

    async def request(self, caller: Caller | KeyHolder, request: Request, wait_for_hello: bool = False) -> Session:
        """REQ: reserve listeners, or give the same answer again.

        Raises:
            AlreadyExists: the caller has a live session of that uid with other content.
            DeadlineExceeded: Hello was waited for and did not come; what was taken is given back.
            InvalidArgument, FailedPrecondition, PermissionDenied, ResourceExhausted: it cannot be had; nothing is kept.
        """
        owner = self._user(caller)
        await self._check_request(request)
        while (live := self._by_uid.get((owner.name, request.uid))) and live.session.state is State.CLOSING:
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
            self._forget(live)  # it never was one
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
        live = self._find(caller, uid)
        self._check_role(live.session, role)
        endpoints = parse_endpoints(addresses) if live.session.role is Role.PROD else ()
        self._foresee(live.session, Hello(endpoints), endpoints)
        admitted = await self._admit(Role.PROD, endpoints)
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
        live = self._find(self._user(caller), uid)
        session = live.session
        self._check_role(session, role)
        endpoints = parse_endpoints(addresses)
        if not (certificate and trust_anchor):
            raise FailedPrecondition(
                f"session {uid} needs credentials for the WAN leg; send a certificate for the csr of req's answer "
                "and its trust_anchor, as s2uc does"
            )
        proof = Proof(certificate, trust_anchor)
        self._foresee(session, Update(endpoints, proof), endpoints)
        _credentials(proof).check(uid, session.role, _csr_key(session.csr), datetime.now(UTC))
        admitted = await self._admit(session.role, endpoints)
        for endpoint in admitted:
            if endpoint in session.listeners:
                raise InvalidArgument(f"{endpoint} is this session's own listener; it would lead to itself for ever")
        await self._settled(live)
        live.error = None
        self._apply(live, Update(admitted, proof))
        await self._settled(live)
        session = await live.until(lambda session: session.state is not State.STARTING)
        if session.state is State.CLOSING or session.state.ended:
            session = await live.until(lambda session: session.state.ended)
            raise live.error or FailedPrecondition(f"session {uid} is {session.state}: {session.reason}")
        if live.error is not None:
            raise live.error
        return session

    async def renew(self, caller: Caller | KeyHolder, uid: Uid, lease_s: int, trust_anchor: bytes) -> Session:
        """Make a session live longer, and trust the anchor of the credentials that will come with an update.

        The update may then come to both gateways in any order: each trusts the old and the new meanwhile.

        Raises:
            NotFound: no such session of this caller.
            InvalidArgument, FailedPrecondition: not this way, or not now.
            Unavailable: the data server refuses; the session goes on as it was.
        """
        live = self._find(self._user(caller), uid)
        self._check_lease(lease_s)
        Certificate.from_der(trust_anchor)
        await self._settled(live)
        live.error = None
        expires_at = self.clock.now() + (lease_s or self.settings.limits.default_lease)
        self._apply(live, Renew(expires_at, trust_anchor))
        live.warned = False
        await self._settled(live)
        if live.error is not None:
            raise live.error
        return live.session

    async def release(self, caller: Caller | KeyHolder, uid: Uid) -> Session:
        """REL: give everything back; returns when it is back.

        Raises:
            NotFound: no such session of this caller.
        """
        live = self._find(self._user(caller), uid)
        by = "its user" if live.session.owner == self._user(caller).name else "an admin"
        self._apply(live, Release(f"released by {by}"))
        return await live.until(lambda session: session.state.ended)

    async def list(self, caller: Caller | KeyHolder, uid: str = "") -> list[tuple[Session, TunnelStatus | None]]:
        """Give the caller's sessions, or everybody's to an admin, newest last.

        Raises:
            NotFound: a uid was given, and the caller has no such session.
        """
        user = self._user(caller)
        if uid:
            found = [self._find(user, Uid(uid))]
        else:
            found = [live for live in self._sessions.values() if user.admin or live.session.owner == user.name]
        tunnels = {status.id: status for status in await self.data_server.list()}
        return [(live.session, tunnels.get(live.session.id)) for live in found]

    def watch(self, caller: Caller | KeyHolder, uid: Uid) -> AsyncIterator[Item]:
        """Follow a session until it has ended.

        Raises:
            NotFound, Unauthenticated: no such session of this caller.
        """
        return self._find(caller, uid).watch()

    # Checks

    def _user(self, caller: Caller | KeyHolder) -> Caller:
        if isinstance(caller, KeyHolder):
            raise Unauthenticated("the token is not a user's at this gateway; ask its operator for one")
        return caller

    def _find(self, caller: Caller | KeyHolder, uid: Uid) -> Live:
        """Find a session that the caller may touch; another's looks as if it did not exist."""
        if isinstance(caller, KeyHolder):
            for live in self._sessions.values():
                request = live.session.request
                if request.uid == uid and caller.opens(request.hello_key_sha256):
                    return live
            raise Unauthenticated(f"the credentials are neither a user's token nor the key of session {uid}")
        found = self._by_uid.get((caller.name, uid))
        if found is None and caller.admin:
            others = [live for live in self._sessions.values() if live.session.uid == uid]
            found = max(others, key=lambda live: (not live.session.state.ended, live.session.created_at), default=None)
        if found is None:
            raise NotFound(f"there is no session {uid} of yours at this gateway; s2uc list shows what there is")
        return found

    def _check_role(self, session: Session, role: Role) -> None:
        if role is not session.role:
            raise InvalidArgument(
                f"this gateway serves the {session.role} side of session {session.uid}, not {role}; "
                "ask the other facility's gateway"
            )

    async def _check_request(self, request: Request) -> None:
        limits = self.settings.limits
        if not 1 <= request.num_conn <= 65535:
            raise InvalidArgument(f"num_conn {request.num_conn} is not in 1-65535")
        if request.num_conn > limits.num_conn:
            raise ResourceExhausted(
                f"num_conn {request.num_conn} is more than a session gets at this gateway ({limits.num_conn}); "
                "ask for less"
            )
        self._check_lease(request.lease_s)
        if request.protocol != "tcp":
            raise InvalidArgument(f"protocol {shown(request.protocol)} is not served here; use tcp")
        if len(request.hello_key_sha256) not in (0, 32):
            raise InvalidArgument(f"hello_key_sha256 has {len(request.hello_key_sha256)} bytes; a SHA-256 has 32")
        for name, text in (("producer", request.producer), ("consumer", request.consumer)):
            if len(text) > 255 or not text.isprintable():
                raise InvalidArgument(f"{name} {shown(text)} is not a printable text of at most 255 characters")
        if len(request.labels) > 16:
            raise InvalidArgument(f"there are {len(request.labels)} labels; a session takes at most 16")
        for key, value in request.labels.items():
            if not _LABEL.fullmatch(key) or len(value) > 255 or not value.isprintable():
                raise InvalidArgument(f"label {shown(key)}={shown(value)} is not KEY=VALUE in printable characters")
        await self._check_near_end(request)

    def _check_lease(self, lease_s: int) -> None:
        longest = self.settings.limits.max_lease
        if lease_s > longest:
            raise InvalidArgument(f"lease {lease_s} s is longer than this gateway allows ({longest} s); ask for less")

    async def _check_near_end(self, request: Request) -> None:
        """Refuse at once what would be refused at Hello: an application outside of the allowed networks."""
        text = request.producer if request.role is Role.PROD else ""
        with contextlib.suppress(InvalidArgument):  # a name that the user gave the place is fine, too
            await admit(self.settings.policy, request.role, Endpoint.parse(text))

    async def _admit(self, role: Role, endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
        admitted = await asyncio.gather(*(admit(self.settings.policy, role, endpoint) for endpoint in endpoints))
        control = self.settings.server.listen
        for endpoint in admitted:
            if endpoint in control:
                raise PermissionDenied(f"{endpoint} is this gateway's own control port; name where the data goes")
        return tuple(admitted)

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
        admission.admit(limits, (x.session for x in self._sessions.values() if not x.session.state.ended), request)
        waits = Waits(hello=limits.hello_wait, update=limits.update_wait)
        lease_s = request.lease_s or limits.default_lease
        session = open_session(secrets.token_hex(8), owner.name, request, self.clock.now(), lease_s, waits)
        self._store.save(session)
        live = Live(session)
        self._keep(live)
        self._act(live, Effect.RESERVE)
        return live

    def _keep(self, live: Live) -> None:
        key = (live.session.owner, live.session.uid)
        earlier = self._by_uid.get(key)
        if earlier is not None:
            self._forget(earlier)
        self._sessions[live.session.id] = live
        self._by_uid[key] = live

    def _forget(self, live: Live) -> None:
        self._sessions.pop(live.session.id, None)
        key = (live.session.owner, live.session.uid)
        if self._by_uid.get(key) is live:
            del self._by_uid[key]
        try:
            self._store.delete(live.session.id)
        except (ResourceExhausted, Unavailable):
            self._unsaved.add(live.session.id)

    def _apply(self, live: Live, event: Event) -> Session:
        """Step a session, save it, tell the watchers, begin what is to be done.

        What a caller asks for is refused when it cannot be saved. What has happened, and what gives back, goes on:
        it is saved as soon as that is possible again.
        """
        before = live.session
        after, effects = step(before, event, self.clock.now())
        if after is not before:
            if isinstance(event, (Hello, Update, Renew)):
                self._store.save(after)
            else:
                self._save_sometime(after)
            live.become(after)
        for effect in effects:
            if effect is Effect.FORWARD:
                if after.role is Role.PROD:
                    live.publish(News.PROD_LISTENERS, "the producer listens")
            else:
                self._act(live, effect)
        if after.state is not before.state:
            log.info("session %s: %s -> %s %s", after.uid, before.state, after.state, after.reason)
            live.publish(News.STATE, after.reason)
        return after

    def _save_sometime(self, session: Session) -> None:
        try:
            self._store.save(session)
        except (ResourceExhausted, Unavailable) as error:
            if not self._unsaved:
                log.error("%s; sessions go on, and are saved when it can be used again", error)
            self._unsaved.add(session.id)

    def _save_again(self) -> None:
        """Save what could not be saved when it happened."""
        for id in list(self._unsaved):
            live = self._sessions.get(id)
            try:
                if live is None:
                    self._store.delete(id)
                else:
                    self._store.save(live.session)
            except (ResourceExhausted, Unavailable):
                return
            self._unsaved.discard(id)
            if not self._unsaved:
                log.info("all sessions are saved again")

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

    def _act(self, live: Live, effect: Effect) -> None:
        live.task = asyncio.create_task(self._carry_out(live, effect, live.task))

    async def _carry_out(self, live: Live, effect: Effect, earlier: asyncio.Task[None] | None) -> None:
        if earlier is not None:
            if effect is Effect.STOP:
                earlier.cancel()  # stopping interrupts what is under way
            await asyncio.wait([earlier])
        try:
            event: Event | None = await self._ask_data_server(live, effect)
        except ScistreamError as error:
            live.error = error
            event = Kept() if effect is Effect.UPDATE else Broke(str(error))
        except Exception:
            log.exception("session %s: %s failed", live.session.uid, effect.value)
            live.error = ScistreamError("the gateway has an internal fault; its operator finds it in the log")
            event = Kept() if effect is Effect.UPDATE else Broke(str(live.error))
        if effect is Effect.STOP and isinstance(event, Broke):
            return  # the deadline of CLOSING stops it again
        if event is not None:
            self._report(live, event)

    async def _ask_data_server(self, live: Live, effect: Effect) -> Event | None:
        session, server = live.session, self.data_server
        match effect:
            case Effect.RESERVE:
                request = session.request
                backend = request.backend or self.settings.s2ds.backend
                spec = TunnelSpec(session.id, session.uid, session.role, request.num_conn, backend, request.rate)
                reservation = await server.reserve(spec)
                return Reserved(reservation.listeners, reservation.backend, reservation.csr)
            case Effect.START | Effect.UPDATE:
                bridge = Bridge(session.targets, _credentials(session.proof))
                if effect is Effect.UPDATE:
                    await server.update(session.id, bridge)
                    return None
                await server.start(session.id, bridge)
                return Started()
            case _:
                await server.stop(session.id)
                return Stopped()

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
            self._save_again()
            now = self.clock.now()
            for live in list(self._sessions.values()):
                session = live.session
                if session.state.ended:
                    if now > session.expires_at and now > session.created_at + self.settings.limits.keep_ended:
                        self._forget(live)
                elif now >= session.deadline:
                    self._report(live, Timeout())
                elif not live.warned and session.expires_at - now < min(
                    300.0, (session.expires_at - session.created_at) / 10
                ):
                    live.warned = True
                    live.publish(News.EXPIRY, f"the lease ends in {session.expires_at - now:.0f} s")

    def _warn_of_expiry(self, live: Live, left: float) -> None:
        lease = live.session.expires_at - live.session.created_at
        if not live.warned and left < min(300.0, lease / 10):
            live.warned = True
            live.publish(News.EXPIRY, f"the lease ends in {left:.0f} s")

    async def _watch_data_server(self) -> None:
        async for event in self.data_server.watch():
            live = self._sessions.get(event.id)
            if live is not None:
                live.publish(News.DATA_SERVER, event.reason or event.change.value.lower())
                self._report(live, _meaning(event))


def _meaning(event: TunnelEvent) -> Event:
    match event.change:
        case Change.EXITED:
            return Exited(event.reason)
        case Change.RUNNING:
            return Started()
        case Change.FATAL:
            return Broke(event.reason)


def _credentials(proof: Proof) -> Credentials:
    other = Certificate.from_der(proof.other_anchor) if proof.other_anchor else None
    return Credentials(Certificate.from_der(proof.certificate), Certificate.from_der(proof.trust_anchor), other)


def _csr_key(csr: bytes) -> ec.EllipticCurvePublicKey:
    key = x509.load_der_x509_csr(csr).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key
