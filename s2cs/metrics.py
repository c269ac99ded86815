"""What the gateway counts and measures of itself, for Prometheus.

Names have their unit at the end, and every label has few values: no uid, user or address is ever one.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric

import scistream
from s2cs.compat import Old, OldClients
from s2cs.s2ds.contract import Traffic, TunnelState
from s2cs.s2ds.nodes import Nodes
from s2cs.s2ds.placing import NodeState
from scistream.errors import ScistreamError
from scistream.machine import Session, State
from scistream.vocabulary import Role

if TYPE_CHECKING:
    from s2cs.gateway import Gateway

_CALL_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_OPEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_SIDES = {Role.PROD: "wan", Role.CONS: "lan"}  # where a gateway listens for each role


class Metrics:
    """Count what happens, and read the gateway when somebody asks.

    Args:
        gateway: whose sessions, ports and limits are told.
    """

    def __init__(self, gateway: Gateway) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a series beside each counter, which nobody reads
        self._registry = CollectorRegistry()
        self._calls = Counter(
            "scistream_calls",
            "Calls of the control channel by their status.",
            ["method", "code"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "scistream_call_duration_seconds",
            "How long calls took that have an end of their own; waiting for Hello and for a proxy is in it.",
            ["method"],
            buckets=_CALL_S,
            registry=self._registry,
        )
        self._opened = Histogram(
            "scistream_session_open_seconds",
            "From REQ until the way was open, the wait for the applications' Hello in it.",
            ["role"],
            buckets=_OPEN_S,
            registry=self._registry,
        )
        self._ended = Counter(
            "scistream_sessions_ended", "Sessions that ended, by how.", ["role", "outcome"], registry=self._registry
        )
        self._recoveries = Counter(
            "scistream_data_server_losses",
            "How often the proxy of an open session died and was to be started again.",
            ["backend"],
            registry=self._registry,
        )
        self._bytes = Counter(
            "scistream_traffic_bytes",
            "What applications sent through sessions, without TLS.",
            ["role", "backend", "direction"],
            registry=self._registry,
        )
        self._connections = Counter(
            "scistream_stream_connections",
            "Connections of applications.",
            ["role", "backend"],
            registry=self._registry,
        )
        self._gateway = gateway
        self._begin = gateway.clock.now()
        self._seen: dict[str, Traffic] = {}  # by session, at the last look
        for role in Role:  # told as 0 before the first, so that a rate can be made of them
            self._opened.labels(role)
            for outcome in (State.RELEASED, State.EXPIRED, State.FAILED):
                self._ended.labels(role, outcome)
        self._registry.register(_GatewayCollector(gateway))
        ProcessCollector(registry=self._registry)
        gateway.observers.append(self._stepped)

    def called(self, method: str, code: str, seconds: float | None = None) -> None:
        """Count a call; `seconds` is None for one that lasts as long as its caller likes."""
        self._calls.labels(method, code).inc()
        if seconds is not None:
            self._seconds.labels(method).observe(seconds)

    async def text(self) -> bytes:
        """Give everything in Prometheus' text format."""
        found = await self._gateway.data_server.list()
        running = {session.id: session for session in self._gateway.running}  # one that ended meanwhile is counted
        for status in found:
            if (session := running.get(status.id)) is not None and status.state is not TunnelState.LOST:
                self._moved(session, status.traffic)
        return generate_latest(self._registry)

    def _moved(self, session: Session, traffic: Traffic) -> None:
        """Count what a session has moved since it was last looked at.

        What it moved before this process was there is not counted: the process before has told it.
        """
        before = self._seen.get(session.id)
        self._seen[session.id] = traffic
        if before is None:
            if session.created_at < self._begin:
                return
            before = Traffic()
        for direction in ("from_producer", "from_consumer"):
            more = getattr(traffic, direction) - getattr(before, direction)
            self._bytes.labels(session.role, session.backend, direction).inc(max(0, more))
        self._connections.labels(session.role, session.backend).inc(max(0, traffic.total - before.total))

    def _stepped(self, before: Session, after: Session, traffic: Traffic | None, now: float) -> None:
        if before.state is after.state:
            return
        if after.state.ended:
            if traffic is not None:
                self._moved(after, traffic)
            self._seen.pop(after.id, None)
        if after.state is State.ACTIVE and before.state is State.STARTING:
            self._opened.labels(after.role).observe(max(0.0, now - after.created_at))
        elif after.state is State.RECOVERING:
            self._recoveries.labels(after.backend).inc()
        elif after.state.ended:
            self._ended.labels(after.role, after.state).inc()


