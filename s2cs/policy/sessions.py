"""The policy at each step of a session: what is judged, for whom, and by what is there already."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Container, Iterable

from s2cs.auth import Caller, KeyHolder
from s2cs.policy.addresses import Address, own_addresses, plain
from s2cs.policy.decision import Action, Datagrams, Decision, Forward, Open, Trust, Use, allowed_backends, decide
from s2cs.policy.resolver import Resolver
from s2cs.s2ds.contract import BackendInfo, Capability
from s2cs.settings import Settings
from scistream.errors import FailedPrecondition, InvalidArgument
from scistream.machine import Owner, Request, Session
from scistream.vocabulary import Endpoint, Role, Transport

MOST_PEERS = 16  # addresses of the other gateway


def judged(caller: Caller | KeyHolder, session: Session) -> Owner:
    """Say who is judged for a session: its owner, as it is now where it calls itself."""
    return caller.owner if isinstance(caller, Caller) and caller.id == session.owner.id else session.owner


def check_quota(settings: Settings, user: Owner, request: Request, use: Use) -> None:
    """See that a user may have one more session beside what it has.

    Raises:
        PermissionDenied, ResourceExhausted, InvalidArgument: it may not.
    """
    decide(settings, user, Open(request.num_conn, request.rate, request.lease_s, request.backend, use)).require()


def backend_for(settings: Settings, user: Owner, request: Request, backends: Iterable[BackendInfo]) -> str:
    """Say which backend a session is to have: what is asked for, what is usual, or one that its user may have.

    `auto` leaves it to the data server.

    Raises:
        FailedPrecondition: none that the user may have can do what is asked.
    """
    allowed, usual = allowed_backends(settings, user), settings.s2ds.backend
    if request.backend not in ("", "auto"):
        return request.backend
    if request.old and settings.compat.psk:  # it may bring no credentials
        able = [info.name for info in backends if info.available and Capability.PSK in info.capabilities]
        if found := next((name for name in able if not allowed or name in allowed), ""):
            return found
    udp = request.protocol is Transport.UDP
    if (not allowed or usual in allowed) and (usual == "auto" or not udp):
        return usual
    needed = {Capability.UDP} if udp else {Capability.RATE_LIMIT} if request.rate.bytes_per_s else set()
    for info in backends:
        if (not allowed or info.name in allowed) and info.available and needed <= info.capabilities:
            return info.name
    if not allowed:
        return usual  # the data server says what is missing
    raise FailedPrecondition(
        f"none of the backends that you may have here ({', '.join(allowed)}) can do this; ask its operator"
    )


async def admit_targets(
    settings: Settings,
    resolver: Resolver,
    user: Owner,
    session: Session,
    role: Role,
    endpoints: Iterable[Endpoint],
    held: Container[int] = (),
) -> tuple[Endpoint, ...]:
    """Resolve where a session is to lead to, each host once, and give it back as addresses that it may lead to.

    Args:
        settings: with the policy.
        resolver: looks names up.
        user: whose session it is.
        session: which.
        role: PROD leads to applications in the LAN, CONS to other facilities' gateways.
        endpoints: where to.
        held: this gateway's ports that are other users' sessions.

    Raises:
        InvalidArgument: a name that does not resolve, or the session's own listener.
        DeadlineExceeded: the resolver does not answer.
        PermissionDenied: outside of the networks for this user, or a place that is never led to.
    """
    asked = tuple(endpoints)
    hosts = {endpoint.host: endpoint for endpoint in asked}
    found = await asyncio.gather(*(resolver.addresses(endpoint) for endpoint in hosts.values()), return_exceptions=True)
    if faults := [each for each in found if isinstance(each, BaseException)]:
        raise faults[0]  # when all have answered: no look-up is left behind
    addresses = dict(zip(hosts, found, strict=True))
    own = ours(settings)
    admitted = []
    for endpoint in asked:
        ways = addresses[endpoint.host]
        assert not isinstance(ways, BaseException)
        decisions = [
            (decide(settings, user, Forward(role, address, endpoint.port, endpoint.host, own, held)), address)
            for address in ways
        ]
        decision, address = next((each for each in decisions if each[0].allowed), decisions[0])
        decision.require()
        if role is Role.CONS and session.request.protocol is Transport.UDP:
            decide(settings, user, Trust(address, endpoint.host)).require()
        admitted.append(Endpoint(str(address), endpoint.port))
    for endpoint in admitted:
        if endpoint in session.listeners:
            raise InvalidArgument(f"{endpoint} is this session's own listener; it would lead to itself for ever")
    return tuple(admitted)


async def admit_peers(settings: Settings, resolver: Resolver, user: Owner, hosts: Iterable[str]) -> tuple[Address, ...]:
    """Resolve from where the other gateway's datagrams come, and see that this one trusts all of it.

    Raises:
        InvalidArgument: a host that cannot be one, or does not resolve.
        DeadlineExceeded: the resolver does not answer.
        PermissionDenied: outside of the networks that are trusted.
    """
    found: dict[Address, None] = {}
    for host in dict.fromkeys(hosts):
        ways = await resolver.addresses(Endpoint(host, 1))
        decisions = [decide(settings, user, Trust(address, host)) for address in ways]
        if not any(decision.allowed for decision in decisions):
            decisions[0].require()
        found.update((way, None) for way, decision in zip(ways, decisions, strict=True) if decision.allowed)
    return tuple(found)[:MOST_PEERS]


def trusted_peers(session: Session) -> tuple[Address, ...]:
    """Read the addresses that a session of UDP takes datagrams from at the producer's side."""
    return tuple(map(ipaddress.ip_address, session.proof.peers.decode().split()))


def ours(settings: Settings) -> frozenset[Address]:
    """Find the addresses of this host, and of the gateway's further nodes."""
    nodes = settings.s2ds.nodes
    addresses = [(node.lan, node.wan) for node in nodes] + [(n.lan, n.wan) for n in settings.kubernetes.nodes]
    found = {plain(ipaddress.ip_address(address)) for pair in addresses for address in pair}
    return own_addresses() | found | {plain(node.address.ip) for node in nodes if node.address.ip}


def objections(settings: Settings, running: Iterable[Session]) -> list[str]:
    """Name the sessions that the settings would not allow any more, each with its owner and what forbids it."""
    own = ours(settings)
    found = [(session, objection(settings, session.owner, session, own)) for session in running]
    return [f"{s.uid} of {s.owner.name} ({decision.rule})" for s, decision in found if decision is not None]


def objection(
    settings: Settings, user: Owner, session: Session, own: frozenset[Address] | None = None
) -> Decision | None:
    """Find what the settings have against a session that is there already; None when nothing."""
    own = ours(settings) if own is None else own
    request = session.request
    actions: list[Action] = [Open(request.num_conn, request.rate, backend=session.backend)]
    targets = [(plain(x.ip), x.port) for x in session.targets if x.ip is not None]
    actions += [Forward(session.role, address, port, own=own) for address, port in targets]
    if request.protocol is Transport.UDP:
        actions.append(Datagrams(session.role, request.rate))
        trusted = trusted_peers(session) if session.role is Role.PROD else [address for address, _ in targets]
        actions += [Trust(address) for address in trusted]
    decisions = (decide(settings, user, action) for action in actions)
    return next((decision for decision in decisions if not decision.allowed), None)
