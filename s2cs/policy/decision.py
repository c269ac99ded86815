"""Who may what: one pure function that decides, and says why.

The first rule that names a user, or a group of the user, is the user's, and no other. What it says takes the place
of what `[policy]` says for all; what it leaves out is as there. `[limits]` holds for everybody, whatever a rule says.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from s2cs.policy.addresses import Address, is_own, never
from s2cs.policy.reach import Reach
from s2cs.s2ds.contract import NO_UDP_AT_ONE_PORT
from s2cs.settings import Policy, Rule, Settings
from scistream.errors import FailedPrecondition, InvalidArgument, PermissionDenied, ResourceExhausted, ScistreamError
from scistream.machine import Owner, Session
from scistream.vocabulary import Endpoint, Rate, Role, duration

EVERYBODY = "*"


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the settings it says so."""

    table: str = ""  # empty: no setting, it is so always
    key: str = ""
    rule: int = 0  # counted from 1; 0 is none

    def __str__(self) -> str:
        if not self.table:
            return "built in"
        table = f"[[{self.table}]] {self.rule}" if self.rule else f"[{self.table}]"
        return f"{table} {self.key}".rstrip()


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether something is allowed, why, and where in the settings it says so."""

    allowed: bool
    reason: str
    rule: Place
    error: type[ScistreamError] = PermissionDenied

    def require(self) -> None:
        """Do nothing when it is allowed.

        Raises:
            ScistreamError: it is not, with the reason.
        """
        if not self.allowed:
            raise self.error(self.reason)


@dataclass(frozen=True, slots=True)
class Use:
    """What a user has of this gateway already."""

    sessions: int = 0
    connections: int = 0
    rate: Rate = Rate()


@dataclass(frozen=True, slots=True)
class Open:
    """To open a session."""

    num_conn: int = 1
    rate: Rate = Rate()
    lease_s: int = 0  # 0: whatever is usual
    backend: str = ""  # empty: whatever is usual
    used: Use = Use()


@dataclass(frozen=True, slots=True)
class Lease:
    """To have a session for that long from now."""

    lease_s: int


@dataclass(frozen=True, slots=True)
class Forward:
    """To lead a session to an address."""

    role: Role  # PROD: to an application in the LAN; CONS: to another gateway
    address: Address
    port: int
    name: str = ""  # the host as the user wrote it
    own: frozenset[Address] = frozenset()  # this host's addresses beside loopback
    held: Container[int] = ()  # this gateway's ports in the LAN that are other users' sessions

    def __str__(self) -> str:
        endpoint = Endpoint(str(self.address), self.port)
        return f"{self.name}:{self.port} ({self.address})" if self.name not in ("", endpoint.host) else str(endpoint)


@dataclass(frozen=True, slots=True)
class Datagrams:
    """To have UDP, which goes in plain between gateways."""

    role: Role
    rate: Rate = Rate()


@dataclass(frozen=True, slots=True)
class Trust:
    """To exchange UDP with another gateway."""

    address: Address
    name: str = ""  # the host as the user wrote it


Action = Open | Lease | Forward | Datagrams | Trust


def decide(settings: Settings, user: Owner, action: Action) -> Decision:
    """Decide whether a user may do something.

    Args:
        settings: of which `[policy]` and `[limits]` are looked at, and where this gateway itself listens.
        user: who; name and groups count.
        action: what.
    """
    match action:
        case Open():
            return _opening(settings, user, action)
        case Lease():
            return _lease(settings, user, action.lease_s)
        case Forward():
            return _forwarding(settings, user, action)
        case Datagrams():
            return _datagrams(settings, user, action)
        case Trust():
            return _trusting(settings, action)


def used(running: Iterable[Session]) -> Use:
    """Add up what sessions that have not ended have of a gateway."""
    requests = [session.request for session in running]
    rate = Rate(sum(request.rate.bytes_per_s for request in requests))
    return Use(len(requests), sum(request.num_conn for request in requests), rate)


def rule_of(policy: Policy, user: Owner) -> tuple[int, Rule | None]:
    """Find the rule that is a user's, and its number, counted from 1; 0 and None where there is none."""
    for number, rule in enumerate(policy.rules, 1):
        users = rule.users or ()
        if user.name in users or EVERYBODY in users or user.groups.intersection(rule.groups or ()):
            return number, rule
    return 0, None


