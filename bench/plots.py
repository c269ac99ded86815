"""The plots of the documentation's page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

Part = dict[str, Any]
_COLOURS = {"direct": "#7f7f7f", "tunnel": "#1f77b4", "by hand": "#9ecae1", "rival": "#ff7f0e"}


def draw(parts: dict[str, Part], directory: Path) -> list[str]:
    """Draw what was measured; the files' names."""
    drawn = []
    for name, (part, make) in PLOTS.items():
        if part in parts:
            figure = make(parts[part])
            figure.text(0.995, 0.005, _foot(parts[part]), ha="right", va="bottom", fontsize=6, color="#555555")
            figure.savefig(directory / name, dpi=110, metadata={"Software": None})
            plt.close(figure)
            drawn.append(name)
    return drawn


def _foot(part: Part) -> str:
    facts = part["machine"]
    programs = ("nginx", "haproxy", "stunnel", "envoy", "openssh")
    versions = ", ".join(f"{name} {facts[name]}" for name in programs if name in facts)
    host = f"{facts['CPUs']} x {facts['CPU']}, Linux {facts['kernel']}"
    return f"{facts['date']}, commit {facts['commit']}, {host}; {versions}"


def datapath(part: Part) -> Any:
    """Throughput and CPU per GB, a bar for each way."""
    counts = sorted({row["streams"] for row in part["rows"]})
    figure, axes = plt.subplots(2, len(counts), figsize=(4.4 * len(counts), 8), sharey="row", squeeze=False)
    for column, streams in enumerate(counts):
        rows = [row for row in part["rows"] if row["streams"] == streams and row["kind"] != "direct"]
        names, colours = [row["way"] for row in rows], [_COLOURS[row["kind"]] for row in rows]
        for axis, key in zip(axes[:, column], ("gbps", "cpu_s_per_gb"), strict=True):
            axis.bar(names, [row[key] for row in rows], color=colours)
            axis.tick_params(axis="x", rotation=75, labelsize=8)
            axis.grid(axis="y", alpha=0.3)
        axes[0, column].set_title(f"{streams} connection{'s' if streams > 1 else ''}")
    axes[0, 0].set_ylabel("Gb/s, more is better")
    axes[1, 0].set_ylabel("CPU-s per GB, both gateways, less is better")
    figure.suptitle("Two gateways on one machine")
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    return figure


def wan(part: Part) -> Any:
    """Throughput on each wire."""
    wires = list(dict.fromkeys(row["wire"] for row in part["rows"]))
    found = list(dict.fromkeys(row["way"] for row in part["rows"]))
    counts = sorted({row["streams"] for row in part["rows"]})
    figure, axes = plt.subplots(len(counts), 1, figsize=(11, 3.8 * len(counts)), sharex=True, squeeze=False)
    width = 0.8 / len(found)
    for axis, streams in zip(axes[:, 0], counts, strict=True):
        rates = {(r["wire"], r["way"]): r["gbps"] for r in part["rows"] if r["streams"] == streams}
        for i, way in enumerate(found):
            places = [x + i * width for x in range(len(wires))]
            axis.bar(places, [rates.get((wire, way), 0) for wire in wires], width, label=way)
        axis.axhline(part["rate_mbit"] / 1000, color="#555555", linewidth=0.8, linestyle=":")
        axis.set_ylabel("Gb/s")
        axis.set_title(f"{streams} connection{'s' if streams > 1 else ''}")
        axis.set_xticks([x + 0.4 for x in range(len(wires))], wires, rotation=20, ha="right", fontsize=8)
    axes[0, 0].legend(fontsize=8, ncols=len(found))
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    return figure


