"""The tables of the documentation's page, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Part = dict[str, Any]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def _by_way(part: Part) -> tuple[list[int], dict[str, dict[int, Part]]]:
    found: dict[str, dict[int, Part]] = {}
    for row in part["rows"]:
        found.setdefault(row["way"], {})[row["streams"]] = row
    return sorted({row["streams"] for row in part["rows"]}), found


_OF_A_RUN = ("date", "commit")  # the other facts are the machine's


def machine(part: Part) -> str:
    """What it was measured on."""
    return table(["what", "which"], [fact for fact in part["machine"].items() if fact[0] not in _OF_A_RUN])


def runs(parts: dict[str, Part]) -> str:
    """When each part was measured, on which commit, how busy the machine was, and what else was different then."""
    usual = next((part["machine"] for name, part in parts.items() if name == "datapath"), {})
    rows = []
    for name, part in parts.items():
        facts = part["machine"]
        other = [f"{key} {value}" for key, value in facts.items() if key not in _OF_A_RUN and usual.get(key) != value]
        seconds, load = f"{part['took_s']:.0f} s", f"{part['load_before']:.1f}"
        kind = "`--quick`: more noise" if part["quick"] else "whole"
        rows.append([name, *(facts[key] for key in _OF_A_RUN), load, seconds, kind, ", ".join(other) or "as above"])
    return table(["part", *_OF_A_RUN, "load before", "took", "how", "programs"], rows)


def throughput(part: Part) -> str:
    """Gb/s and CPU of every way."""
    counts, found = _by_way(part)
    head = ["way", *(f"Gb/s, {n}" for n in counts), *(f"CPU-s/GB, {n}" for n in counts), "producer's / consumer's side"]
    rows = []
    for way, by in found.items():
        rates = [f"{by[n]['gbps']:.2f}" if n in by else "-" for n in counts]
        costs = [f"{by[n]['cpu_s_per_gb']:.2f}" if n in by and by[n]["kind"] != "direct" else "-" for n in counts]
        one = next(iter(by.values()))
        sides = "-" if one["kind"] == "direct" else f"{one['cpu_producer']:.2f} / {one['cpu_consumer']:.2f}"
        rows.append([way, *rates, *costs, sides])
    return table(head, rows) + _left_out(part)


def latency(part: Part) -> str:
    """Round trips, first byte, memory."""
    _, found = _by_way(part)
    head = ["way", "64 B there and back, p50", "p99", "connect to first byte, p50", "p99", "memory, both sides (PSS)"]
    rows = []
    for way, by in found.items():
        row = by.get(1)
        if row is None or "round_trip_us" not in row:
            continue
        (p50, p99), (c50, c99) = row["round_trip_us"], row["first_byte_ms"]
        memory = "-" if row["kind"] == "direct" else " + ".join(f"{each:.1f}" for each in row["pss_mb"]) + " MB"
        rows.append([way, f"{p50:.0f} us", f"{p99:.0f} us", f"{c50:.2f} ms", f"{c99:.2f} ms", memory])
    notes = {by[1]["way"]: by[1]["configuration"] for by in found.values() if 1 in by and by[1]["configuration"]}
    return table(head, rows) + "".join(f"\n\n{way}: {text}." for way, text in notes.items())


def ratios(part: Part) -> str:
    """Our tunnels beside the same proxy by hand, and beside the rivals."""
    head = ["tunnel", "beside", "connections", "throughput", "middle half", "CPU per GB", "middle half"]
    rows = []
    for row in part["ratios"]:
        cells = [row["way"], row["base"], row["streams"]]
        for what in ("gbps", "cpu"):
            figures = row[what]
            cells += [f"{figures['ratio']:.2f}", f"{figures['low']:.2f}-{figures['high']:.2f}"]
        rows.append(cells)
    return table(head, rows)


def wan(part: Part) -> str:
    """The data path on each wire."""
    head = ["wire", "way", "Gb/s, 1 connection", "Gb/s, 4", "beside ssh -L, 1", "4", "connect to first byte"]
    found: dict[tuple[str, str], dict[int, Part]] = {}
    for row in part["rows"]:
        found.setdefault((row["wire"], row["way"]), {})[row["streams"]] = row
    rows = []
    for (wire, way), by in found.items():
        rates = [f"{by[n]['gbps']:.2f}" if n in by else "-" for n in (1, 4)]
        first = f"{by[1]['first_byte_ms']:.0f} ms" if 1 in by else "-"
        rival = found.get((wire, "ssh -L"), {})
        beside = [f"{by[n]['gbps'] / rival[n]['gbps']:.2f}" if n in by and n in rival else "-" for n in (1, 4)]
        rows.append([wire, way, *rates, *beside, first])
    setups = "\n".join(f"- {each['label']}: {each['request_s'] * 1000:.0f} ms" for each in part["setup"])
    return (
        f"{table(head, rows)}\n\n`s2uc request`, the whole process, from the consumer's site:\n\n{setups}"
        + _left_out(part)
    )


def setup_total(part: Part) -> str:
    """Set-up and release, in milliseconds."""
    rows = []
    for backend, found in part["library"].items():
        rows.append([f"library call to first byte, {backend}", *_quantiles(found["total_ms"])])
        rows.append([f"release, {backend}", *_quantiles(found["release_ms"])])
    rows += [[name, *_quantiles(figures)] for name, figures in part["process"].items()]
    return table(["what", "p50", "p95", "p99", "runs"], rows) + _left_out(part)


def setup_steps(part: Part) -> str:
    """The share of each step."""
    library = part["library"]
    names = list(next(iter(library.values()))["steps_ms"])
    rows = []
    for name in names:
        cells = []
        for backend, found in library.items():
            cells.append(f"{found['steps_ms'][name]['p50']:.1f} ms, {part['shares'][backend][name]:.0%}")
        rows.append([name, *cells])
    return table(["step, p50 and share", *library], rows)


def setup_floor(part: Part) -> str:
    """Each part alone."""
    return table(["alone", "p50", "p95", "p99", "runs"], [[n, *_quantiles(f)] for n, f in part["floor"].items()])


def setup_burst(part: Part) -> str:
    """Many at once."""
    head = ["backend", "at once", "failed", "all in", "each, p50", "p99", "set-ups/s", "releases/s", "failed"]
    rows = []
    for row in part["burst"]:
        each = [f"{row['each_s'][q]:.2f} s" for q in ("p50", "p99")] if row["each_s"] else ["-", "-"]
        rates = [f"{row[name]:.0f}" for name in ("per_s", "release_per_s")]
        rows.append(
            [
                row["backend"],
                row["count"],
                row["failed"],
                f"{row['all_s']:.2f} s",
                *each,
                *rates,
                row.get("release_failed", 0),
            ]
        )
    return table(head, rows)


def density(part: Part) -> str:
    """Many sessions on one gateway."""
    head = ["backend", "sessions", "proxies, each (PSS)", *_GROWTH]
    return table(
        head, [[r["backend"], r["sessions"], f"{r['proxy_pss_mb']:.2f} MB", *_growth(r)] for r in part["rows"]]
    )


def control(part: Part) -> str:
    """The control plane alone."""
    rows = [[row["sessions"], *_growth(row), f"{row['open_per_s']:.0f}"] for row in part["rows"]]
    slopes = part["slopes"]
    return (
        table(["sessions", *_GROWTH, "set-ups per second"], rows)
        + "\n\nOne more session adds "
        + f"{slopes['s2cs_pss_kb']['slope']:.1f} kB of memory, {slopes['list_us']['slope']:.1f} us to a list, "
        + f"{slopes['one_more_us']['slope']:.2f} us to the next set-up, and "
        + f"{slopes['idle_cpu_us_per_s']['slope']:.1f} us of CPU per second."
    )


def slopes(part: Part) -> str:
    """What one more session adds, by backend."""
    head = ["backend", "s2cs' memory", "list", "the next set-up", "s2cs' idle CPU", "descriptors"]
    rows = []
    for backend, found in part["slopes"].items():
        if found:
            s = {name: each["slope"] for name, each in found.items()}
            cells = [f"{s['s2cs_pss_kb']:.1f} kB", f"{s['list_us']:.1f} us", f"{s['one_more_us']:.1f} us"]
            rows.append([backend, *cells, f"{s['idle_cpu_us_per_s']:.1f} us/s", f"{s['descriptors']:.1f}"])
    return table(head, rows)


def applications(part: Part) -> str:
    """What applications get through a tunnel, beside the direct way."""
    head = ["application", "what", "direct", "tunnel", "ratio"]
    rows = []
    for row in part["rows"]:
        ratio = f"{row['tunnel'] / row['direct']:.2f}" if row["direct"] else "-"
        rows.append([row["application"], row["what"], _amount(row, "direct"), _amount(row, "tunnel"), ratio])
    return table(head, rows) + _left_out(part)


_GROWTH = ("s2cs (PSS)", "descriptors", "idle CPU of s2cs", "list, p50", "metrics, p50", "one more, p50", "p99")


def _growth(row: Part) -> list[str]:
    own = row["s2cs"]
    figures = [f"{own['pss_mb']:.0f} MB", str(own["descriptors"]), f"{row['idle_cpu_s2cs']:.1%}"]
    more = row["one_more_ms"]
    for name in ("list_ms", "scrape_ms"):
        figures.append(f"{row[name]['p50']:.1f} ms" if name in row else "-")
    return [*figures, f"{more['p50']:.0f} ms", f"{more['p99']:.0f} ms"]


def _quantiles(figures: Part) -> list[str]:
    return [*(f"{figures[name]:.1f} ms" for name in ("p50", "p95", "p99")), str(figures["n"])]


def _amount(row: Part, which: str) -> str:
    value = row[which]
    return f"{value:.3g} {row['unit']}" if value < 1000 else f"{value:.0f} {row['unit']}"


def _left_out(part: Part) -> str:
    missing = part.get("missing") or {}
    lines = [f"- {name}: {' '.join(reason.split())[:200]}" for name, reason in missing.items()]
    return "\n\nLeft out:\n\n" + "\n".join(lines) if lines else ""


TABLES: dict[str, tuple[str, Callable[[Part], str]]] = {
    "machine": ("datapath", machine),
    "throughput": ("datapath", throughput),
    "ratios": ("datapath", ratios),
    "latency": ("datapath", latency),
    "wan": ("wan", wan),
    "setup-total": ("setup", setup_total),
    "setup-steps": ("setup", setup_steps),
    "setup-floor": ("setup", setup_floor),
    "setup-burst": ("setup", setup_burst),
    "density": ("density", density),
    "slopes": ("density", slopes),
    "control": ("control", control),
    "applications": ("applications", applications),
}
