"""Throughput, CPU, memory and latency of every way, in turn, in one run."""

from __future__ import annotations

import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import ways
from bench.gateways import User, two_gateways
from bench.place import Missing, Place
from bench.stats import paired, quantile
from bench.traffic import Transfer, first_bytes, producer, round_trips, transfer
from bench.ways import Road, Way

Report = Callable[[str], None]


def measure(quick: bool, report: Report) -> dict[str, Any]:
    """Stream over every way with 1, 4 and 16 connections.

    Returns:
        `rows`: a way and a number of connections each, with medians and ratios; `missing`: what was left out, and why.
    """
    rounds, seconds = (1, 0.4) if quick else (4, 1.0)
    rows: list[dict[str, Any]] = []
    missing = ways.missing_backends()
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, ExitStack() as stack:
        place = Place(Path(directory))
        target = place.producer.address, stack.enter_context(producer(place.producer, place.directory))
        gateways = stack.enter_context(two_gateways(place, blocks=2))
        user = User(place.directory / "user", *gateways)
        ours = ways.tunnels(user, gateways)
        if newer := ways.embedded_nginx():
            programs = f'{{nginx = "{newer.program}"}}'
            others = stack.enter_context(two_gateways(place.sub("newer"), S2DS__PROGRAMS=programs))
            ours.append(ways.tunnel_through(newer, User(place.directory / "newer-user", *others), others))
        found = [ways.direct(), *ours, *ways.by_hand(), *ways.rivals()]
        for streams in (1, 4) if quick else (1, 4, 16):
            rows += _side_by_side(found, place.sub(f"x{streams}"), target, streams, rounds, seconds, missing, report)
    return {"rows": rows, "missing": missing, "rounds": rounds, "seconds": seconds, "ratios": _ratios(rows)}


def _side_by_side(
    found: Sequence[Way],
    place: Place,
    target: tuple[str, int],
    streams: int,
    rounds: int,
    seconds: float,
    missing: dict[str, str],
    report: Report,
) -> list[dict[str, Any]]:
    results: dict[Way, list[Transfer]] = defaultdict(list)
    rows = []
    with ExitStack() as stack:
        roads: dict[Way, Road] = {}
        for i, way in enumerate(found):
            try:
                road = stack.enter_context(way.open(place.sub(str(i)), target, streams))
                transfer(road.addresses, tuple, 0.1)  # opens what is opened late
            except (Missing, OSError, RuntimeError) as error:
                missing[way.label] = str(error)
                report(f"{way.label}: left out: {error}")
                continue
            roads[way] = road
        for i in range(rounds):
            order = list(roads.items())
            turned = order[i % len(order) :] + order[: i % len(order)]
            for way, road in turned:
                results[way].append(transfer(road.addresses, lambda road=road: road.groups, seconds))
        for way, road in roads.items():
            row = _row(way, streams, results[way], road)
            rows.append(row)
            report(_line(row))
    return rows


def _row(way: Way, streams: int, results: list[Transfer], road: Road) -> dict[str, Any]:
    samples = {"gbps": [r.gbps for r in results], "cpu": [sum(r.cpu_s_per_gb) for r in results]}
    row: dict[str, Any] = {
        "way": way.label,
        "kind": way.kind,
        "name": way.name,
        "configuration": way.configuration,
        "streams": streams,
        "gbps": statistics.median(samples["gbps"]),
        "cpu_s_per_gb": statistics.median(samples["cpu"]),
        "gbps_spread": [quantile(samples["gbps"], q) for q in (0.25, 0.75)],
        "cpu_producer": statistics.median(r.cpu_s_per_gb[0] for r in results),
        "cpu_consumer": statistics.median(r.cpu_s_per_gb[1] for r in results),
        "pss_mb": [each / 1e6 for each in results[-1].pss_bytes],
        "samples": samples,
    }
    if streams == 1:
        trips, connects = round_trips(road.addresses[0], 2000, most_s=1.0), first_bytes(road.addresses[0], 50)
        row |= {
            "round_trip_us": [quantile(trips, q) * 1e6 for q in (0.5, 0.99)],
            "first_byte_ms": [quantile(connects, q) * 1e3 for q in (0.5, 0.99)],
        }
    return row


def _ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare each tunnel with the same proxy by hand, and with each rival: pairs of the same round."""
    by = {(row["way"], row["streams"]): row for row in rows}
    found = []
    for ours in rows:
        if ours["kind"] != "tunnel":
            continue
        others = [f"{ours['name']}, by hand", *dict.fromkeys(r["way"] for r in rows if r["kind"] == "rival")]
        for other in others:
            base = by.get((other, ours["streams"]))
            if base is not None:
                figures = {what: paired(ours["samples"][what], base["samples"][what]) for what in ("gbps", "cpu")}
                found.append({"way": ours["way"], "base": other, "streams": ours["streams"], **figures})
    return found


def _line(row: dict[str, Any]) -> str:
    text = f"{row['way']:20} x{row['streams']:<3} {row['gbps']:6.2f} Gb/s  {row['cpu_s_per_gb']:5.2f} CPU-s/GB"
    if "round_trip_us" in row:
        text += "  64 B {:.0f}/{:.0f} us".format(*row["round_trip_us"])
        text += "  first byte {:.2f}/{:.2f} ms".format(*row["first_byte_ms"])
    return text