def setup(part: Part) -> Any:
    """The steps of a set-up, on top of each other."""
    figure, axis = plt.subplots(figsize=(9, 3.2))
    backends = list(part["library"])
    left = [0.0] * len(backends)
    for name in next(iter(part["library"].values()))["steps_ms"]:
        values = [part["library"][backend]["steps_ms"][name]["p50"] for backend in backends]
        axis.barh(backends, values, left=left, label=name)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axis.set_xlabel("ms from the library call to the first byte (p50 of each step)")
    axis.legend(fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    return figure


def density(part: Part) -> Any:
    """Memory, list, set-up and idle CPU as sessions grow."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 7))
    panels: list[tuple[str, Callable[[Part], float]]] = [
        ("proxies, MB per session (PSS)", lambda row: float(row["proxy_pss_mb"])),
        ("s2cs, MB (PSS)", lambda row: float(row["s2cs"]["pss_mb"])),
        ("list and one more set-up, ms (p50)", lambda row: float(row["list_ms"]["p50"])),
        ("idle CPU of s2cs, %", lambda row: float(row["idle_cpu_s2cs"]) * 100),
    ]
    for axis, (label, value) in zip(axes.flat, panels, strict=True):
        for backend in dict.fromkeys(row["backend"] for row in part["rows"]):
            rows = [row for row in part["rows"] if row["backend"] == backend]
            counts = [row["sessions"] for row in rows]
            slope = _slope(part, backend, label)
            axis.plot(counts, [value(row) for row in rows], marker="o", label=f"{backend}{slope}")
            if label.startswith("list"):
                more = [row["one_more_ms"]["p50"] for row in rows]
                axis.plot(counts, more, marker="x", linestyle="--", label=f"{backend}, set-up")
        axis.set_ylabel(label)
        axis.set_xlabel("sessions")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    return figure


def _slope(part: Part, backend: str, label: str) -> str:
    slopes = part["slopes"].get(backend) or {}
    if label.startswith("s2cs") and slopes:
        return f", {slopes['s2cs_pss_kb']['slope']:.0f} kB a session"
    if label.startswith("list") and slopes:
        return f", {slopes['list_us']['slope']:.0f} us a session"
    return ""


def control(part: Part) -> Any:
    """The control plane alone, up to ten thousand sessions."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6))
    rows, slopes = part["rows"], part["slopes"]
    counts = [row["sessions"] for row in rows]
    panels = [
        ("s2cs, MB (PSS)", [row["s2cs"]["pss_mb"] for row in rows], slopes["s2cs_pss_kb"]["slope"], "kB"),
        ("list, ms (p50)", [row["list_ms"]["p50"] for row in rows], slopes["list_us"]["slope"], "us"),
        (
            "one more, ms (p50)",
            [row["one_more_ms"]["p50"] for row in part["rows"]],
            slopes["one_more_us"]["slope"],
            "us",
        ),
    ]
    for axis, (label, values, slope, unit) in zip(axes, panels, strict=True):
        axis.plot(counts, values, marker="o", label=f"{slope:.2g} {unit} a session")
        axis.set_ylabel(label)
        axis.set_xlabel("sessions")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    return figure


def applications(part: Part) -> Any:
    """Rates through the tunnel, as parts of the direct way's."""
    rows = [row for row in part["rows"] if row["direct"] and row["better"] == "more"]
    figure, axis = plt.subplots(figsize=(9, 0.32 * len(rows) + 1.5))
    labels = [f"{row['application']}, {row['what']}" for row in rows]
    axis.barh(labels, [row["tunnel"] / row["direct"] for row in rows], color=_COLOURS["tunnel"])
    axis.axvline(1, color="#555555", linewidth=0.8)
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=7)
    axis.set_xlabel("rate through the tunnel / direct")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    return figure


PLOTS: dict[str, tuple[str, Callable[[Part], Any]]] = {
    "datapath.png": ("datapath", datapath),
    "wan.png": ("wan", wan),
    "setup.png": ("setup", setup),
    "density.png": ("density", density),
    "control.png": ("control", control),
    "applications.png": ("applications", applications),
}
