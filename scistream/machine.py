"""The rules of a session at one gateway: one table, no clock, no input or output.

`step(session, event, now)` gives the session after the event and the effects to carry out. An event
that the table does not list for the state raises and changes nothing. The diagram in
`docs/protocol.md` is generated from `TABLE` (`python -m scistream.diagram`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum
from types import MappingProxyType

from scistream.errors import FailedPrecondition, InvalidArgument
from scistream.vocabulary import Endpoint, Rate, Role, Transport, Uid


class State(StrEnum):
    """Where a session is in its life."""

    REQUESTED = "REQUESTED"  # REQ has come; ports are being reserved
    RESERVED = "RESERVED"  # ports are held; waits for Hello
    ANNOUNCED = "ANNOUNCED"  # the application has said Hello; waits for UpdateTargets
    STARTING = "STARTING"  # the data server starts
    ACTIVE = "ACTIVE"  # the way is open
    RECOVERING = "RECOVERING"  # the proxy died and is being restarted on its sockets, or its node is out of sight
    CLOSING = "CLOSING"  # everything is being given back
    RELEASED = "RELEASED"  # ended by somebody: its user, or who may
    EXPIRED = "EXPIRED"  # ended by a time-out or the end of its lease
    FAILED = "FAILED"  # ended by a fault

    @property
    def ended(self) -> bool:
        """True when the session holds nothing any more."""
        return self in _ENDED


_ENDED = frozenset({State.RELEASED, State.EXPIRED, State.FAILED})


class Effect(Enum):
    """What the gateway has to do after a step."""

    RESERVE = "reserve"  # bind listeners, make the key and its request; answer Reserved or Broke
    START = "start"  # open the way; answer Started or Broke
    UPDATE = "update"  # new targets and credentials for a running data server; answer Kept if it refuses
    STOP = "stop"  # give everything back, whatever there is of it, once streams had a moment to end; answer Stopped
    CUT = "cut"  # the same, and at once: running streams are cut; answer Stopped
    FORWARD = "forward"  # ProdLstn: tell the watchers where ProdApp listens


@dataclass(frozen=True, slots=True)
class Reserved:
    """The data server holds these listeners."""

    listeners: tuple[Endpoint, ...]
    backend: str
    csr: bytes
    node: str = ""  # where, if the gateway has several
    wan_host: str = ""  # of UDP: what its datagrams to the other gateway come from


@dataclass(frozen=True, slots=True)
class Hello:
    """An application announced itself."""

    prod_listeners: tuple[Endpoint, ...] = ()


@dataclass(frozen=True, slots=True)
class Proof:
    """A session's credentials, as bytes that mean nothing here."""

    certificate: bytes = b""
    trust_anchor: bytes = b""
    other_anchor: bytes = b""  # trusted too while credentials change: first the next one, then the one before
    peers: bytes = b""  # of UDP, in place of all that: addresses of the other gateway, with spaces between


@dataclass(frozen=True, slots=True)
class Update:
    """UpdateTargets came: where to forward to, and with which credentials."""

    targets: tuple[Endpoint, ...]
    proof: Proof = Proof()


@dataclass(frozen=True, slots=True)
class Renew:
    """The session is to live longer, and its credentials will be issued under another anchor."""

    expires_at: float
    trust_anchor: bytes  # empty: it has no credentials, and only lives longer


@dataclass(frozen=True, slots=True)
class Started:
    """The data server is up, for the first time or again."""


@dataclass(frozen=True, slots=True)
class Exited:
    """The proxy died, and the data server restarts it; or its node is lost, and may be back."""

    reason: str


@dataclass(frozen=True, slots=True)
class Kept:
    """The data server refused an update and goes on with what it had."""


@dataclass(frozen=True, slots=True)
class Broke:
    """Something could not be done and will not be tried again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Release:
    """REL came."""

    reason: str = "released by its user"


@dataclass(frozen=True, slots=True)
class Revoke:
    """Somebody who may has ended the session, or whose it is may no longer have it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Timeout:
    """The session's deadline has passed."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The data server has given everything back."""


Event = Reserved | Hello | Update | Renew | Started | Exited | Kept | Broke | Release | Revoke | Timeout | Stopped


@dataclass(frozen=True, slots=True)
class Waits:
    """How long, in seconds, a session may stay in the states that wait for somebody."""

    reserve: float = 30.0
    hello: float = 600.0
    update: float = 120.0
    start: float = 30.0
    stop: float = 30.0


