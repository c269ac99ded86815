"""The contract's values as messages, and back: parsed once, on arrival, into the types of the vocabulary."""

from __future__ import annotations

import time
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

import scistream
from s2cs.s2ds.contract import (
    BackendInfo,
    Bridge,
    Capability,
    Change,
    DataServer,
    Leg,
    LegCheck,
    LegKind,
    PreSharedKey,
    Reservation,
    Traffic,
    TrustedPeers,
    TunnelEvent,
    TunnelSpec,
    TunnelState,
    TunnelStatus,
)
from s2cs.s2ds.remote import s2ds_pb2 as pb
from scistream.errors import InvalidArgument
from scistream.vocabulary import Endpoint, Rate, Role, Transport, Uid, parse_endpoints, shown
from scistream.x509 import Certificate, Credentials


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """What a node last said of itself."""

    name: str
    version: str
    backends: tuple[BackendInfo, ...]
    free_ports: dict[Role, int]
    most_ports: int
    wan_port: int = 0  # of all sessions that come in; 0: each has ports of its own
    ahead_s: float = 0  # its clock, of this host's; less than 0 when it is behind


def reserve_to(spec: TunnelSpec, call: pb.Call) -> pb.Reserve:
    """Write down what is to be reserved."""
    return pb.Reserve(
        call=call,
        id=spec.id,
        uid=spec.uid,
        role=spec.role,
        num_conn=spec.num_conn,
        backend=spec.backend,
        rate_bytes_per_s=spec.rate.bytes_per_s,
        protocol=spec.protocol,
    )


def spec_from(message: pb.Reserve) -> TunnelSpec:
    """Read what is to be reserved.

    Raises:
        InvalidArgument: it cannot be read.
    """
    return TunnelSpec(
        message.id,
        Uid(message.uid),
        Role.parse(message.role),
        message.num_conn,
        message.backend or "auto",
        Rate(message.rate_bytes_per_s),
        Transport.parse(message.protocol),
    )


def reservation_to(found: Reservation, node: pb.Node) -> pb.Reservation:
    """Write down what was reserved."""
    return pb.Reservation(
        backend=found.backend,
        listeners=map(str, found.listeners),
        csr=found.csr,
        node=node,
        wan_host=found.wan_host,
    )


def reservation_from(message: pb.Reservation) -> Reservation:
    """Read what was reserved."""
    return Reservation(message.backend, parse_endpoints(message.listeners), message.csr, wan_host=message.wan_host)


def lead_to(id: str, bridge: Bridge, call: pb.Call) -> pb.Lead:
    """Write down where a tunnel is to lead."""
    lead, credentials = pb.Lead(call=call, id=id, targets=map(str, bridge.targets)), bridge.credentials
    if isinstance(credentials, PreSharedKey):
        lead.pre_shared_key = credentials.key
        return lead
    if isinstance(credentials, TrustedPeers):
        lead.plain = True
        lead.peers.extend(map(str, credentials.addresses))
        return lead
    lead.certificate = credentials.certificate.der
    lead.trust_anchor = credentials.trust_anchor.der
    lead.other_anchor = credentials.other_anchor.der if credentials.other_anchor else b""
    return lead


def bridge_from(message: pb.Lead) -> Bridge:
    """Read where a tunnel is to lead.

    Raises:
        InvalidArgument: an address or a certificate cannot be read.
    """
    targets = parse_endpoints(message.targets)
    if message.pre_shared_key:
        return Bridge(targets, PreSharedKey(message.pre_shared_key))
    if message.plain:
        return Bridge(targets, TrustedPeers(tuple(map(_address, message.peers))))
    other = Certificate.from_der(message.other_anchor) if message.other_anchor else None
    certificate, anchor = map(Certificate.from_der, (message.certificate, message.trust_anchor))
    return Bridge(targets, Credentials(certificate, anchor, other))


def _address(text: str) -> IPv4Address | IPv6Address:
    try:
        return ip_address(text)
    except ValueError:
        raise InvalidArgument(f"peer {shown(text)} is not an IP address; resolve it first") from None


def traffic_to(traffic: Traffic) -> pb.Traffic:
    """Write down what was moved."""
    return pb.Traffic(
        from_producer=traffic.from_producer,
        from_consumer=traffic.from_consumer,
        open=traffic.open,
        total=traffic.total,
        bytes_per_s=traffic.bytes_per_s,
        peak_bytes_per_s=traffic.peak_bytes_per_s,
        lan=_leg_to(traffic.lan),
        wan=_leg_to(traffic.wan),
    )