def hidden_rules(policy: Policy) -> dict[int, int]:
    """Find the rules that are nobody's, because an earlier one names all whom they name: number, and the earlier's."""
    found = {}
    for number, rule in enumerate(policy.rules, 1):
        for by, earlier in enumerate(policy.rules[: number - 1], 1):
            users, groups = set(earlier.users or ()), set(earlier.groups or ())
            if EVERYBODY in users or (users >= set(rule.users or ()) and groups >= set(rule.groups or ())):
                found[number] = by
                break
    return found


def longest_lease(settings: Settings, user: Owner) -> int:
    """Tell the longest lease that a user gets, in seconds."""
    longest, _ = _longest(settings, user)
    return longest


def usual_lease(settings: Settings, user: Owner) -> int:
    """Tell the lease that a user gets who names none, in seconds."""
    return min(settings.limits.default_lease, longest_lease(settings, user))


def allowed_backends(settings: Settings, user: Owner) -> tuple[str, ...]:
    """Name the backends that a user may have; empty is all of them."""
    _, rule = rule_of(settings.policy, user)
    return tuple(rule.backends or ()) if rule else ()


def _longest(settings: Settings, user: Owner) -> tuple[int, Place]:
    number, rule = rule_of(settings.policy, user)
    if rule and rule.max_lease is not None and rule.max_lease < settings.limits.max_lease:
        return rule.max_lease, Place("policy.rules", "max_lease", number)
    return settings.limits.max_lease, Place("limits", "max_lease")


def _opening(settings: Settings, user: Owner, asked: Open) -> Decision:
    number, rule = rule_of(settings.policy, user)
    if asked.num_conn > (most := settings.limits.num_conn):
        sentence = f"num_conn {asked.num_conn} is more than a session gets at this gateway ({most}); ask for less"
        return Decision(False, sentence, Place("limits", "num_conn"), ResourceExhausted)
    if rule is not None:
        for key, refusal, error in _over(rule, asked):
            return Decision(False, refusal, Place("policy.rules", key, number), error)
    if not (lease := _lease(settings, user, asked.lease_s)).allowed:
        return lease
    return Decision(True, f"{user.name} may open it", Place("policy.rules", "", number) if rule else Place("policy"))


def _over(rule: Rule, asked: Open) -> Iterator[tuple[str, str, type[ScistreamError]]]:
    """Give what a rule has against opening a session: its key, a sentence, and the error it is."""
    used = asked.used
    if rule.sessions is not None and used.sessions >= rule.sessions:
        shown = "no sessions" if rule.sessions == 0 else f"{rule.sessions} sessions at once"
        yield "sessions", f"you get {shown} here and have {used.sessions}; release one first", ResourceExhausted
    if rule.connections is not None and used.connections + asked.num_conn > rule.connections:
        yield (
            "connections",
            f"{asked.num_conn} connections were asked for; you get {rule.connections} here and have "
            f"{used.connections}; ask for fewer, or release a session first",
            ResourceExhausted,
        )
    if rule.rate is not None:
        if not asked.rate.bytes_per_s:
            yield "rate", f"you get {rule.rate} here; ask for a rate, and for no more than that", PermissionDenied
        elif used.rate.bytes_per_s + asked.rate.bytes_per_s > rule.rate.bytes_per_s:
            yield (
                "rate",
                f"a rate of {asked.rate} was asked for; you get {rule.rate} here and have "
                f"{used.rate if used.rate.bytes_per_s else 'none of it'}; ask for less, or release a session first",
                ResourceExhausted,
            )
    if rule.backends is not None and asked.backend not in ("", "auto", *rule.backends):
        some = ", ".join(rule.backends) or "none"
        yield "backends", f"backend {asked.backend} is not for you here; you may have {some}", PermissionDenied
    elif rule.backends == ():
        yield "backends", "no backend is for you here; ask the gateway's operator", PermissionDenied


