"""How the pods of sessions are to be: what the operator decides, and what follows from it for one session."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from s2cs.s2ds.contract import TunnelSpec
from scistream.vocabulary import Endpoint, PortRange

_IDLE_CPU_MILLI = 50  # of a pod that carries nothing; the rest is in proportion to the rate
_MEMORY_MIB = 128  # of `s2cs s2ds` and a proxy
_UNIT = 125_000  # bytes per second in one unit of a resource that stands for rate: 1 Mb/s


@dataclass(frozen=True, slots=True)
class Place:
    """A node that takes sessions, with the addresses that it has."""

    node: str
    lan: str
    wan: str


@dataclass(frozen=True, slots=True)
class Shape:
    """How pods are to be."""

    gateway: str  # whose they are: told apart by this within a namespace
    image: str
    control_ports: PortRange  # where S2CS reaches them on their nodes
    ports: PortRange  # of sessions, on each node
    node: str  # settings of `s2cs s2ds` but for [server] and addresses, TOML
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, str], ...] = ()
    places: tuple[Place, ...] = ()  # the nodes that take sessions; empty: any, with the address that the cluster knows
    priority_class: str = ""
    cpu_per_gbit: float = 0.15
    rate_resource: str = ""  # of the nodes, in Mb/s
    buffer_bytes: int = 256 * 1024
    memory_bytes: int = 0  # limit; 0 is none
    wait_s: float = 25.0  # for a pod to run

    def place(self, node: str) -> Place | None:
        """Find a node's addresses; None where the cluster knows them."""
        return next((each for each in self.places if each.node == node), None)

    def resources(self, spec: TunnelSpec) -> dict[str, Any]:
        """Say what a session needs of its node: CPU and memory by rate and connections, and its rate."""
        gbit = spec.rate.bytes_per_s * 8 / 1e9
        memory = _MEMORY_MIB + ceil(2 * spec.num_conn * self.buffer_bytes / 2**20)
        requests: dict[str, str] = {
            "cpu": f"{_IDLE_CPU_MILLI + ceil(1000 * self.cpu_per_gbit * gbit)}m",
            "memory": f"{memory}Mi",
        }
        limits: dict[str, str] = {}
        if self.memory_bytes:
            limits["memory"] = str(max(self.memory_bytes, memory * 2**20))
        if self.rate_resource and spec.rate.bytes_per_s:
            requests[self.rate_resource] = limits[self.rate_resource] = str(ceil(spec.rate.bytes_per_s / _UNIT))
        return {"requests": requests, "limits": limits} if limits else {"requests": requests}

    def bundles(self, name: str, port: int, certificate: str, key: str, gateway: str) -> dict[str, str]:
        """Write the settings of a pod's `s2cs s2ds`: a file for each node that it may come to.

        Args:
            name: the pod's.
            port: where S2CS reaches it.
            certificate: the pod's own, in PEM, and so are the others.
            key: of that.
            gateway: S2CS's certificate.
        """
        server: dict[str, Any] = {
            "name": name,
            "state_dir": "/run/scistream/state",
            "runtime_dir": "/run/scistream/tunnels",
            "certificate": certificate,
            "key": key,
            "gateways": [gateway],
        }
        files = {}
        for place in self.places:
            there = toml(server | {"listen": [str(Endpoint(place.lan, port))]})
            addresses = toml({"lan": place.lan, "wan": place.wan})
            files[f"{place.node}.toml"] = f"[server]\n{there}[network]\n{addresses}"
        files = files or {"node.toml": f"[server]\n{toml(server)}[network]\n"}
        return {file: f"{text}ports = {json.dumps(str(self.ports))}\n{self.node}" for file, text in files.items()}


def toml(table: Mapping[str, Any]) -> str:
    """Write a table of numbers, texts and lists of texts as TOML: JSON's values are TOML's, too."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