@dataclass(frozen=True, slots=True)
class Request:
    """What REQ asks of a gateway. Two requests are the same when these are equal."""

    uid: Uid
    role: Role
    num_conn: int
    rate: Rate = Rate()
    protocol: Transport = Transport.TCP
    producer: str = ""
    consumer: str = ""
    lease_s: int = 0
    backend: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    hello_key_sha256: bytes = b""
    old: bool = field(default=False, compare=False)  # of a client that waits for Hello
    unencrypted: bool = field(default=False, compare=False)  # its user said that the WAN leg may be in plain


Route = tuple[tuple[Endpoint, ...], Proof, float]  # targets, credentials, end of the lease


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a session is, as it was when the session was opened."""

    id: str  # the same for ever, and never somebody else's
    name: str  # for people and the policy
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Change:
    """A state that a session came to, when, and why."""

    state: State
    at: float
    reason: str = ""


MOST_CHANGES = 32  # that a session remembers: the first, and the latest of the others
_REASON = 500  # characters of each that it remembers


@dataclass(frozen=True, slots=True)
class Session:
    """One side of a session, as its gateway knows it. Times are seconds since the epoch."""

    id: str  # this gateway's own name for it: a uid may be used again, an id never is
    owner: Owner
    request: Request
    created_at: float
    expires_at: float
    waits: Waits = Waits()
    state: State = State.REQUESTED
    deadline: float = 0.0
    backend: str = ""
    node: str = ""
    wan_host: str = ""
    listeners: tuple[Endpoint, ...] = ()
    csr: bytes = b""
    prod_listeners: tuple[Endpoint, ...] = ()
    targets: tuple[Endpoint, ...] = ()
    proof: Proof = Proof()
    before_update: Route | None = None  # what Kept goes back to
    outcome: State | None = None  # what CLOSING leads to
    reason: str = ""
    since: float = 0.0  # when its state began; 0 where that was not noted
    changes: tuple[Change, ...] = ()  # of the state, the oldest first

    @property
    def uid(self) -> Uid:
        """The session's uid."""
        return self.request.uid

    @property
    def role(self) -> Role:
        """The side that this gateway serves."""
        return self.request.role


S, E = State, Effect
_END: dict[type[Event], tuple[State, tuple[Effect, ...]]] = {
    Release: (S.CLOSING, (E.STOP,)),
    Revoke: (S.CLOSING, (E.CUT,)),
    Timeout: (S.CLOSING, (E.CUT,)),
    Broke: (S.CLOSING, (E.STOP,)),
}

TABLE: dict[State, dict[type[Event], tuple[State, tuple[Effect, ...]]]] = {
    S.REQUESTED: {
        **_END,
        Reserved: (S.RESERVED, ()),
    },
    S.RESERVED: {
        **_END,
        Hello: (S.ANNOUNCED, (E.FORWARD,)),
    },
    S.ANNOUNCED: {
        **_END,
        Hello: (S.ANNOUNCED, (E.FORWARD,)),
        Update: (S.STARTING, (E.START,)),
    },
    S.STARTING: {
        **_END,
        Hello: (S.STARTING, ()),
        Update: (S.STARTING, ()),  # only the same again, see step()
        Started: (S.ACTIVE, ()),
        Exited: (S.STARTING, ()),  # it died before the news of its start was here; that comes still
    },
    S.ACTIVE: {
        **_END,
        Hello: (S.ACTIVE, ()),
        Update: (S.ACTIVE, (E.UPDATE,)),
        Renew: (S.ACTIVE, (E.UPDATE,)),
        Kept: (S.ACTIVE, ()),
        Started: (S.ACTIVE, ()),
        Exited: (S.RECOVERING, ()),
    },
    S.RECOVERING: {
        **_END,
        Hello: (S.RECOVERING, ()),
        Update: (S.RECOVERING, ()),  # only the same again
        Kept: (S.RECOVERING, ()),
        Started: (S.ACTIVE, ()),
        Exited: (S.RECOVERING, ()),
    },
    # What was under way when the end came answers late; stopping again is harmless and leaks nothing.
    S.CLOSING: {
        Stopped: (S.CLOSING, ()),  # leads to the session's outcome, see step()
        Timeout: (S.CLOSING, (E.CUT,)),
        Release: (S.CLOSING, ()),
        Revoke: (S.CLOSING, (E.CUT,)),
        Reserved: (S.CLOSING, (E.STOP,)),
        Started: (S.CLOSING, (E.STOP,)),
        Exited: (S.CLOSING, ()),
        Kept: (S.CLOSING, ()),
        Broke: (S.CLOSING, ()),
    },
    # A data server may even take up a reservation after the stop that overtook it.
    **{
        ended: {
            Reserved: (ended, (E.STOP,)),
            Started: (ended, (E.STOP,)),
            Stopped: (ended, ()),
            Release: (ended, ()),
            Revoke: (ended, ()),
            Timeout: (ended, ()),
            Exited: (ended, ()),
            Kept: (ended, ()),
            Broke: (ended, ()),
        }
        for ended in (S.RELEASED, S.EXPIRED, S.FAILED)
    },
}