def traffic_from(message: pb.Traffic) -> Traffic:
    """Read what was moved."""
    return Traffic(
        from_producer=message.from_producer,
        from_consumer=message.from_consumer,
        open=message.open,
        total=message.total,
        bytes_per_s=message.bytes_per_s,
        peak_bytes_per_s=message.peak_bytes_per_s,
        lan=_leg_from(message.lan),
        wan=_leg_from(message.wan),
    )


def _leg_to(leg: Leg) -> pb.Leg:
    return pb.Leg(rtt_us=leg.rtt_us, retransmitted=leg.retransmitted, window=leg.window)


def _leg_from(message: pb.Leg) -> Leg:
    return Leg(rtt_us=message.rtt_us, retransmitted=message.retransmitted, window=message.window)


def tunnel_to(status: TunnelStatus) -> pb.Tunnel:
    """Write down how a tunnel is."""
    return pb.Tunnel(
        id=status.id,
        state=status.state,
        backend=status.backend,
        backend_version=status.backend_version,
        listeners=map(str, status.listeners),
        pids=status.pids,
        restarts=status.restarts,
        reason=status.reason,
        tls_version=status.tls_version,
        tls_cipher=status.tls_cipher,
        traffic=traffic_to(status.traffic),
    )


def tunnel_from(message: pb.Tunnel) -> TunnelStatus:
    """Read how a tunnel is."""
    return TunnelStatus(
        id=message.id,
        state=TunnelState(message.state),
        backend=message.backend,
        backend_version=message.backend_version,
        listeners=parse_endpoints(message.listeners),
        pids=tuple(message.pids),
        restarts=message.restarts,
        reason=message.reason,
        tls_version=message.tls_version,
        tls_cipher=message.tls_cipher,
        traffic=traffic_from(message.traffic),
    )


def leg_check_to(found: LegCheck) -> pb.LegCheck:
    """Write down what was found of a leg."""
    return pb.LegCheck(
        kind=found.kind,
        address=str(found.address),
        fault=found.fault,
        note=found.note,
        elapsed_us=found.elapsed_us,
        tls_version=found.tls_version,
        tls_cipher=found.tls_cipher,
        certificate=found.certificate,
    )


def leg_check_from(message: pb.LegCheck) -> LegCheck:
    """Read what was found of a leg."""
    return LegCheck(
        kind=LegKind(message.kind),
        address=Endpoint.parse(message.address),
        fault=message.fault,
        note=message.note,
        elapsed_us=message.elapsed_us,
        tls_version=message.tls_version,
        tls_cipher=message.tls_cipher,
        certificate=message.certificate,
    )


def event_to(event: TunnelEvent) -> pb.News:
    """Write down what happened."""
    return pb.News(id=event.id, change=event.change, reason=event.reason)


def event_from(message: pb.News) -> TunnelEvent:
    """Read what happened."""
    return TunnelEvent(message.id, Change(message.change), message.reason)


def node_to(name: str, server: DataServer, wan_port: int) -> pb.Node:
    """Write down what a node is and has left."""
    backends = [
        pb.Backend(
            name=info.name,
            capabilities=sorted(info.capabilities),
            version=info.version,
            reason=info.reason,
            caution=info.caution,
        )
        for info in server.backends()
    ]
    return pb.Node(
        name=name,
        version=scistream.__version__,
        backends=backends,
        free_ports_wan=server.free_ports(Role.PROD),
        free_ports_lan=server.free_ports(Role.CONS),
        most_ports=server.most_ports(),
        wan_port=wan_port,
        clock_ms=round(time.time() * 1000),
    )


def node_from(message: pb.Node) -> NodeInfo:
    """Read what a node is; what it can do that is not known here is left out."""
    known = {str(capability): capability for capability in Capability}
    backends = tuple(
        BackendInfo(
            info.name,
            frozenset(known[name] for name in info.capabilities if name in known),
            info.version,
            info.reason,
            info.caution,
        )
        for info in message.backends
    )
    free = {Role.PROD: message.free_ports_wan, Role.CONS: message.free_ports_lan}
    ahead_s = message.clock_ms / 1000 - time.time() if message.clock_ms else 0
    return NodeInfo(message.name, message.version, backends, free, message.most_ports, message.wan_port, ahead_s)
