"""The control plane alone: a real gateway, store and gRPC over a data server that carries nothing."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.density import LIMITS, look, per_session
from bench.gateways import RunningGateway, gateway
from bench.place import Place
from bench.sessions import opener

Report = Callable[[str], None]
_AT_ONCE = 16
_OPENING_S = 200.0  # then fewer sessions have to do; the row says how many there were


def measure(quick: bool, report: Report) -> dict[str, Any]:
    """Open up to 10,000 sessions whose data server is simulated.

    Returns:
        `rows`: figures at each number of sessions; `slopes`: what one more session adds.
    """
    counts = (1, 100) if quick else (1, 1000, 3000, 10_000)
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        place = Place(Path(directory))
        with gateway(place.directory / "null", place.producer, module="bench.nullplane", **LIMITS) as running:
            rows = asyncio.run(_grow(running, counts, 1.0 if quick else 5.0, report))
    return {"rows": rows, "slopes": per_session(rows)}


async def _grow(
    running: RunningGateway, counts: tuple[int, ...], idle_s: float, report: Report
) -> list[dict[str, Any]]:
    rows = []
    opened: list[str] = []
    deadline = time.perf_counter() + _OPENING_S
    async with opener(running, "127.0.0.1:9", "nginx") as sessions:
        for count in counts:
            begin = time.perf_counter()
            more = await sessions.open_until(count - len(opened), _AT_ONCE, deadline)
            rate = len(more) / (time.perf_counter() - begin)
            opened += [uid for uid, _ in more]
            row = {"sessions": len(opened), "open_per_s": rate} | await look(running, sessions, idle_s)
            rows.append(row)
            report(
                f"{len(opened):6} sessions: s2cs {row['s2cs']['pss_mb']:.0f} MB, idle CPU {row['idle_cpu_s2cs']:.1%}, "
                f"list {row['list_ms']['p50']:.1f} ms, one more {row['one_more_ms']['p50']:.1f} ms, opened {rate:.0f}/s"
            )
            if len(opened) < count:
                break
        took = await sessions.release_many(opened, _AT_ONCE)
        rows[-1]["release_per_s"] = len(opened) / took
        report(f"{len(opened)} released in {took:.1f} s")
    return rows
