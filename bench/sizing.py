"""A facility's sizes worked out on paper from what was measured: the formulas of docs/sizing.md."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

GB_PER_S = 100 / 8  # of a gateway at 100 Gb/s
HEADROOM = 1.5  # for interrupts, unequal spreading over cores, and what is not in the bench


@dataclass(frozen=True)
class Inputs:
    """What one gateway was measured to need."""

    cpu_s_per_gb: float  # of the busier side
    proxy_mb: float  # proportional set size of a session's proxies
    s2cs_mb: float  # without sessions
    s2cs_kb: float  # more with each session
    descriptors: float  # of s2cs, more with each session
    set_ups_per_s: float  # of the control plane alone, on one core

    @classmethod
    def of(cls, parts: dict[str, Any], backend: str) -> Inputs:
        """Take them from a result: the largest number of connections, the most sessions."""
        rows = [r for r in parts["datapath"]["rows"] if r["kind"] == "tunnel" and r["name"] == backend]
        wide = max(rows, key=lambda row: row["streams"])
        many = [row for row in parts["density"]["rows"] if row["backend"] == backend][-1]
        slopes = parts["density"]["slopes"][backend]
        return cls(
            cpu_s_per_gb=max(wide["cpu_producer"], wide["cpu_consumer"]),
            proxy_mb=many["proxy_pss_mb"],
            s2cs_mb=slopes["s2cs_pss_kb"]["intercept"] / 1000,
            s2cs_kb=max(0.0, slopes["s2cs_pss_kb"]["slope"]),
            descriptors=max(1.0, slopes["descriptors"]["slope"]),
            set_ups_per_s=max(row["open_per_s"] for row in parts["control"]["rows"]),
        )


@dataclass(frozen=True)
class Gateway:
    """What one gateway needs for so many sessions of so many connections at a round-trip time."""

    inputs: Inputs
    sessions: int
    num_conn: int
    rtt_s: float

    @property
    def cores(self) -> int:
        """Processors for 100 Gb/s: CPU-seconds per GB x GB per second x headroom."""
        return math.ceil(self.inputs.cpu_s_per_gb * GB_PER_S * HEADROOM)

    @property
    def bdp_mb(self) -> float:
        """Bytes under way on a full line, in MB: rate x round-trip time."""
        return GB_PER_S * 1000 * self.rtt_s

    @property
    def memory_gb(self) -> float:
        """Proxies, s2cs, and socket buffers of twice what is under way, which is what the kernel books for it."""
        inputs = self.inputs
        processes = self.sessions * (inputs.proxy_mb + inputs.s2cs_kb / 1000) + inputs.s2cs_mb
        return (processes + 2 * self.bdp_mb) / 1000

    @property
    def buffer_mb(self) -> float:
        """Socket buffer of one connection that shall fill a 100 Gb/s line with `num_conn` of its like: the ceiling."""
        return 2 * self.bdp_mb / self.num_conn

    @property
    def ports(self) -> int:
        """Listeners of this gateway's side."""
        return self.sessions * self.num_conn

    @property
    def descriptors(self) -> int:
        """Open files of s2cs: those of a session with one listener, and a listener for each further connection."""
        return math.ceil(self.sessions * (self.inputs.descriptors + self.num_conn - 1)) + 64


def inputs_table(parts: dict[str, Any]) -> str:
    """The measured inputs, by backend."""
    from bench.tables import table  # noqa: PLC0415 - the other way round it is a table of this

    lines = []
    for backend in parts["density"]["slopes"]:
        i = Inputs.of(parts, backend)
        memory = [f"{i.proxy_mb:.2f} MB", f"{i.s2cs_mb:.0f} MB + {i.s2cs_kb:.0f} kB a session"]
        lines.append([backend, f"{i.cpu_s_per_gb:.2f}", *memory, f"{i.descriptors:.1f}", f"{i.set_ups_per_s:.0f}"])
    head = ["backend", "CPU-s/GB, busier side", "proxies of a session", "s2cs", "descriptors a session", "set-ups/s"]
    return table(head, lines)


def facility_table(parts: dict[str, Any]) -> str:
    """The facility's gateways, by backend and kind of use."""
    from bench.tables import table  # noqa: PLC0415

    uses = ((50, 16, 0.025), (1000, 4, 0.025), (1000, 4, 0.1))
    lines = []
    for backend in parts["density"]["slopes"]:
        for sessions, num_conn, rtt_s in uses:
            each = Gateway(Inputs.of(parts, backend), sessions, num_conn, rtt_s)
            use = f"{sessions} x {num_conn}, {rtt_s * 1000:.0f} ms"
            needs = [each.cores, f"{each.memory_gb:.1f} GB", f"{each.buffer_mb:.0f} MB", each.ports, each.descriptors]
            lines.append([backend, use, *needs, 8 * each.cores])
    head = ["backend", "sessions x connections, RTT", "cores", "memory", "buffer ceiling", "ports", "descriptors"]
    return table([*head, "cores of all 8"], lines)
