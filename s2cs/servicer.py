"""The Control service: decode, call the gateway once, encode."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from math import inf
from types import MappingProxyType
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

import scistream
from s2cs.audit.calls import current
from s2cs.auth import user_only
from s2cs.door import calling
from s2cs.gateway import Gateway
from s2cs.health import unready
from s2cs.identity.settings import Auth
from s2cs.live import Item, Listed, News
from s2cs.policy.decision import longest_lease, usual_lease
from s2cs.s2ds.contract import LegCheck, Traffic, TunnelState, TunnelStatus
from scistream.machine import Request, Session, State
from scistream.proto import scistream_pb2 as pb
from scistream.proto.scistream_pb2_grpc import ControlServicer
from scistream.vocabulary import Rate, Role, Transport, Uid

log = logging.getLogger(__name__)

_KINDS = {
    News.STATE: pb.SessionEvent.STATE,
    News.PROD_LISTENERS: pb.SessionEvent.PROD_LISTENERS,
    News.EXPIRY: pb.SessionEvent.EXPIRY,
    News.DATA_SERVER: pb.SessionEvent.DATA_SERVER,
}


class Servicer(ControlServicer):
    """Speak the protocol for a gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def req(self, request: pb.Request, context: Any) -> pb.Response:
        """REQ."""
        session = await self._gateway.request(calling.get(), _decode(request))
        return self._response(session)

    async def hello(self, request: pb.Hello, context: Any) -> pb.AppResponse:
        """Hello."""
        role = Role.parse(request.role)
        session = await self._gateway.hello(calling.get(), Uid(request.uid), role, request.prod_listeners)
        current.get().session = session
        return pb.AppResponse(
            message=_GREETINGS[session.role, session.state is State.ACTIVE],
            listeners=map(str, session.listeners),
            state=session.state,
        )

    async def update(self, request: pb.UpdateTargets, context: Any) -> pb.Response:
        """UpdateTargets."""
        session = await self._gateway.update(
            calling.get(),
            Uid(request.uid),
            Role.parse(request.role),
            request.remote_listeners,
            request.certificate,
            request.trust_anchor,
            request.wan_peers,
        )
        return self._response(session)

    async def release(self, request: pb.Release, context: Any) -> pb.Response:
        """REL."""
        return self._response(await self._gateway.release(calling.get(), Uid(request.uid)))

    async def renew(self, request: pb.Renew, context: Any) -> pb.Response:
        """A longer lease, and the next trust anchor."""
        uid = Uid(request.uid)
        session = await self._gateway.renew(calling.get(), uid, request.lease_s, request.trust_anchor)
        return self._response(session)

    async def list(self, request: pb.ListRequest, context: Any) -> pb.SessionList:
        """Sessions of the caller."""
        found = await self._gateway.list(calling.get(), request.uid)
        ahead = self._gateway.clock.wall(0.0)
        return pb.SessionList.FromString(b"".join(self._told(each, ahead) for each in found))

    async def watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.SessionEvent]:
        """A session's events."""
        async for item in self._gateway.watch(calling.get(), Uid(request.uid)):
            yield self._event(item)

    async def logs(self, request: pb.LogsRequest, context: Any) -> pb.SessionLog:
        """What became of a session, and what its proxies printed."""
        session, printed = await self._gateway.logs(calling.get(), Uid(request.uid), request.lines)
        return pb.SessionLog(
            uid=session.uid,
            role=session.role,
            backend=session.backend,
            changes=[
                pb.SessionChange(at=self._time(each.at), state=each.state, reason=each.reason)
                for each in session.changes
            ],
            lines=printed.lines,
            printed=printed.count,
        )

    async def verify(self, request: pb.VerifyRequest, context: Any) -> pb.Verification:
        """The legs of a session, each tried."""
        session, legs = await self._gateway.verify(calling.get(), Uid(request.uid), request.passive)
        return pb.Verification(
            uid=session.uid,
            role=session.role,
            state=session.state,
            legs=[_leg(leg) for leg in legs],
            certificate=session.proof.certificate,
            targets=map(str, session.targets),
        )

    async def describe(self, request: pb.DescribeRequest, context: Any) -> pb.GatewayDescription:
        """What the gateway is, and who the caller is to it."""
        settings, server = self._gateway.settings, self._gateway.data_server
        caller = user_only(calling.get())
        return pb.GatewayDescription(
            name=settings.server.name,
            version=scistream.__version__,
            user=caller.name,
            admin=caller.admin,
            backends=[
                pb.Backend(
                    name=backend.name,
                    version=backend.version,
                    available=backend.available,
                    reason=backend.reason,
                    capabilities=sorted(backend.capabilities),
                )
                for backend in server.backends()
            ],
            default_backend=settings.s2ds.backend,
            lan_address=settings.network.lan_advertise or settings.network.lan,
            wan_address=settings.network.wan_advertise or settings.network.wan,
            max_num_conn=settings.limits.num_conn,
            default_lease_s=usual_lease(settings, caller.owner),
            max_lease_s=longest_lease(settings, caller.owner),
            free_ports=min(server.free_ports(role) for role in Role),
            role=str(caller.role),
            identity=caller.id,
            method=caller.method,
            scopes=sorted(caller.scopes),
            groups=sorted(caller.groups),
            authenticated_until=None if caller.expires_at == inf else _stamp(caller.expires_at),
            unready=unready(self._gateway),
        )

    async def methods(self, request: pb.MethodsRequest, context: Any) -> pb.MethodList:
        """How one can prove who one is: said to everybody, and nothing else is."""
        return pb.MethodList(methods=_methods(self._gateway.settings.auth))

    def _response(self, session: Session) -> pb.Response:
        current.get().session = session
        return pb.Response(
            listeners=map(str, session.listeners),
            prod_listeners=map(str, session.prod_listeners),
            state=session.state,
            csr=session.csr,
            backend=session.backend,
            expires_at=self._time(session.expires_at),
            wan_host=session.wan_host,
        )

    def _told(self, listed: Listed, ahead: float) -> bytes:
        """Write a session as a part of a list, once for as long as everything about it is the same."""
        made_of = listed.session, listed.tunnel, listed.traffic, ahead
        if listed.live.told[0] != made_of:
            info = self.info(listed.session, listed.tunnel, listed.traffic)
            listed.live.told = made_of, pb.SessionList(sessions=[info]).SerializeToString()
        return listed.live.told[1]

    def info(
        self, session: Session, tunnel: TunnelStatus | None = None, traffic: Traffic | None = None
    ) -> pb.SessionInfo:
        """Say what a session is, as lists and events have it."""
        request = session.request
        return pb.SessionInfo(
            uid=session.uid,
            role=session.role,
            state=session.state,
            reason=_reason(session, tunnel),
            owner=session.owner.name,
            backend=session.backend,
            node=session.node,
            backend_version=tunnel.backend_version if tunnel else "",
            protocol=request.protocol,
            num_conn=request.num_conn,
            rate_bytes_per_s=request.rate.bytes_per_s,
            listeners=map(str, session.listeners),
            prod_listeners=map(str, session.prod_listeners),
            targets=map(str, session.targets),
            created_at=self._time(session.created_at),
            expires_at=self._time(session.expires_at),
            labels=request.labels,
            producer=request.producer,
            consumer=request.consumer,
            tls_version=tunnel.tls_version if tunnel else "",
            tls_cipher=tunnel.tls_cipher if tunnel else "",
            traffic=_traffic(traffic) if traffic else None,
            since=self._time(session.since) if session.since else None,
            deadline=None if session.state.ended else self._time(session.deadline),
            restarts=tunnel.restarts if tunnel else 0,
            last_death=tunnel.reason if tunnel else "",
            by_key=bool(session.targets) and not session.proof.certificate and request.protocol == "tcp",
        )

    def _event(self, item: Item) -> pb.SessionEvent:
        now = Timestamp()
        now.GetCurrentTime()
        return pb.SessionEvent(kind=_KINDS[item.kind], at=now, session=self.info(item.session), message=item.message)

    def _time(self, steady: float) -> Timestamp:
        return _stamp(self._gateway.clock.wall(steady))