def following(name: str) -> Callable[[], bytes]:
    """Give the metrics of an S2CS that passes calls on to another one of its facility: that it does not lead."""
    registry = CollectorRegistry()
    registry.register(_FollowerCollector(name))
    ProcessCollector(registry=registry)
    return lambda: generate_latest(registry)


class _FollowerCollector:
    def __init__(self, name: str) -> None:
        self._name = name

    def collect(self) -> Iterator[Metric]:
        yield _build(self._name)
        yield _leader(0)


class _GatewayCollector:
    """Read the gateway's present state at each scrape."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def collect(self) -> Iterator[Metric]:
        gateway, limits = self._gateway, self._gateway.settings.limits
        running = gateway.running
        yield _build(gateway.settings.server.name)
        yield _leader(1)
        yield _sessions(running)
        yield _gauge("scistream_sessions_limit", "Most sessions at a time.", limits.sessions)
        connections = sum(session.request.num_conn for session in running)
        yield _gauge("scistream_connections_reserved", "Connections that sessions have reserved.", connections)
        yield _gauge("scistream_connections_limit", "Most connections of all sessions together.", limits.connections)
        rate = sum(session.request.rate.bytes_per_s for session in running)
        yield _gauge("scistream_rate_reserved_bytes_per_second", "The rate that sessions have reserved.", rate)
        yield _gauge(
            "scistream_rate_limit_bytes_per_second",
            "The rate that can be reserved; 0 is no limit.",
            limits.rate.bytes_per_s,
        )
        ports = GaugeMetricFamily("scistream_ports_free", "Listeners that could still be reserved.", labels=["side"])
        for role, side in _SIDES.items():
            ports.add_metric([side], gateway.data_server.free_ports(role))
        yield ports
        yield _old_clients(gateway.old_clients)
        yield _gauge("scistream_ports_limit", "Ports in the range of each side.", gateway.data_server.most_ports())
        with suppress(ScistreamError):  # where the store cannot be read, everything else is wanted all the more
            yield _gauge("scistream_draining", "1 while no new sessions are taken.", gateway.draining)
        yield _gauge("scistream_unsaved_sessions", "Sessions whose last change is not on disk yet.", gateway.unsaved)
        available = GaugeMetricFamily("scistream_backend_available", "1 where a proxy can be used.", labels=["backend"])
        for backend in gateway.data_server.backends():
            available.add_metric([backend.name], backend.available)
        yield available
        if isinstance(gateway.data_server, Nodes):
            yield from _nodes(gateway.data_server.states())


def _build(gateway: str) -> Metric:
    return InfoMetricFamily(
        "scistream_build", "What serves here.", {"version": scistream.__version__, "gateway": gateway}
    )


def _leader(value: int) -> Metric:
    return _gauge("scistream_leader", "1 where sessions are decided on: of several S2CS on one store, at one.", value)


def _sessions(running: Iterable[Session]) -> Metric:
    found = Tally((session.role, session.state) for session in running)
    family = GaugeMetricFamily("scistream_sessions", "Sessions that have not ended.", labels=["role", "state"])
    for role in Role:
        for state in State:
            if not state.ended:
                family.add_metric([role, state], found[role, state])
    return family


def _old_clients(found: OldClients) -> Metric:
    family = CounterMetricFamily(
        "scistream_old_client_uses", "What old clients did that new ones do not.", labels=["use"]
    )
    for old in Old:
        family.add_metric([old], found.counts[old])
    return family


def _nodes(states: Iterable[NodeState]) -> Iterator[Metric]:
    """Tell of each node of the settings: as few as these, whatever users do."""

    def family(name: str, help: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"scistream_node_{name}", help, labels=["node", *labels])

    up = family("up", "1 while a gateway node is in touch.")
    draining = family("draining", "1 while a node takes no new sessions.")
    sessions = family("sessions", "Sessions on a node that have not ended.")
    reserved = family("rate_reserved_bytes_per_second", "The rate that sessions on a node have reserved.")
    limit = family("rate_limit_bytes_per_second", "The rate that can be reserved on a node; 0 is no limit.")
    ports = family("ports_free", "Listeners that could still be reserved on a node; none while it is lost.", "side")
    for state in states:
        up.add_metric([state.name], not state.lost)
        draining.add_metric([state.name], state.drained)
        sessions.add_metric([state.name], state.tunnels)
        reserved.add_metric([state.name], state.reserved)
        limit.add_metric([state.name], state.capacity)
        for role, side in _SIDES.items():
            ports.add_metric([state.name, side], state.free_ports[role])
    yield from (up, draining, sessions, reserved, limit, ports)


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help, value=float(value))