_HINTS: dict[tuple[State, type[Event]], str] = {
    (S.REQUESTED, Hello): "its ports are still being reserved; say Hello again in a moment",
    (S.REQUESTED, Update): "its ports are still being reserved; wait for the answer to req",
    (S.RESERVED, Update): "the application has not said Hello yet; say Hello first",
    (S.STARTING, Update): "its data server is starting with other targets; wait for the answer to the first update",
    (S.RECOVERING, Update): "its proxy is being restarted; update again in a moment",
    (S.RECOVERING, Renew): "its proxy is being restarted; renew again in a moment",
    (S.RESERVED, Renew): "it is not open yet; renew it when it is ACTIVE",
    (S.ANNOUNCED, Renew): "it is not open yet; renew it when it is ACTIVE",
    (S.STARTING, Renew): "it is not open yet; renew it when it is ACTIVE",
}

_WAITING_FOR = {
    S.REQUESTED: "the reservation of its ports",
    S.RESERVED: "the application's Hello",
    S.ANNOUNCED: "the connection map from its user",
    S.STARTING: "the start of its data server",
}


def open_session(id: str, owner: Owner, request: Request, now: float, lease_s: float, waits: Waits) -> Session:
    """Make the session that a REQ asks for; its first effect is RESERVE."""
    session = Session(id, owner, request, created_at=now, expires_at=now + lease_s, waits=waits)
    return _with_deadline(_noted(session, now), now)


def step(session: Session, event: Event, now: float) -> tuple[Session, tuple[Effect, ...]]:
    """Apply an event at a time.

    Args:
        session: the session before; it is not changed.
        event: what happened.
        now: seconds since the epoch; used for deadlines, and to note since when the state is.

    Returns:
        The session after, and what to do, in order.

    Raises:
        FailedPrecondition: the event does not fit the session's state.
        InvalidArgument: a Hello or Update that names too few or too many addresses.
    """
    transition = TABLE[session.state].get(type(event))
    if transition is None:
        raise _refusal(session, event)
    if isinstance(event, Timeout) and now < session.deadline:
        return session, ()  # the deadline moved while the news of it was on its way
    state, effects = transition
    changed = _absorb(session, event, state)
    if isinstance(event, Renew) and not event.trust_anchor:
        effects = ()  # the data server has nothing to take over
    if changed is session and state is session.state and isinstance(event, (Hello, Update, Renew)):
        return session, ()  # said again: the same answer, nothing to do
    if changed.state is not session.state:
        changed = _noted(changed, now)
    moved = changed.state is not session.state or changed.expires_at != session.expires_at
    if moved or Effect.STOP in effects or Effect.CUT in effects:
        changed = _with_deadline(changed, now)
    return changed, effects


def _noted(session: Session, now: float) -> Session:
    """Remember the state, which is new."""
    first, rest = session.changes[:1], session.changes[1:]
    latest = (*rest, Change(session.state, now, session.reason[:_REASON]))[-MOST_CHANGES + 1 :]
    return replace(session, since=now, changes=(*first, *latest))


def _refusal(session: Session, event: Event) -> FailedPrecondition:
    hint = _HINTS.get((session.state, type(event)), "this does not fit it now")
    if session.state.ended or session.state is S.CLOSING:
        hint = f"it has ended ({session.reason}); make a new one"
    return FailedPrecondition(f"session {session.uid} is {session.state}: {hint}")