def _reason(session: Session, tunnel: TunnelStatus | None) -> str:
    """Say why a session is in its state, and what its end waits for."""
    if session.state is State.CLOSING and tunnel is not None and tunnel.state is TunnelState.LOST:
        return f"{session.reason}; it ends when its node is back: {tunnel.reason}"
    return session.reason


def _stamp(wall: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMicroseconds(round(wall * 1e6))
    return stamp


def _methods(auth: Auth) -> Iterator[pb.Method]:
    if auth.tokens:
        yield pb.Method(kind="token")
    for method in auth.issuers:
        found = pb.Method(kind=method.kind, name=method.name)
        if method.login_client and method.issuer:
            found.issuer, found.client_id, found.audience = method.issuer, method.login_client, method.audience
            found.scopes.extend(method.login_scopes)
            found.device_flow = method.login_device_flow
        yield found
    if auth.certificates.listen:
        yield pb.Method(kind="certificate", name=auth.certificates.name)


def _traffic(traffic: Traffic) -> pb.Traffic:
    return pb.Traffic(
        bytes_from_producer=traffic.from_producer,
        bytes_from_consumer=traffic.from_consumer,
        connections_open=traffic.open,
        connections_total=traffic.total,
        bytes_per_s=traffic.bytes_per_s,
        lan_rtt_us=traffic.lan.rtt_us,
        wan_rtt_us=traffic.wan.rtt_us,
        lan_retransmitted=traffic.lan.retransmitted,
        wan_retransmitted=traffic.wan.retransmitted,
        peak_bytes_per_s=traffic.peak_bytes_per_s,
        lan_congestion_window=traffic.lan.window,
        wan_congestion_window=traffic.wan.window,
    )


def _leg(leg: LegCheck) -> pb.Leg:
    return pb.Leg(
        kind=leg.kind,
        address=str(leg.address),
        fault=leg.fault,
        note=leg.note,
        elapsed_us=leg.elapsed_us,
        tls_version=leg.tls_version,
        tls_cipher=leg.tls_cipher,
        certificate=leg.certificate,
    )


_GREETINGS = {
    (Role.PROD, False): "noted where you listen; the way opens when the user's client has connected both sides",
    (Role.PROD, True): "the way is open",
    (Role.CONS, False): "connect to these listeners when the session is ACTIVE",
    (Role.CONS, True): "the way is open; connect to these listeners",
}


def _decode(request: pb.Request) -> Request:
    return Request(
        uid=Uid(request.uid),
        role=Role.parse(request.role),
        num_conn=request.num_conn,
        rate=Rate.from_wire(request.rate, request.rate_bytes_per_s),
        protocol=Transport.parse(request.protocol),
        producer=request.producer,
        consumer=request.consumer,
        lease_s=request.lease_s,
        backend=request.backend,
        labels=MappingProxyType(dict(request.labels)),
        hello_key_sha256=request.hello_key_sha256,
        old=not request.immediate,
        unencrypted=request.unencrypted,
    )
