"""The gateway: the one place where callers, rules, store, policy and data server meet.

Here is what callers ask for. Each call finds a session, sees that it may, and hands an event to `lifecycle`; what
happens without a caller is in `housekeeping`. A caller that goes away interrupts nothing.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from math import inf

from s2cs import admission
from s2cs.audit.log import Audit
from s2cs.auth import Caller, KeyHolder, user_only
from s2cs.clock import Clock
from s2cs.compat import HELLO_WAIT_S, Old, OldClients
from s2cs.effects import bridge_of, reconciled
from s2cs.housekeeping import Housekeeping
from s2cs.lifecycle import Lifecycle
from s2cs.live import Item, Listed, Live
from s2cs.orders import Orders
from s2cs.policy.decision import Lease, Use, decide, usual_lease
from s2cs.policy.resolver import Resolver
from s2cs.policy.sessions import admit_peers, admit_targets, backend_for, check_quota, judged, objection
from s2cs.revocation import Revocations
from s2cs.s2ds.contract import DataServer, LegCheck, Printed, TunnelState
from s2cs.sessions import Sessions
from s2cs.settings import Settings
from s2cs.store import Store
from s2cs.users import Rank
from s2cs.validation import check_no_proof, check_proof, check_request, check_role
from scistream.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    Unavailable,
)
from scistream.machine import (
    Effect,
    Event,
    Hello,
    Proof,
    Release,
    Renew,
    Request,
    Session,
    State,
    Update,
    Waits,
    open_session,
    step,
)
from scistream.vocabulary import Endpoint, Role, Transport, Uid, parse_endpoints
from scistream.x509 import Certificate

log = logging.getLogger(__name__)

KEPT_LINES = 1000  # more than any data server keeps


class Gateway:
    """Serve the sessions of one facility's gateway."""

    def __init__(self, settings: Settings, store: Store, data_server: DataServer, audit: Audit | None = None) -> None:
        self.settings = settings
        self.data_server = data_server
        self.clock = Clock.of(store)
        self._store = store
        self._audit = audit or Audit()
        self._sessions = Sessions(store)
        self._resolver = Resolver()
        self._trying: dict[tuple[str, bool], asyncio.Task[tuple[LegCheck, ...]]] = {}  # verifications under way
        self._revocations = Revocations(store)
        self.old_clients = OldClients(lambda: self.settings.compat, self._audit)
        shared_key = self.old_clients.shared_key
        self._lifecycle = Lifecycle(self._sessions, data_server, self.clock, self._audit, shared_key)
        self.observers = self._lifecycle.observers
        self.orders = Orders(self._sessions, self._lifecycle, store)
        self._housekeeping = Housekeeping(
            self._lifecycle,
            self._sessions,
            self._revocations,
            self.clock,
            lambda: self.settings.limits.keep_ended,
        )

    async def open(self) -> None:
        """Take up the sessions in the store, compare them with what the data server has, and begin to watch."""
        news = self.data_server.watch()  # from now on: what happens after the list is not missed
        tunnels = {status.id: status for status in await self.data_server.list()}
        for session in self._sessions.stored():
            live = Live(session, self.clock.now() if session.state.ended else inf)
            self._sessions.keep(live)
            tunnel = tunnels.pop(session.id, None)
            live.unsure = tunnel is not None and tunnel.state is TunnelState.LOST and session.before_update is not None
            for each in reconciled(session, tunnel):
                if isinstance(each, Effect):
                    self._lifecycle.act(live, each)
                else:
                    self._lifecycle.report(live, each)
        for orphan in tunnels:
            log.warning("tunnel %s belongs to no session and is stopped", orphan)
            await self.data_server.stop(orphan)
        self._housekeeping.start(news)

    async def close(self) -> None:
        """Stop. What becomes of the sessions is said by `on_shutdown`."""
        if self.settings.server.on_shutdown == "release":
            running = self._sessions.running
            for live in running:
                self._lifecycle.apply(live, Release("the gateway was shut down"))
            await asyncio.gather(*(self._lifecycle.ended(live) for live in running), return_exceptions=True)
        await self._housekeeping.stop()

    @property
    def draining(self) -> bool:
        """True while new sessions are refused; noted in the store, so that it outlives this process."""
        return self.orders.draining

    @property
    def running(self) -> list[Session]:
        """The sessions that have not ended."""
        return [live.session for live in self._sessions.running]

    @property
    def held(self) -> Use:
        """What the sessions that have not ended hold together."""
        return self._sessions.held.all

    @property
    def unsaved(self) -> int:
        """How many sessions' last change the store could not take yet."""
        return self._sessions.unsaved

    @property
    def stalled(self) -> bool:
        """True when nothing ends by itself any more."""
        return self._housekeeping.stalled

    def has_key(self, sha256: bytes) -> bool:
        """Tell whether a credential with this SHA-256 is the key of a session that is known here."""
        return self._sessions.has_key(sha256)

    # What callers ask for

    async def request(self, caller: Caller | KeyHolder, request: Request) -> Session:
        """REQ: reserve listeners, or give the same answer again; to an old client when Hello has come.

        Raises:
            AlreadyExists: the caller has a live session of that uid with other content.
            Unavailable: an earlier session of that uid cannot be ended now.
            DeadlineExceeded: Hello was waited for and did not come; what was taken is given back.
            InvalidArgument, FailedPrecondition, PermissionDenied, ResourceExhausted: it cannot be had; nothing is kept.
        """
        owner = user_only(caller)
        if request.old:
            self.old_clients.check_blocking()
        check_request(self.settings, owner.owner, request)
        while (live := self._sessions.latest(owner.id, request.uid)) and live.session.state is State.CLOSING:
            await self._lifecycle.ended(live)
        if live is None or live.session.state.ended:
            live = self._open(owner, request)
        elif live.session.request != request:
            raise AlreadyExists(
                f"session {request.uid} exists with other content; release it, or use another uid for the new one"
            )
        if not request.old:
            return await self._reserved(live)
        with self._lifecycle.waiting(live):
            await self._reserved(live)
            return await self._lifecycle.hello_came(live)

    async def _reserved(self, live: Live) -> Session:
        """Wait until a session has its ports, or raise why it gets none."""
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
        return session

    async def hello(self, caller: Caller | KeyHolder, uid: Uid, role: Role, addresses: Iterable[str]) -> Session:
        """Hello: an application announces itself; the producer with where it listens.

        Raises:
            NotFound, Unauthenticated: no such session of this caller.
            InvalidArgument, FailedPrecondition, PermissionDenied: not this way, not now, not there.
        """
        live = self._sessions.find(caller, uid, Rank.ADMIN)
        if live.session.request.old:  # it says nothing twice, and names the other side
            await live.until(lambda session: session.state is not State.REQUESTED)
            if role is not live.session.role:
                self.old_clients.of_session(Old.HELLO_ROLE, live.session)
        else:
            check_role(live.session, role)
        endpoints = parse_endpoints(addresses) if live.session.role is Role.PROD else ()
        self._foresee(live.session, Hello(endpoints), endpoints)
        admitted = await self._admit(caller, live.session, Role.PROD, endpoints)
        return self._lifecycle.apply(live, Hello(admitted))

    async def update(
        self,
        caller: Caller | KeyHolder,
        uid: Uid,
        role: Role,
        addresses: Iterable[str],
        certificate: bytes,
        trust_anchor: bytes,
        wan_peers: Sequence[str] = (),
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
        proof = Proof(certificate, trust_anchor)
        check_no_proof(session, proof, wan_peers)
        if session.request.protocol is Transport.UDP:
            peers = await admit_peers(self.settings, self._resolver, judged(caller, session), wan_peers)
            proof = Proof(peers=" ".join(map(str, peers)).encode())
        elif proof == Proof():
            self.old_clients.check_psk(session, self.data_server.backends())
        self._foresee(session, Update(endpoints, proof), endpoints)
        if certificate or trust_anchor:
            check_proof(session, proof)
        admitted = await self._admit(caller, session, session.role, endpoints)
        await self._lifecycle.settled(live)
        live.error = None
        self._lifecycle.apply(live, Update(admitted, proof))
        return await self._lifecycle.taken_over(live)

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
        udp = live.session.request.protocol is Transport.UDP
        if live.session.targets and not (live.session.proof.certificate or udp):
            raise FailedPrecondition(f"session {uid} has no credentials that could be renewed; make a new one")
        user = judged(caller, live.session)
        decide(self.settings, user, Lease(lease_s)).require()
        if refusal := objection(self.settings, user, live.session):
            refusal.require()
        if not udp:
            Certificate.from_der(trust_anchor)
        elif trust_anchor:
            raise InvalidArgument(f"session {uid} is of udp, which has no credentials; renew it without trust_anchor")
        await self._lifecycle.settled(live)
        live.error = None
        expires_at = self.clock.now() + (lease_s or usual_lease(self.settings, user))
        self._lifecycle.apply(live, Renew(expires_at, trust_anchor))
        live.warned = False
        return await self._lifecycle.taken_over(live)

    async def release(self, caller: Caller | KeyHolder, uid: Uid) -> Session:
        """REL: give everything back; returns when it is back.

        Raises:
            NotFound: no such session of this caller.
            Unavailable: its data server cannot be reached; the order stands.
        """
        user = user_only(caller)
        live = self._sessions.find(user, uid)
        by = "its user" if live.session.owner.id == user.id else f"{user.role} {user.name}"
        self._lifecycle.apply(live, Release(f"released by {by}"))
        return await self._lifecycle.ended(live)

    async def list(self, caller: Caller | KeyHolder, uid: str = "") -> list[Listed]:
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
        listed = [(live, live.session, tunnels.get(live.session.id)) for live in found]
        return [
            Listed(live, session, tunnel, live.traffic or (tunnel.traffic if tunnel else None))
            for live, session, tunnel in listed
        ]

    def watch(self, caller: Caller | KeyHolder, uid: Uid) -> AsyncIterator[Item]:
        """Follow a session until it has ended.

        Raises:
            NotFound, Unauthenticated: no such session of this caller.
        """
        return self._sessions.find(caller, uid).watch()

    async def logs(self, caller: Caller | KeyHolder, uid: Uid, lines: int) -> tuple[Session, Printed]:
        """Give a session, which remembers what became of it, and what its data server's proxies printed last.

        Raises:
            NotFound: no such session of this caller.
        """
        session = self._sessions.find(user_only(caller), uid).session
        return session, await self.data_server.logs(session.id, lines or KEPT_LINES)

    async def verify(self, caller: Caller | KeyHolder, uid: Uid, passive: bool) -> tuple[Session, tuple[LegCheck, ...]]:
        """Try the legs of a session that begin or end here. Who asks meanwhile gets the same answer.

        Raises:
            NotFound: no such session of this caller.
            FailedPrecondition: it is not open.
        """
        session = self._sessions.find(user_only(caller), uid).session
        if session.state not in (State.ACTIVE, State.RECOVERING):
            why = f"{session.state}: {session.reason}" if session.reason else session.state
            raise FailedPrecondition(f"session {uid} is {why}; verify it while it is ACTIVE")
        if not (session.proof.certificate or session.request.protocol is Transport.UDP):
            raise FailedPrecondition(
                f"session {uid} is of a client without credentials, and has no certificates to verify; use s2uc instead"
            )
        key = session.id, passive
        if (trying := self._trying.get(key)) is None:
            trying = asyncio.create_task(self.data_server.verify(session.id, bridge_of(session), passive))
            self._trying[key] = trying
            trying.add_done_callback(lambda _: self._trying.pop(key, None))
        return session, await asyncio.shield(trying)

    async def _admit(
        self, caller: Caller | KeyHolder, session: Session, role: Role, endpoints: Iterable[Endpoint]
    ) -> tuple[Endpoint, ...]:
        """Resolve where a session is to lead to, and see that it may."""
        held = self._sessions.held.ports_of_others(session.owner.id)
        user = judged(caller, session)
        return await admit_targets(self.settings, self._resolver, user, session, role, endpoints, held)

    def _foresee(self, session: Session, event: Event, endpoints: Iterable[Endpoint]) -> None:
        """Refuse early what the rules refuse anyway. Of names, only too many: they are not resolved to be refused."""
        named = list(endpoints)
        if all(endpoint.ip for endpoint in named) or len(named) > session.request.num_conn:
            step(session, event, self.clock.now())

    def _open(self, owner: Caller, request: Request) -> Live:
        limits = self.settings.limits
        if self.draining:
            raise Unavailable(f"gateway {self.settings.server.name} takes no new sessions now; use another, or wait")
        self._audit.require()
        user = owner.owner
        held = self._sessions.held
        check_quota(self.settings, user, request, held.of(user.id))
        admission.admit(limits, held.all, request)
        hello_wait = min(limits.hello_wait, HELLO_WAIT_S) if request.old else limits.hello_wait
        waits = Waits(hello=hello_wait, update=limits.update_wait)
        lease_s = request.lease_s or usual_lease(self.settings, user)
        session = open_session(secrets.token_hex(8), user, request, self.clock.now(), lease_s, waits)
        session = replace(session, backend=backend_for(self.settings, user, request, self.data_server.backends()))
        self._sessions.save(session)
        self._revocations.look_again()
        live = Live(session)
        self._sessions.keep(live)
        if request.old:
            self.old_clients.of_session(Old.BLOCKING_REQ, session)
        self._lifecycle.act(live, Effect.RESERVE)
        return live
