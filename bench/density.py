"""Many sessions on one gateway: memory, CPU when idle, and the cost of one more as they grow."""

from __future__ import annotations

import asyncio
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from bench.gateways import RunningGateway, gateway
from bench.place import Place, cpu_seconds, pss_bytes
from bench.sessions import Opener, opener
from bench.stats import line, summary
from bench.traffic import producer
from bench.ways import missing_backends, usable_backends
from s2cs.s2ds.procfs import alive

Report = Callable[[str], None]
_IDLE_S = 5.0  # in which the kernel's counters are read once
_OPENING_S = 120.0  # then fewer sessions have to do; the row says how many there were
LIMITS = {"LIMITS__SESSIONS": "100000", "LIMITS__CONNECTIONS": "65000", "LIMITS__CALL_RATE": "100000"}


def measure(quick: bool, report: Report) -> dict[str, Any]:
    """Open more and more sessions on the producer's gateway.

    Returns:
        `rows`: figures at each number of sessions and for each backend; `slopes`: what one more session adds.
    """
    lean = usable_backends()[0]
    plan = dict.fromkeys(usable_backends(), (1, 20) if quick else (1, 100))
    plan[lean] = (1, 50) if quick else (1, 100, 300, 1000)
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, ExitStack() as stack:
        place = Place(Path(directory))
        port = stack.enter_context(producer(place.producer, place.directory))
        for backend, counts in plan.items():
            blocks = counts[-1] // 100 + 1
            with gateway(place.directory / backend, place.producer, blocks=blocks, **LIMITS) as running:
                target = f"{place.producer.address}:{port}"
                rows += asyncio.run(_grow(running, backend, target, counts, 1.0 if quick else _IDLE_S, report))
    slopes = {backend: per_session([row for row in rows if row["backend"] == backend]) for backend in plan}
    return {"rows": rows, "slopes": slopes, "missing": missing_backends()}


async def _grow(
    running: RunningGateway, backend: str, target: str, counts: tuple[int, ...], idle_s: float, report: Report
) -> list[dict[str, Any]]:
    rows = []
    opened: list[str] = []
    deadline = time.perf_counter() + _OPENING_S
    async with opener(running, target, backend) as sessions:
        empty = _memory(running.pid)
        for count in counts:
            begin = time.perf_counter()
            more = await sessions.open_until(count - len(opened), 4, deadline)
            rate = len(more) / (time.perf_counter() - begin)
            opened += [uid for uid, _ in more]
            row = {"backend": backend, "sessions": len(opened), "open_per_s": rate, "empty_mb": empty["pss_mb"]}
            row |= await look(running, sessions, idle_s)
            rows.append(row)
            report(_line(row))
            if len(opened) < count:
                break
        proxies = running.proxies()
        took = await sessions.release_many(opened, 4)
        rows[-1]["release_per_s"] = len(opened) / took
        rows[-1]["left"] = sorted(pid for pid in proxies if alive(pid))
        report(f"{backend:8} {len(opened)} released in {took:.1f} s, {len(rows[-1]['left'])} processes left")
    return rows


async def look(running: RunningGateway, sessions: Opener, idle_s: float) -> dict[str, Any]:
    """Measure a gateway as it is: memory, idle CPU, the time of a list and of one more session."""
    proxies = running.proxies()
    own, data = [running.pid], list(proxies)
    before = cpu_seconds(own), cpu_seconds(data)
    await asyncio.sleep(idle_s)
    idle = [(cpu_seconds(pids) - was) / idle_s for pids, was in zip((own, data), before, strict=True)]
    lists = []
    for _ in range(5):
        await asyncio.sleep(0.55)  # as people and monitors ask: what was counted for the one before is old by then
        begin = time.perf_counter()
        found = await sessions.client.list()
        lists.append((time.perf_counter() - begin) * 1000)
    scrapes = [await asyncio.to_thread(_scrape, running.metrics) for _ in range(5)]
    one_more = [await sessions.open() for _ in range(10)]
    await sessions.release_many([uid for uid, _ in one_more], 4)
    count = sum(not info.state.startswith(("RELEASED", "EXPIRED", "FAILED")) for info in found)
    return {
        "processes": len(proxies),
        "proxy_pss_mb": pss_bytes(proxies) / 1e6 / max(count, 1),
        "s2cs": _memory(running.pid),
        "idle_cpu_s2cs": idle[0],
        "idle_cpu_proxies": idle[1],
        "list_ms": summary(lists),
        "scrape_ms": summary(scrapes),
        "one_more_ms": summary([seconds * 1000 for _, seconds in one_more]),
    }


def _scrape(url: str) -> float:
    begin = time.perf_counter()
    with urllib.request.urlopen(url, timeout=30) as answer:
        answer.read()
    return (time.perf_counter() - begin) * 1000


def _memory(pid: int) -> dict[str, Any]:
    process = psutil.Process(pid)
    return {
        "rss_mb": process.memory_info().rss / 1e6,
        "pss_mb": pss_bytes([pid]) / 1e6,
        "threads": process.num_threads(),
        "descriptors": process.num_fds(),
    }


def per_session(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Say what one more session adds to each figure, by the line of least squares."""
    if len(rows) < 2:
        return {}
    counts = [float(row["sessions"]) for row in rows]
    figures: dict[str, list[float]] = {
        "s2cs_pss_kb": [row["s2cs"]["pss_mb"] * 1000 for row in rows],
        "list_us": [row["list_ms"]["p50"] * 1000 for row in rows],
        "scrape_us": [row["scrape_ms"]["p50"] * 1000 for row in rows],
        "one_more_us": [row["one_more_ms"]["p50"] * 1000 for row in rows],
        "idle_cpu_us_per_s": [row["idle_cpu_s2cs"] * 1e6 for row in rows],
        "descriptors": [row["s2cs"]["descriptors"] for row in rows],
    }
    return {name: line(counts, values) for name, values in figures.items()}


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['backend']:8} {row['sessions']:6} sessions: {row['proxy_pss_mb']:.2f} MB each, "
        f"s2cs {row['s2cs']['pss_mb']:.0f} MB, idle CPU s2cs {row['idle_cpu_s2cs']:.1%} "
        f"proxies {row['idle_cpu_proxies']:.1%}, list {row['list_ms']['p50']:.1f} ms, "
        f"scrape {row['scrape_ms']['p50']:.1f} ms, "
        f"one more {row['one_more_ms']['p50']:.0f} ms, {row['open_per_s']:.0f}/s"
    )