def _lease(settings: Settings, user: Owner, lease_s: int) -> Decision:
    longest, place = _longest(settings, user)
    if lease_s > longest:
        sentence = f"a lease of {duration(lease_s)} is longer than you get here; ask for at most {duration(longest)}"
        return Decision(False, sentence, place, PermissionDenied if place.rule else InvalidArgument)
    return Decision(True, f"the lease is within {duration(longest)}", place)


def _forwarding(settings: Settings, user: Owner, asked: Forward) -> Decision:
    key = "targets" if asked.role is Role.PROD else "peers"
    if reason := _not_ever(settings, asked):
        return Decision(False, f"this gateway never forwards to {asked}: it is {reason}", Place())
    number, rule = rule_of(settings.policy, user)
    own = getattr(rule, key) if rule is not None else None
    place = Place("policy", key) if own is None else Place("policy.rules", key, number)
    reaches: Sequence[Reach] = getattr(settings.policy, key) if own is None else own
    here = asked.address in asked.own and not asked.address.is_loopback and asked.role is Role.PROD
    for reach in reaches:
        if reach.covers(asked.address, asked.port) and (reach.one_host or not here):
            return Decision(True, f"{asked} is in {reach}", place)
    hint = "; it is this gateway itself, which has to be named alone" if here else ""
    sentence = f"this gateway does not forward to {asked}; its operator allows it in {place} of s2cs.toml{hint}"
    return Decision(False, sentence, place)


def _datagrams(settings: Settings, user: Owner, asked: Datagrams) -> Decision:
    place = Place("policy", "trusted_wan")
    if not settings.policy.trusted_wan:
        sentence = (
            "udp goes between gateways in plain, and this one trusts no network with that; use tcp, or ask its "
            f"operator for the other gateway's network in {place} of s2cs.toml"
        )
        return Decision(False, sentence, place)
    if asked.role is Role.PROD and settings.network.wan_port:
        return Decision(False, NO_UDP_AT_ONE_PORT, Place("network", "wan_port"), FailedPrecondition)
    number, rule = rule_of(settings.policy, user)
    if rule is not None and rule.rate is not None:
        sentence = f"you get {rule.rate} here, and no rate can be kept for udp; use tcp"
        return Decision(False, sentence, Place("policy.rules", "rate", number))
    if asked.rate.bytes_per_s:
        return Decision(False, "no rate can be kept for udp; ask for none, or use tcp", Place(), InvalidArgument)
    return Decision(True, "udp may go in plain to and from some networks", place)


def _trusting(settings: Settings, asked: Trust) -> Decision:
    place, shown = Place("policy", "trusted_wan"), asked.name or str(asked.address)
    name = f"{shown} ({asked.address})" if shown != str(asked.address) else shown
    for reach in settings.policy.trusted_wan:
        if reach.covers(asked.address, 1):
            return Decision(True, f"{name} is in {reach}", place)
    sentence = f"this gateway does not trust {name} with udp in plain; use tcp, or its operator adds it to {place}"
    return Decision(False, sentence, place)


def _not_ever(settings: Settings, asked: Forward) -> str:
    """Say why an address and port are never forwarded to; empty where they may be."""
    if reason := never(asked.address):
        return reason
    mine = is_own(asked.address, asked.own)
    for listen in (*_listens(settings), *(node.address for node in settings.s2ds.nodes)):
        anywhere = listen.ip is None or listen.ip.is_unspecified
        if asked.port == listen.port and (asked.address == listen.ip or (mine and anywhere)):
            return "one of this gateway's own control ports"
    if mine and asked.port in asked.held:
        return "a listener of somebody else's session"
    return ""


def _listens(table: BaseModel) -> Iterator[Endpoint]:
    """Find every address in the settings that this gateway listens on itself, whichever table it is in."""
    for key, value in table:
        if isinstance(value, BaseModel):
            yield from _listens(value)
        elif key == "listen":
            yield from (
                each for each in (value if isinstance(value, tuple) else (value,)) if isinstance(each, Endpoint)
            )
