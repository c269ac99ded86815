"""What it costs to open a session: library call and whole process, by step, many at once, and to give it back."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import floor
from bench.gateways import RunningGateway, User, two_gateways
from bench.place import Place
from bench.stats import summary
from bench.traffic import Address, ask, connect, producer, timed
from bench.ways import missing_backends, usable_backends
from s2uc import aio
from s2uc.side import Step, StepEvent
from scistream.vocabulary import Endpoint

Report = Callable[[str], None]
Sides = tuple[RunningGateway, RunningGateway]
STEPS = ("client", "REQ to RESP", "Hello", "certificates", "UpdateTargets to ACTIVE", "session", "first byte")


@dataclass
class Timeline:
    """One session's opening: when each step was done on both sides; seconds since the call."""

    begin: float = field(default_factory=time.perf_counter)
    events: list[StepEvent] = field(default_factory=list)
    returned: float = 0.0
    first_byte: float = 0.0

    def steps(self) -> dict[str, float]:
        """Seconds of each step, on the slower side; they add up to the time to the first byte."""
        ends = {step: max(e.at for e in self.events if e.step is step) for step in {e.step for e in self.events}}
        first = min(event.at for event in self.events)
        asked = min(e.at for e in self.events if e.step is Step.UPDATE_TARGETS)
        places = [0.0, first, ends[Step.RESP], ends[Step.HELLO], asked, ends[Step.ACTIVE], self.returned]
        places.append(self.first_byte)
        return {name: places[i + 1] - places[i] for i, name in enumerate(STEPS)}


