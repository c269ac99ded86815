"""Which gateway node a session goes to: a pure function of what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import inf

from s2cs.s2ds.contract import BackendInfo, Capability, TunnelSpec
from scistream.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, ScistreamError, Unavailable
from scistream.vocabulary import Rate, Role, Transport, shown


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node, as far as it matters for one session. Rates in bytes per second."""

    name: str
    free_ports: int  # on the side that the session listens on
    backends: tuple[BackendInfo, ...]
    capacity: int = 0  # of rate; 0 is no limit
    reserved: int = 0  # of rate, by the sessions that it has
    lost: str = ""  # why nothing can be asked of it; empty when it is in touch
    drained: bool = False  # takes no new sessions

    @property
    def free_rate(self) -> float:
        """What of its rate could still be reserved."""
        return self.capacity - self.reserved if self.capacity else inf


@dataclass(frozen=True, slots=True)
class NodeState:
    """A node as it is now, for those who look after it. Rates in bytes per second."""

    name: str
    lost: str  # why; empty when it is in touch
    drained: bool
    tunnels: int
    reserved: int
    capacity: int
    free_ports: Mapping[Role, int]


def place(spec: TunnelSpec, nodes: Iterable[Candidate]) -> list[str]:
    """Name the nodes that can take a session, the best first: most free rate, then most free ports, then by name.

    Among nodes without a limit of rate, which all have any of it free, the one with the least reserved is better.

    Raises:
        InvalidArgument: no node knows the backend.
        ResourceExhausted: the nodes that could do it have no room.
        FailedPrecondition: none of those in touch can do it.
        Unavailable: none is in touch.
    """
    candidates = sorted(nodes, key=lambda n: (bool(n.lost), n.drained, -n.free_rate, n.reserved, -n.free_ports, n.name))
    _known(spec.backend, candidates)
    refusals = {node.name: _refusal(spec, node) for node in candidates}
    able = [node.name for node in candidates if refusals[node.name] is None]
    if not able:
        raise _worst([refusal for refusal in refusals.values() if refusal is not None])
    return able


def _known(backend: str, candidates: list[Candidate]) -> None:
    names = dict.fromkeys(info.name for node in candidates for info in node.backends)
    if backend != "auto" and backend not in names:
        raise InvalidArgument(f"backend {shown(backend)} is unknown; use auto, {', '.join(names)}")


def _refusal(spec: TunnelSpec, node: Candidate) -> ScistreamError | None:
    if node.lost:
        return Unavailable(node.lost)
    infos = [info for info in node.backends if spec.backend in ("auto", info.name)]
    if not any(info.available for info in infos):
        return FailedPrecondition(f"node {node.name}: {'; '.join(info.reason for info in infos)}")
    if spec.protocol is Transport.UDP and not any(i.available and Capability.UDP in i.capabilities for i in infos):
        return FailedPrecondition(f"node {node.name} has nothing that carries UDP; its operator installs nginx")
    if node.drained:
        return ResourceExhausted(f"node {node.name} is being drained")
    if spec.num_conn > node.free_ports:
        return ResourceExhausted(f"node {node.name} has {node.free_ports} free ports")
    if spec.rate.bytes_per_s > node.free_rate:
        left = max(0, node.capacity - node.reserved)
        return ResourceExhausted(f"node {node.name} has {Rate(left) if left else 'nothing'} left of its rate")
    return None


def _worst(refusals: list[ScistreamError]) -> ScistreamError:
    """Say all of it, the best node first, as what says most: that there would be room at another time."""
    kinds: tuple[Callable[[str], ScistreamError], ...] = (ResourceExhausted, FailedPrecondition, Unavailable)
    kind = next(kind for kind in kinds if any(type(refusal) is kind for refusal in refusals))
    return kind(f"no gateway node can take the session: {'; '.join(map(str, refusals))}")