def _absorb(session: Session, event: Event, state: State) -> Session:
    """Take the event's content into the session."""
    if session.state.ended:
        return session
    if session.state is S.CLOSING:
        return _closed(session) if isinstance(event, Stopped) else session
    match event:
        case Reserved():
            return replace(
                session,
                state=state,
                listeners=event.listeners,
                backend=event.backend,
                csr=event.csr,
                node=event.node,
                wan_host=event.wan_host,
            )
        case Hello():
            return _absorb_hello(session, event, state)
        case Update():
            return _absorb_update(session, event, state)
        case Renew():
            return _absorb_renew(session, event)
        case Kept():
            targets, proof, expires_at = session.before_update or _route(session)
            return replace(session, targets=targets, proof=proof, expires_at=expires_at, before_update=None)
        case Exited():
            return replace(session, state=state, reason=event.reason)
        case Started():
            return replace(session, state=state, reason="")
        case Release() | Revoke() | Timeout() | Broke():
            outcome, reason = _ending(session, event)
            return replace(session, state=state, outcome=outcome, reason=reason)
        case Stopped():
            raise AssertionError("only CLOSING and what has ended list it")


def _closed(session: Session) -> Session:
    assert session.outcome is not None
    return replace(session, state=session.outcome, outcome=None)


def _route(session: Session) -> Route:
    return session.targets, session.proof, session.expires_at


def _absorb_update(session: Session, event: Update, state: State) -> Session:
    _check_count(session, "remote_listeners", event.targets)
    known = session.proof
    if (event.targets, replace(event.proof, other_anchor=b"")) == (session.targets, replace(known, other_anchor=b"")):
        return session
    if session.state in (S.STARTING, S.RECOVERING):
        raise _refusal(session, event)
    proof = event.proof
    if session.targets and bool(proof.certificate) is not bool(known.certificate):
        how = "with certificates" if known.certificate else "without credentials"
        raise FailedPrecondition(f"session {session.uid} is open {how}, and stays so; release it, and make a new one")
    if proof.certificate and proof.trust_anchor == known.other_anchor:
        # The other side may still show a certificate of the anchor before; it is valid for the old lease only.
        proof = replace(proof, other_anchor=known.trust_anchor)
    before = _route(session) if session.state is S.ACTIVE else None
    return replace(session, state=state, targets=event.targets, proof=proof, before_update=before)


def _absorb_renew(session: Session, event: Renew) -> Session:
    expires_at, anchor = max(session.expires_at, event.expires_at), event.trust_anchor
    if not anchor:
        return replace(session, expires_at=expires_at)
    if anchor in (session.proof.trust_anchor, session.proof.other_anchor):
        return session
    proof = replace(session.proof, other_anchor=anchor)
    return replace(session, proof=proof, expires_at=expires_at, before_update=_route(session))


def _absorb_hello(session: Session, event: Hello, state: State) -> Session:
    announced = event.prod_listeners
    if session.role is Role.CONS:
        announced = ()  # a consumer's addresses mean nothing
    elif session.state is S.RESERVED or announced:
        _check_count(session, "prod_listeners", announced)
    else:
        announced = session.prod_listeners
    if session.state is S.RESERVED:
        return replace(session, state=state, prod_listeners=announced)
    if announced == session.prod_listeners:
        return session
    if session.state is not S.ANNOUNCED:
        known = ", ".join(map(str, session.prod_listeners))
        raise FailedPrecondition(
            f"session {session.uid} already leads to {known}; listen there, or have its owner release it"
        )
    return replace(session, prod_listeners=announced)


def _check_count(session: Session, name: str, endpoints: tuple[Endpoint, ...]) -> None:
    if not 1 <= len(endpoints) <= session.request.num_conn:
        raise InvalidArgument(
            f"{name} has {len(endpoints)} addresses; session {session.uid} takes 1 to {session.request.num_conn}"
        )


def _ending(session: Session, event: Release | Revoke | Timeout | Broke) -> tuple[State, str]:
    match event:
        case Release() | Revoke():
            return S.RELEASED, event.reason
        case Broke():
            return S.FAILED, event.reason
        case Timeout():
            awaited = _WAITING_FOR.get(session.state)
            if awaited is None or session.deadline >= session.expires_at:
                return S.EXPIRED, "its lease ended"
            return S.EXPIRED, f"{awaited} did not come in time"


def _with_deadline(session: Session, now: float) -> Session:
    """Set when the present state's wait ends. Only what has ended waits for nothing."""
    waits = session.waits
    match session.state:
        case S.REQUESTED:
            deadline = now + waits.reserve
        case S.RESERVED:
            deadline = now + waits.hello
        case S.ANNOUNCED:
            deadline = now + waits.update
        case S.STARTING:
            deadline = now + waits.start
        case S.ACTIVE | S.RECOVERING:
            deadline = session.expires_at
        case S.CLOSING:
            return replace(session, deadline=now + waits.stop)
        case _:
            return replace(session, deadline=float("inf"))
    return replace(session, deadline=min(deadline, session.expires_at))
