"""Between a session's rules and its data server: effects become verbs, and what comes of them events."""

from __future__ import annotations

from collections.abc import Callable

from s2cs.policy.sessions import trusted_peers
from s2cs.s2ds.contract import (
    Bridge,
    Change,
    DataServer,
    PreSharedKey,
    Traffic,
    TrustedPeers,
    TunnelEvent,
    TunnelSpec,
    TunnelState,
    TunnelStatus,
)
from s2cs.validation import credentials
from scistream.machine import Broke, Effect, Event, Exited, Reserved, Session, Started, State, Stopped
from scistream.vocabulary import Transport


async def carry_out(
    server: DataServer,
    session: Session,
    effect: Effect,
    ended: Callable[[Traffic], None] = lambda traffic: None,
    shared_key: Callable[[Session], PreSharedKey] | None = None,
) -> Event | None:
    """Ask the data server for what a step wants, and give what it answers; an update that is done is no event.

    Args:
        server: the data server.
        session: whose effect it is.
        effect: what is wanted.
        ended: is told what a tunnel that was stopped has moved.
        shared_key: gives the key of a session whose client sent no credentials.

    Raises:
        ScistreamError: it cannot be had.
    """
    match effect:
        case Effect.RESERVE:
            request = session.request
            asked = request.num_conn, session.backend, request.rate, request.protocol
            found = await server.reserve(TunnelSpec(session.id, session.uid, session.role, *asked))
            return Reserved(found.listeners, found.backend, found.csr, found.node, found.wan_host)
        case Effect.START:
            await server.start(session.id, bridge_of(session, shared_key))
            return Started()
        case Effect.UPDATE:
            await server.update(session.id, bridge_of(session, shared_key))
            return None
        case Effect.STOP | Effect.CUT:
            if (traffic := await server.stop(session.id, cut=effect is Effect.CUT)) is not None:
                ended(traffic)
            return Stopped()
        case Effect.FORWARD:
            raise AssertionError("ProdLstn is for the watchers, not for the data server")


def bridge_of(session: Session, shared_key: Callable[[Session], PreSharedKey] | None = None) -> Bridge:
    """Say where a session leads, and what its WAN leg is proved with."""
    if session.request.protocol is Transport.UDP:
        return Bridge(session.targets, TrustedPeers(trusted_peers(session)))
    if session.proof.certificate or shared_key is None:
        return Bridge(session.targets, credentials(session.proof))
    return Bridge(session.targets, shared_key(session))


def meaning(event: TunnelEvent) -> Event | None:
    """Say what a data server's news is to a session; None: to its state it is nothing."""
    match event.change:
        case Change.EXITED | Change.LOST:
            return Exited(event.reason)
        case Change.RUNNING:
            return Started()
        case Change.FATAL:
            return Broke(event.reason)
        case Change.FOUND:
            return None


def reconciled(session: Session, tunnel: TunnelStatus | None) -> list[Event | Effect]:
    """Say what brings a session of an earlier process together with its tunnel as it is now."""
    if session.state.ended:
        return [Effect.STOP] if tunnel is not None else []
    if session.state is State.CLOSING:
        return [Effect.STOP]
    gone = tunnel.reason if tunnel else ""
    if session.state is State.REQUESTED:
        return [Broke(gone or "the control server was interrupted while it was being made")]
    if tunnel is None or tunnel.state is TunnelState.FATAL:
        return [Broke(gone or "its data server was gone when the control server started again")]
    if tunnel.state in (TunnelState.BACKOFF, TunnelState.LOST):
        return [Exited(tunnel.reason)]
    if tunnel.state is TunnelState.RUNNING:
        # An update may have been saved and not done; twice does no harm.
        return [Started(), *([Effect.UPDATE] if session.before_update is not None else [])]
    if session.state is State.STARTING:
        return [Effect.START]
    if session.state in (State.ACTIVE, State.RECOVERING):
        return [Broke("its data server was lost")]
    return []