def measure(quick: bool, report: Report) -> dict[str, Any]:
    """Open sessions, one after another and many at once.

    Returns:
        `library`, `process`, `burst` and `floor`: milliseconds, but for the bursts, which are in seconds.
    """
    runs, bursts = (15, (1, 10)) if quick else (100, (1, 10, 50, 200))
    found: dict[str, Any] = {"missing": missing_backends(), "library": {}, "process": {}, "burst": [], "floor": {}}
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, ExitStack() as stack:
        place = Place(Path(directory))
        place.directory.chmod(0o711)  # a data server's proxies may run as somebody else, who has to pass here
        target = place.producer.address, stack.enter_context(producer(place.producer, place.directory))
        gateways = stack.enter_context(two_gateways(place, blocks=3))
        user = User(place.directory / "user", *gateways)
        for backend in usable_backends():
            found["library"][backend] = _library(gateways, backend, target, runs)
            _say(report, f"library call to first byte, {backend}", found["library"][backend]["total_ms"])
        for name, share in _shares(found["library"]).items():
            report(f"  {name}: " + ", ".join(f"{step} {part:.0%}" for step, part in share.items()))
        found["floor"] = floor.measure(place.sub("floor"), target, max(5, runs // 4))
        for name, figures in found["floor"].items():
            _say(report, f"floor: {name}", figures)
        found["process"] = _processes(user, target, max(5, runs // 5))
        for name, figures in found["process"].items():
            _say(report, name, figures)
        for backend in usable_backends():
            for count in bursts:
                row = asyncio.run(_burst(gateways, backend, target, count))
                found["burst"].append(row)
                report(
                    f"{row['count']:4} at once, {backend:8} all in {row['all_s']:.2f} s, {row['failed']} failed, "
                    f"{row['per_s']:.0f}/s; release {row['release_per_s']:.0f}/s, {row['release_failed']} failed "
                    + " ".join(row["reasons"])
                )
    found["shares"] = _shares(found["library"])
    return found


def _library(gateways: Sides, backend: str, target: Address, runs: int) -> dict[str, Any]:
    async def all_of_them() -> tuple[list[Timeline], list[float]]:
        timelines, releases = [], []
        for _ in range(runs + 2):
            timeline, session = await _open(gateways, backend, target)
            begin = time.perf_counter()
            await session.release()
            releases.append(time.perf_counter() - begin)
            timelines.append(timeline)
        return timelines[2:], releases[2:]

    timelines, releases = asyncio.run(all_of_them())
    steps: dict[str, list[float]] = defaultdict(list)
    for timeline in timelines:
        for name, seconds in timeline.steps().items():
            steps[name].append(seconds)
    return {
        "total_ms": _milliseconds([timeline.first_byte for timeline in timelines]),
        "release_ms": _milliseconds(releases),
        "steps_ms": {name: _milliseconds(values) for name, values in steps.items()},
    }


async def _open(gateways: Sides, backend: str, target: Address) -> tuple[Timeline, aio.Session]:
    timeline = Timeline()
    session = await aio.request(
        gateways[0].library,
        gateways[1].library,
        prod_listeners=[f"{target[0]}:{target[1]}"],
        backend=backend,
        on_step=timeline.events.append,
    )
    timeline.returned = time.perf_counter() - timeline.begin
    await asyncio.to_thread(_take_a_byte, session.listeners[0])
    timeline.first_byte = time.perf_counter() - timeline.begin
    return timeline, session


def _take_a_byte(listener: Endpoint) -> None:
    with connect((listener.host, listener.port)) as connection:
        ask(connection, 1)


async def _burst(gateways: Sides, backend: str, target: Address, count: int) -> dict[str, Any]:
    """Open many at once, each to its first byte, and then release all of them at once."""
    begin = time.perf_counter()
    results = await asyncio.gather(*(_open(gateways, backend, target) for _ in range(count)), return_exceptions=True)
    took = time.perf_counter() - begin
    opened = [result for result in results if not isinstance(result, BaseException)]
    begin = time.perf_counter()
    ends = await asyncio.gather(*(session.release() for _, session in opened), return_exceptions=True)
    released = time.perf_counter() - begin
    stuck = [session for (_, session), end in zip(opened, ends, strict=True) if end is not None]
    for session in stuck:
        await session.release()
    return {
        "backend": backend,
        "count": count,
        "failed": count - len(opened),
        "release_failed": len(stuck),
        "reasons": sorted({str(r) for r in results if isinstance(r, BaseException)})[:3],
        "all_s": took,
        "each_s": summary([timeline.first_byte for timeline, _ in opened]) if opened else {},
        "per_s": len(opened) / took,
        "release_per_s": (len(opened) - len(stuck)) / released,
    }


def _processes(user: User, target: Address, runs: int) -> dict[str, Any]:
    """Time whole processes of `s2uc`, Python's start included."""
    program = str(Path(sys.executable).with_name("s2uc"))
    bare = [timed(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True)) for _ in range(runs)]
    helped = [timed(lambda: subprocess.run([program, "--help"], check=True, capture_output=True)) for _ in range(runs)]
    found = {"python -c pass": _milliseconds(bare), "s2uc --help": _milliseconds(helped)}
    for backend in usable_backends():
        times, releases = [], []
        for _ in range(runs):
            begin = time.perf_counter()
            session = user.request([target], 1, backend)
            listener = Endpoint.parse(session["consumer"]["listeners"][0])
            _take_a_byte(listener)
            times.append(time.perf_counter() - begin)
            releases.append(timed(lambda uid=session["uid"]: user.run("release", uid)))
        found[f"s2uc request to first byte, {backend}"] = _milliseconds(times)
        found[f"s2uc release, {backend}"] = _milliseconds(releases)
    return found


def _shares(library: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Say which part of the whole each step has: of the medians' sum."""
    shares = {}
    for backend, found in library.items():
        medians = {name: figures["p50"] for name, figures in found["steps_ms"].items()}
        shares[backend] = {name: value / sum(medians.values()) for name, value in medians.items()}
    return shares


def _milliseconds(values: list[float]) -> dict[str, Any]:
    return summary([value * 1000 for value in values])


def _say(report: Report, what: str, figures: dict[str, Any]) -> None:
    shown = " ".join(f"{figures[name]:7.1f}" for name in ("p50", "p95", "p99"))
    report(f"{what:44} {shown} ms  (p50 p95 p99 of {figures['n']})")
