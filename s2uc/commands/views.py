"""A session as commands show it: as JSON, as a row of a table, as facts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from s2uc.commands.looks import Column, clock, lasting, size, span
from scistream.vocabulary import Transport

if TYPE_CHECKING:
    from scistream.proto.scistream_pb2 import SessionInfo

SIDES = {"PROD": "producer", "CONS": "consumer"}
COLUMNS = (
    Column("UID", 100),
    Column("GATEWAY", 90),
    Column("SIDE", 80),
    Column("STATE", 95),
    Column("SINCE", 40),
    Column("UNTIL", 60),
    Column("OPEN", 70, right=True),
    Column("RATE", 85, right=True),
    Column("PEAK", 50, right=True),
    Column("FROM PROD", 75, right=True),
    Column("FROM CONS", 65, right=True),
    Column("RTT", 45, right=True),
    Column("RETR", 43, right=True),
    Column("WINDOW", 30, right=True),
    Column("BACKEND", 25),
    Column("CIPHER", 10),
    Column("LISTENERS", 20),
)
PLAIN = "udp, unencrypted"
_MOST_SHOWN = 4  # addresses


def content(gateway: str, info: SessionInfo) -> dict[str, Any]:
    """Give what `--json` prints of a session at a gateway."""
    return {
        "uid": info.uid,
        "gateway": gateway,
        "role": info.role,
        "state": info.state,
        "reason": info.reason,
        "owner": info.owner,
        "backend": info.backend,
        "backend_version": info.backend_version,
        "protocol": info.protocol,
        "num_conn": info.num_conn,
        "rate_bytes_per_s": info.rate_bytes_per_s,
        "listeners": list(info.listeners),
        "prod_listeners": list(info.prod_listeners),
        "targets": list(info.targets),
        "created_at": info.created_at.ToDatetime(tzinfo=UTC).isoformat(),
        "expires_at": info.expires_at.ToDatetime(tzinfo=UTC).isoformat(),
        "labels": dict(info.labels),
        "tls_version": info.tls_version,
        "tls_cipher": info.tls_cipher,
        "by_key": info.by_key,
        "traffic": _traffic(info),
        "since": info.since.ToDatetime(tzinfo=UTC).isoformat() if info.HasField("since") else None,
        "deadline": info.deadline.ToDatetime(tzinfo=UTC).isoformat() if info.HasField("deadline") else None,
        "restarts": info.restarts,
        "last_death": info.last_death,
    }


def _traffic(info: SessionInfo) -> dict[str, int] | None:
    """Give what the session has moved, as numbers; None where the gateway does not say."""
    if not info.HasField("traffic"):
        return None
    return {field.name: getattr(info.traffic, field.name) for field in info.traffic.DESCRIPTOR.fields}


def row(gateway: str, info: SessionInfo) -> list[str]:
    """Give the cells of a session at a gateway, for `COLUMNS`."""
    traffic, moved = info.traffic, info.HasField("traffic")
    now = datetime.now(UTC)
    return [
        info.uid,
        gateway,
        SIDES.get(info.role, info.role),
        info.state,
        clock(info.since.ToDatetime(tzinfo=UTC), now) if info.HasField("since") else "",
        clock(_until(info), now),
        f"{traffic.connections_open}/{traffic.connections_total}" if moved else "",
        f"{size(traffic.bytes_per_s)}/s" if moved else "",
        f"{size(traffic.peak_bytes_per_s)}/s" if moved else "",
        size(traffic.bytes_from_producer) if moved else "",
        size(traffic.bytes_from_consumer) if moved else "",
        span(traffic.wan_rtt_us),
        str(traffic.wan_retransmitted) if moved else "",
        size(traffic.wan_congestion_window) if traffic.wan_congestion_window else "",
        info.backend,
        info.tls_cipher if info.protocol != Transport.UDP else PLAIN,
        _addresses(info.listeners),
    ]


def why(info: SessionInfo) -> str:
    """Say why a session is as it is, where that is not as usual."""
    if info.reason:
        return info.reason
    if info.restarts:
        return f"its proxy was restarted {_times(info.restarts)}, last because {info.last_death}"
    return ""


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _until(info: SessionInfo) -> datetime:
    end: datetime = (info.deadline if info.HasField("deadline") else info.expires_at).ToDatetime(tzinfo=UTC)
    return end


def sides(found: list[tuple[str, SessionInfo]]) -> list[tuple[str, list[str]]]:
    """Give the facts of a session, for the gateways that know it."""
    infos = [info for _, info in found]
    return [
        ("gateway", [name for name, _ in found]),
        ("state", [info.state for info in infos]),
        ("because", [info.reason for info in infos]),
        ("since", [_since(info) for info in infos]),
        ("until", [_end(info) for info in infos]),
        ("listens at", [_addresses(info.listeners) for info in infos]),
        ("leads to", [_addresses(info.targets) for info in infos]),
        ("connections", [_connections(info) for info in infos]),
        ("rate", [_rate(info) for info in infos]),
        ("from the producer", [_moved(info, "bytes_from_producer") for info in infos]),
        ("from the consumer", [_moved(info, "bytes_from_consumer") for info in infos]),
        ("RTT", [_legs(span(info.traffic.lan_rtt_us), span(info.traffic.wan_rtt_us)) for info in infos]),
        ("retransmitted", [_retransmitted(info) for info in infos]),
        ("congestion window", [_windows(info) for info in infos]),
        ("backend", [f"{info.backend} {info.backend_version}".strip() for info in infos]),
        ("TLS", [_tls(info) for info in infos]),
        ("proxy restarted", [_restarts(info) for info in infos]),
        ("labels", [", ".join(f"{key}={value}" for key, value in sorted(info.labels.items())) for info in infos]),
    ]


def _since(info: SessionInfo) -> str:
    if not info.HasField("since"):
        return ""
    at = info.since.ToDatetime(tzinfo=UTC)
    return f"{clock(at)} UTC, {lasting((datetime.now(UTC) - at).total_seconds())}"


def _end(info: SessionInfo) -> str:
    at = _until(info)
    left = (at - datetime.now(UTC)).total_seconds()
    return f"{clock(at)} UTC" + (f", {lasting(left)} left" if left > 0 and info.HasField("deadline") else "")


def _addresses(found: Any) -> str:
    shown = list(found)
    if len(shown) > _MOST_SHOWN:
        return f"{shown[0]}, {shown[1]} ... {shown[-1]} ({len(shown)})"
    return ", ".join(shown)


def _connections(info: SessionInfo) -> str:
    traffic = info.traffic
    return f"{traffic.connections_open} open, {traffic.connections_total} in all" if info.HasField("traffic") else ""


def _rate(info: SessionInfo) -> str:
    if not info.HasField("traffic"):
        return ""
    limit = f", limit {size(info.rate_bytes_per_s)}/s" if info.rate_bytes_per_s else ""
    return f"{size(info.traffic.bytes_per_s)}/s, peak {size(info.traffic.peak_bytes_per_s)}/s{limit}"


def _moved(info: SessionInfo, name: str) -> str:
    return size(getattr(info.traffic, name)) if info.HasField("traffic") else ""


def _legs(lan: str, wan: str) -> str:
    return ", ".join(f"{leg} {text}" for leg, text in (("LAN", lan), ("WAN", wan)) if text)


def _retransmitted(info: SessionInfo) -> str:
    traffic = info.traffic
    return _legs(str(traffic.lan_retransmitted), str(traffic.wan_retransmitted)) if traffic.connections_open else ""


def _windows(info: SessionInfo) -> str:
    lan, wan = info.traffic.lan_congestion_window, info.traffic.wan_congestion_window
    return _legs(size(lan) if lan else "", size(wan) if wan else "")


def _tls(info: SessionInfo) -> str:
    if info.protocol == Transport.UDP:
        return f"none: {PLAIN}"
    return ", ".join(filter(None, (f"{info.tls_version} {info.tls_cipher}".strip(), "by key" if info.by_key else "")))


def _restarts(info: SessionInfo) -> str:
    return f"{_times(info.restarts)}: {info.last_death}" if info.restarts else ""
