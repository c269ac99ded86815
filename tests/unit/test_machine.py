"""The session machine: each rule by example, then all of them against random histories."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from scistream.errors import FailedPrecondition, InvalidArgument
from scistream.machine import (
    MOST_CHANGES,
    TABLE,
    Broke,
    Effect,
    Event,
    Exited,
    Hello,
    Kept,
    Owner,
    Proof,
    Release,
    Renew,
    Request,
    Reserved,
    Revoke,
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
from scistream.vocabulary import Endpoint, Role, Uid

LISTENERS = (Endpoint("10.0.0.1", 30000), Endpoint("10.0.0.1", 30001))
APPS = (Endpoint("192.168.0.7", 5000), Endpoint("192.168.0.7", 5001))
WAITS = Waits(reserve=10, hello=100, update=50, start=10, stop=5)
LEASE = 1000
T0 = 1e9

RESERVED = Reserved(LISTENERS, "nginx", b"csr")
HELLO = Hello(APPS)
PROOF, OTHER = Proof(b"a", b"anchor a"), Proof(b"b", b"anchor b")
UPDATE = Update(APPS, PROOF)
RENEW = Renew(T0 + 2 * LEASE, OTHER.trust_anchor)
# One event of each kind, such that each listed transition accepts it.
EVENTS: tuple[Event, ...] = (
    RESERVED,
    HELLO,
    UPDATE,
    RENEW,
    Started(),
    Exited("signal 9"),
    Kept(),
    Broke("no"),
    Release(),
    Revoke("killed"),
    Timeout(),
    Stopped(),
)
ENDED = (State.RELEASED, State.EXPIRED, State.FAILED)
# The shortest way to each state.
WAYS: dict[State, tuple[Event, ...]] = {
    State.REQUESTED: (),
    State.RESERVED: (RESERVED,),
    State.ANNOUNCED: (RESERVED, HELLO),
    State.STARTING: (RESERVED, HELLO, UPDATE),
    State.ACTIVE: (RESERVED, HELLO, UPDATE, Started()),
    State.RECOVERING: (RESERVED, HELLO, UPDATE, Started(), Exited("signal 9")),
    State.CLOSING: (RESERVED, Release()),
    State.RELEASED: (RESERVED, Release(), Stopped()),
    State.EXPIRED: (RESERVED, Timeout(), Stopped()),
    State.FAILED: (RESERVED, Broke("no"), Stopped()),
}


def fresh(role: Role = Role.PROD, num_conn: int = 2, lease_s: float = LEASE) -> Session:
    return open_session("s1", Owner("local:1", "alice"), Request(Uid("u-1"), role, num_conn), T0, lease_s, WAITS)


def after(*events: Event, session: Session | None = None) -> Session:
    """Let events happen one after the other; a Timeout happens when it is due."""
    session = session or fresh()
    for event in events:
        session, _ = step(session, event, max(T0, session.deadline) if isinstance(event, Timeout) else T0)
    return session


def at(state: State) -> Session:
    session = after(*WAYS[state])
    assert session.state is state
    return session


# The table as a whole


def test_every_state_has_a_way_and_a_row() -> None:
    assert set(TABLE) == set(State) == set(WAYS)


def test_every_state_but_the_ended_ones_can_be_left_by_timeout_and_release() -> None:
    for state in State:
        assert TABLE[state][Timeout][0] is (state if state.ended else State.CLOSING)
        assert Release in TABLE[state]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("state", State)
def test_each_cell_of_the_table(state: State, event: Event) -> None:
    before = at(state)
    copy = replace(before)
    now = T0 if before.deadline == math.inf else before.deadline
    if type(event) not in TABLE[state]:
        with pytest.raises(FailedPrecondition, match=rf"session u-1 is {state}: ."):
            step(before, event, now)
    else:
        session, effects = step(before, event, now)
        leads_to, listed = TABLE[state][type(event)]
        if state is State.CLOSING and isinstance(event, Stopped):
            leads_to = State.RELEASED
        assert session.state is leads_to
        assert effects in (listed, ())
    assert before == copy


# The way through


def test_a_session_from_request_to_release() -> None:
    session = fresh()
    assert (session.state, session.deadline) == (State.REQUESTED, T0 + 10)
    session, effects = step(session, RESERVED, T0 + 1)
    assert (session.state, effects, session.deadline) == (State.RESERVED, (), T0 + 101)
    assert (session.listeners, session.backend, session.csr) == (LISTENERS, "nginx", b"csr")
    session, effects = step(session, HELLO, T0 + 2)
    assert (session.state, effects, session.deadline) == (State.ANNOUNCED, (Effect.FORWARD,), T0 + 52)
    assert session.prod_listeners == APPS
    session, effects = step(session, UPDATE, T0 + 3)
    assert (session.state, effects, session.deadline) == (State.STARTING, (Effect.START,), T0 + 13)
    assert (session.targets, session.proof) == (APPS, PROOF)
    session, effects = step(session, Started(), T0 + 4)
    assert (session.state, effects, session.deadline) == (State.ACTIVE, (), T0 + LEASE)
    session, effects = step(session, Release(), T0 + 5)
    assert (session.state, effects, session.deadline) == (State.CLOSING, (Effect.STOP,), T0 + 10)
    session, effects = step(session, Stopped(), T0 + 6)
    assert (session.state, effects, session.deadline) == (State.RELEASED, (), math.inf)
    assert session.state.ended
    assert session.reason == "released by its user"


def test_the_session_knows_its_uid_and_role() -> None:
    assert (fresh(Role.CONS).uid, fresh(Role.CONS).role) == ("u-1", Role.CONS)


# Hello


def test_a_producer_may_say_hello_again_elsewhere_until_the_map_is_made() -> None:
    moved = Hello(APPS[:1])
    session, effects = step(at(State.ANNOUNCED), moved, T0)
    assert (session.prod_listeners, effects) == (APPS[:1], (Effect.FORWARD,))
    assert session.deadline == at(State.ANNOUNCED).deadline  # or it could wait for ever
    for state in (State.STARTING, State.ACTIVE, State.RECOVERING):
        with pytest.raises(FailedPrecondition, match=r"already leads to 192\.168\.0\.7:5000, 192\.168\.0\.7:5001"):
            step(at(state), moved, T0)


@pytest.mark.parametrize("state", [State.ANNOUNCED, State.STARTING, State.ACTIVE, State.RECOVERING])
@pytest.mark.parametrize("again", [HELLO, Hello()], ids=["same", "no addresses"])
def test_hello_again_changes_nothing(state: State, again: Hello) -> None:
    session = at(state)
    assert step(session, again, T0 + 1) == (session, ())


def test_a_consumers_addresses_mean_nothing() -> None:
    session = after(RESERVED, session=fresh(Role.CONS))
    for hello in (Hello(), HELLO, Hello(APPS * 9)):
        assert after(hello, session=session).prod_listeners == ()


@pytest.mark.parametrize("addresses", [(), (*APPS, LISTENERS[0])], ids=["none", "too many"])
def test_hello_with_a_wrong_count(addresses: tuple[Endpoint, ...]) -> None:
    with pytest.raises(InvalidArgument, match=rf"prod_listeners has {len(addresses)} .* takes 1 to 2"):
        step(at(State.RESERVED), Hello(addresses), T0)


# UpdateTargets


@pytest.mark.parametrize("targets", [(), (*APPS, LISTENERS[0])], ids=["none", "too many"])
@pytest.mark.parametrize("state", [State.ANNOUNCED, State.ACTIVE])
def test_update_with_a_wrong_count(state: State, targets: tuple[Endpoint, ...]) -> None:
    with pytest.raises(InvalidArgument, match=r"remote_listeners has .* takes 1 to 2"):
        step(at(state), Update(targets, PROOF), T0)


@pytest.mark.parametrize("state", [State.STARTING, State.ACTIVE, State.RECOVERING])
def test_the_same_update_again_changes_nothing(state: State) -> None:
    assert step(at(state), UPDATE, T0 + 1) == (at(state), ())


@pytest.mark.parametrize("other", [Update(APPS[:1], PROOF), Update(APPS, OTHER)], ids=["targets", "credentials"])
def test_another_update_needs_a_running_proxy(other: Update) -> None:
    session, effects = step(at(State.ACTIVE), other, T0)
    assert (session.targets, session.proof) == (other.targets, other.proof)
    assert effects == (Effect.UPDATE,)
    assert session.deadline == T0 + LEASE
    for state in (State.STARTING, State.RECOVERING):
        with pytest.raises(FailedPrecondition, match=r"wait for the answer|update again in a moment"):
            step(at(state), other, T0)


@pytest.mark.parametrize(("first", "then"), [(PROOF, Proof()), (Proof(), PROOF)])
def test_an_open_way_keeps_to_credentials_or_to_none(first: Proof, then: Proof) -> None:
    opened, effects = step(at(State.ANNOUNCED), Update(APPS, first), T0)
    assert (opened.proof, effects) == (first, (Effect.START,))
    opened = after(Started(), session=opened)
    with pytest.raises(FailedPrecondition, match="and stays so; release it"):
        step(opened, Update(APPS, then), T0)
    moved, effects = step(opened, Update(APPS[:1], first), T0)
    assert (moved.proof, effects) == (first, (Effect.UPDATE,))


def test_an_update_that_the_data_server_refuses_leaves_what_was_and_can_be_tried_again() -> None:
    other = Update(APPS[:1], OTHER)
    session = after(other, Kept(), session=at(State.ACTIVE))
    assert (session.targets, session.proof) == (UPDATE.targets, UPDATE.proof)
    assert step(session, UPDATE, T0) == (session, ())
    assert step(session, other, T0)[1] == (Effect.UPDATE,)
    assert after(Kept(), session=session) == session


def test_renewing_trusts_the_next_anchor_beside_the_old_and_then_the_old_beside_the_next() -> None:
    session, effects = step(at(State.ACTIVE), RENEW, T0 + 1)
    assert (session.state, effects, session.deadline) == (State.ACTIVE, (Effect.UPDATE,), T0 + 2 * LEASE)
    assert session.proof == replace(PROOF, other_anchor=OTHER.trust_anchor)
    assert step(session, replace(RENEW, expires_at=T0 + 3 * LEASE), T0 + 2) == (session, ())
    session, effects = step(session, Update(APPS, OTHER), T0 + 3)
    assert (session.proof, effects) == (replace(OTHER, other_anchor=PROOF.trust_anchor), (Effect.UPDATE,))
    assert step(session, Update(APPS, OTHER), T0 + 4) == (session, ())


def test_a_refused_renewal_leaves_credentials_and_lease_as_they_were() -> None:
    session = after(RENEW, Kept(), session=at(State.ACTIVE))
    assert (session.proof, session.expires_at, session.deadline) == (PROOF, T0 + LEASE, T0 + LEASE)
    assert step(session, RENEW, T0)[1] == (Effect.UPDATE,)


def test_a_lease_never_becomes_shorter() -> None:
    assert after(replace(RENEW, expires_at=T0 + 1), session=at(State.ACTIVE)).expires_at == T0 + LEASE


def test_a_refusal_says_what_to_do() -> None:
    with pytest.raises(FailedPrecondition, match="say Hello first"):
        step(at(State.RESERVED), UPDATE, T0)
    with pytest.raises(FailedPrecondition, match=r"it has ended \(no\); make a new one"):
        step(at(State.FAILED), HELLO, T0)


# Time


@pytest.mark.parametrize(
    ("state", "awaited"),
    [
        (State.REQUESTED, "the reservation of its ports"),
        (State.RESERVED, "the application's Hello"),
        (State.ANNOUNCED, "the connection map from its user"),
        (State.STARTING, "the start of its data server"),
    ],
)
def test_what_waits_too_long_expires(state: State, awaited: str) -> None:
    session = after(Timeout(), session=at(state))
    assert (session.state, session.outcome) == (State.CLOSING, State.EXPIRED)
    assert session.reason == f"{awaited} did not come in time"


@pytest.mark.parametrize("state", [State.ACTIVE, State.RECOVERING])
def test_a_lease_ends(state: State) -> None:
    session = after(Timeout(), session=at(state))
    assert (session.outcome, session.reason) == (State.EXPIRED, "its lease ended")


def test_no_wait_is_longer_than_the_lease() -> None:
    session = fresh(lease_s=5)
    assert session.deadline == T0 + 5
    assert after(Timeout(), session=session).reason == "its lease ended"


@pytest.mark.parametrize("state", State)
def test_a_timeout_that_comes_early_changes_nothing(state: State) -> None:
    session = at(state)
    assert step(session, Timeout(), min(session.deadline - 0.1, T0 + 1)) == (session, ())


# The end


@pytest.mark.parametrize("state", [s for s in State if not s.ended and s is not State.CLOSING])
@pytest.mark.parametrize(
    ("event", "outcome", "reason"),
    [
        (Release("bye"), State.RELEASED, "bye"),
        (Broke("no nginx"), State.FAILED, "no nginx"),
    ],
)
def test_every_live_state_ends_on_release_and_fault(state: State, event: Event, outcome: State, reason: str) -> None:
    session, effects = step(at(state), event, T0)
    assert (session.state, effects) == (State.CLOSING, (Effect.STOP,))
    session, effects = step(session, Stopped(), T0)
    assert (session.state, session.reason, session.outcome, effects) == (outcome, reason, None, ())


def test_the_first_cause_of_the_end_stays() -> None:
    closing = after(Broke("first"), session=at(State.ACTIVE))
    for event in (
        Release("second"),
        Revoke("second"),
        Broke("second"),
        Exited("second"),
        Kept(),
        Timeout(),
        RESERVED,
        Started(),
    ):
        later = after(event, session=closing)
        assert (later.state, later.outcome, later.reason) == (State.CLOSING, State.FAILED, "first")


def test_a_stop_that_is_not_answered_is_tried_again() -> None:
    session = at(State.CLOSING)
    again, effects = step(session, Timeout(), session.deadline)
    assert (again.state, effects, again.deadline) == (State.CLOSING, (Effect.CUT,), session.deadline + WAITS.stop)


@pytest.mark.parametrize("state", [s for s in State if not s.ended and s is not State.CLOSING])
def test_what_is_revoked_or_expires_is_cut(state: State) -> None:
    for event, outcome in ((Revoke("killed by carol"), State.RELEASED), (Timeout(), State.EXPIRED)):
        session, effects = step(at(state), event, math.inf)
        assert (session.state, effects, session.outcome) == (State.CLOSING, (Effect.CUT,), outcome)
    assert after(Revoke("killed by carol"), session=at(state)).reason == "killed by carol"


def test_a_release_under_way_can_be_made_a_cut() -> None:
    closing = after(Release("bye"), session=at(State.ACTIVE))
    session, effects = step(closing, Revoke("killed"), T0)
    assert (session.state, session.reason, effects) == (State.CLOSING, "bye", (Effect.CUT,))


@pytest.mark.parametrize("state", [State.CLOSING, *ENDED])
@pytest.mark.parametrize("late", [RESERVED, Started()], ids=["Reserved", "Started"])
def test_what_was_taken_after_the_end_is_given_back(state: State, late: Event) -> None:
    session, effects = step(at(state), late, T0)
    assert (session.state, effects) == (state, (Effect.STOP,))
    assert session.reason == at(state).reason


@pytest.mark.parametrize("state", ENDED)
@pytest.mark.parametrize("event", [Stopped(), Release("x"), Revoke("x"), Timeout(), Exited("x"), Kept(), Broke("x")])
def test_an_ended_session_stays_as_it_is(state: State, event: Event) -> None:
    session = at(state)
    assert step(session, event, T0 + 1) == (session, ())


# Recovery


def test_a_proxy_dies_and_comes_back() -> None:
    session, effects = step(at(State.ACTIVE), Exited("signal 9"), T0)
    assert (session.state, session.reason, effects) == (State.RECOVERING, "signal 9", ())
    session, effects = step(session, Started(), T0)
    assert (session.state, session.reason, effects) == (State.ACTIVE, "", ())


def test_since_when_the_state_is_moves_with_the_state_alone() -> None:
    session, _ = step(fresh(), RESERVED, T0 + 1)
    for event, now, since in (
        (HELLO, T0 + 2, T0 + 2),
        (Hello((Endpoint("10.0.0.9", 1),)), T0 + 3, T0 + 2),
        (Release(), T0 + 4, T0 + 4),
        (Timeout(), T0 + 50, T0 + 4),
        (Stopped(), T0 + 51, T0 + 51),
        (Stopped(), T0 + 52, T0 + 51),
    ):
        session, _ = step(session, event, now)
        assert session.since == since
    came = ["REQUESTED", "RESERVED", "ANNOUNCED", "CLOSING", "RELEASED"]
    assert [change.state for change in session.changes] == came
    assert session.changes[-2].reason == "released by its user"


def test_a_session_remembers_its_first_state_and_the_latest() -> None:
    session = at(State.ACTIVE)
    for number in range(100):
        session, _ = step(session, Exited("x" * 10_000 + str(number)), T0 + number)
        session, _ = step(session, Started(), T0 + number)
    assert len(session.changes) == MOST_CHANGES
    assert (session.changes[0].state, session.changes[-1].at) == (State.REQUESTED, T0 + 99)
    assert max(len(change.reason) for change in session.changes) <= 1000


def test_a_death_that_overtakes_the_news_of_the_start() -> None:
    session = after(Exited("signal 9"), session=at(State.STARTING))
    assert (session.state, session.deadline) == (State.STARTING, at(State.STARTING).deadline)
    assert after(Started(), session=session).state is State.ACTIVE


# Random histories


ENDING = {Effect.STOP, Effect.CUT}


class DataServer:
    """Hold a resource as the real one does: taken by RESERVE, given back by STOP, in whatever order they come.

    What it is told waits in `inbox`, what it has to say in `outbox`. It assumes of the real one that it
    stops and updates a session once at a time, and that an answer about something taken or kept is never
    lost (who crashes before giving it compares lists afterwards).
    """

    def __init__(self) -> None:
        self.held = False
        self.running = False
        self.leads_to: object = None
        self.inbox: list[Effect] = []
        self.outbox: list[Event] = []

    def ready(self, effect: Effect) -> bool:
        return effect not in ENDING or not any(isinstance(e, Stopped) for e in self.outbox)

    @property
    def updating(self) -> bool:
        return Effect.UPDATE in self.inbox or any(isinstance(e, Kept) for e in self.outbox)

    def work(self, index: int, fails: bool, session: Session) -> None:
        match self.inbox.pop(index):
            case Effect.RESERVE if not fails:
                self.held = True
                self.outbox.append(RESERVED)
            case Effect.START if not fails and self.held:
                self.running = True
                self.leads_to = (session.targets, session.proof)
                self.outbox.append(Started())
            case Effect.STOP | Effect.CUT if not fails:
                self.held = self.running = False
                self.outbox.append(Stopped())
            case Effect.UPDATE if not fails and self.running:
                self.leads_to = (session.targets, session.proof)
            case Effect.UPDATE:
                self.outbox.append(Kept())
            case _:
                self.outbox.append(Broke("it failed"))


class Histories(RuleBasedStateMachine):
    """A session, its data server, a user who may say anything, and a clock."""

    said = Bundle("said")

    @initialize(
        role=st.sampled_from(Role),
        lease_s=st.sampled_from([1, 60, LEASE]),
        way=st.sampled_from(
            [(), (RESERVED, HELLO, UPDATE), WAYS[State.ACTIVE], (Release(),), (Revoke("killed"),), (Timeout(),)]
        ),
    )
    def request(self, role: Role, lease_s: int, way: tuple[Event, ...]) -> None:
        """Ask for a session, and let it get so far without trouble."""
        self.now = T0
        self.session = fresh(role, lease_s=lease_s)
        self.server = DataServer()
        self.server.inbox.append(Effect.RESERVE)
        for event in way:
            if isinstance(event, (Reserved, Started)):
                self.server.work(0, False, self.session)
                self.happens(self.server.outbox.pop())
            else:
                self.now = self.session.deadline if isinstance(event, Timeout) else self.now
                self.happens(event)

    def happens(self, event: Event) -> bool:
        """Step, check what must hold of every step, and pass the effects on. False when refused."""
        before = self.session
        legal = type(event) in TABLE[before.state]
        try:
            session, effects = step(before, event, self.now)
        except FailedPrecondition:
            assert not legal or isinstance(event, (Hello, Update))
            assert self.session is before
            return False
        except InvalidArgument:
            assert isinstance(event, (Hello, Update))
            return False
        assert legal
        if before.state.ended:
            assert session == before
        self.session = session
        self.server.inbox += [effect for effect in effects if effect is not Effect.FORWARD]
        if not isinstance(event, Reserved):  # twice is as once
            again, repeated = step(session, event, self.now)
            assert again == session
            assert set(repeated) <= {Effect.STOP, Effect.CUT}
        return True

    # The user and the applications

    @rule(target=said, listeners=st.sampled_from([(), APPS, APPS[:1], APPS * 2]))
    def hello(self, listeners: tuple[Endpoint, ...]) -> Event:
        event = Hello(listeners)
        self.happens(event)
        return event

    @precondition(lambda self: not self.server.updating)
    @rule(target=said, to=st.sampled_from([(), APPS, LISTENERS[:1], APPS * 2]), proof=st.sampled_from([PROOF, OTHER]))
    def update(self, to: tuple[Endpoint, ...], proof: Proof) -> Event:
        event = Update(to, proof)
        self.happens(event)
        return event

    @precondition(lambda self: not self.server.updating)
    @rule(target=said, lease_s=st.sampled_from([1, LEASE]), proof=st.sampled_from([PROOF, OTHER]))
    def renew(self, lease_s: int, proof: Proof) -> Event:
        event, before = Renew(self.now + lease_s, proof.trust_anchor), self.session
        if self.happens(event):
            assert self.session.expires_at >= before.expires_at
            known = self.session.proof
            assert {before.proof.trust_anchor, event.trust_anchor} <= {known.trust_anchor, known.other_anchor}
        return event

    @rule(target=said)
    def release(self) -> Event:
        self.happens(Release())
        return Release()

    @rule(event=said)
    def say_again(self, event: Event) -> None:
        if not (isinstance(event, (Update, Renew)) and self.server.updating):
            self.happens(event)

    # The data server

    @precondition(lambda self: self.server.inbox)
    @rule(data=st.data(), fails=st.sampled_from([False, False, True]))
    def data_server_works(self, data: st.DataObject, fails: bool) -> None:
        index = data.draw(st.integers(0, len(self.server.inbox) - 1))
        effect = self.server.inbox[index]
        if self.server.ready(effect):
            self.server.work(index, fails and not (effect in ENDING and self.session.state.ended), self.session)

    @precondition(lambda self: self.server.outbox)
    @rule(data=st.data(), twice=st.booleans())
    def data_server_answers(self, data: st.DataObject, twice: bool) -> None:
        index = data.draw(st.integers(0, len(self.server.outbox) - 1))
        event = self.server.outbox[index] if twice else self.server.outbox.pop(index)
        self.happens(event)

    @rule()
    def answer_is_lost(self) -> None:
        losable = [e for e in self.server.outbox if not isinstance(e, (Reserved, Kept))]
        for event in losable[:1]:
            self.server.outbox.remove(event)

    @precondition(lambda self: self.server.running)
    @rule(back=st.booleans())
    def proxy_dies(self, back: bool) -> None:
        self.server.outbox += [Exited("signal 9"), Started() if back else Broke("died too often")]

    @rule(event=st.sampled_from([RESERVED, Started(), Exited("?")]))
    def data_server_is_confused(self, event: Event) -> None:
        self.happens(event)

    # Time

    @rule(seconds=st.sampled_from([0.5, 7.0, 60.0, 600.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def timer_fires(self) -> None:
        due, state = self.now >= self.session.deadline, self.session.state
        assert self.happens(Timeout())
        assert self.session.state is (State.CLOSING if due else state)

    # What holds at every moment

    @invariant()
    def nothing_is_forgotten(self) -> None:
        server = self.server
        stopping = ENDING & set(server.inbox) or any(isinstance(e, (Reserved, Started)) for e in server.outbox)
        assert not (self.session.state.ended and server.held) or stopping

    @invariant()
    def the_proxy_leads_where_the_session_says(self) -> None:
        s = self.session
        if s.state in {State.ACTIVE, State.RECOVERING} and self.server.running and not self.server.updating:
            assert self.server.leads_to == (s.targets, s.proof)

    @invariant()
    def the_session_makes_sense(self) -> None:
        s = self.session
        assert (s.outcome is not None) == (s.state is State.CLOSING)
        assert (s.deadline == math.inf) == s.state.ended
        if s.state.ended or s.state is State.CLOSING:
            assert s.reason
        else:
            assert s.deadline <= s.expires_at
        if s.state not in {State.REQUESTED, State.CLOSING, *ENDED}:
            assert s.listeners
        if s.state in {State.STARTING, State.ACTIVE, State.RECOVERING}:
            assert 1 <= len(s.targets) <= s.request.num_conn
            assert s.role is Role.CONS or s.prod_listeners

    def teardown(self) -> None:
        """Nobody says anything more: within a few time-outs it has ended and holds nothing."""
        if not hasattr(self, "session"):
            return
        for _ in range(4):
            while self.server.inbox or self.server.outbox:
                while self.server.outbox:
                    self.happens(self.server.outbox.pop())
                if self.server.inbox:
                    self.server.work(0, False, self.session)
            self.now = max(self.now, min(self.session.deadline, T0 + 10 * LEASE))
            self.happens(Timeout())
        assert self.session.state.ended
        assert not self.server.held
        assert not self.server.running


Histories.TestCase.settings = settings(max_examples=400, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase
