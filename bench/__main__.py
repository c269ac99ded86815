"""`python -m bench [PART...]`: measure, print, and write JSON, plots and the documentation's page.

A part that fails is told of and left out; the others go on.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from bench import host

_PART_S = 420.0  # then a part that hangs is given up, and the next one begins
PARTS = ("datapath", "wan", "setup", "density", "control", "applications")
RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for, or everything; the exit status."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that what runs is ended
    if options.source:
        result: dict[str, Any] = json.loads(options.source.read_text())
    else:
        result = run(options.parts or list(PARTS), options.quick)
        file = options.json or RESULTS / time.strftime("%Y%m%dT%H%M%S.json")
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {file}")
    if options.plots:
        from bench import report  # noqa: PLC0415 - matplotlib is an extra

        for path in report.publish(result):
            print(f"written to {path}")
    return 1 if result["failed"] else 0


def run(parts: list[str], quick: bool) -> dict[str, Any]:
    """Run parts; what they found, with the machine and the reasons of those that failed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    result: dict[str, Any] = {"machine": host.machine(), "quick": quick, "parts": {}, "failed": {}}
    print(" ".join(f"{key}={value}" for key, value in result["machine"].items()), flush=True)
    for part in parts:
        begin, load = time.monotonic(), host.load()
        print(f"\n== {part} (load {load:.1f})", flush=True)
        try:
            with _bounded(_PART_S):
                found = import_module(f"bench.{part}").measure(quick, lambda line: print(line, flush=True))
        except Exception as error:
            traceback.print_exc()
            result["failed"][part] = f"{type(error).__name__}: {error}"
            continue
        took = time.monotonic() - begin
        result["parts"][part] = found | {"load_before": load, "took_s": took, "commit": result["machine"]["commit"]}
        print(f"== {part}: {took:.0f} s", flush=True)
    return result


@contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block when it takes too long."""

    def give_up(number: int, frame: object) -> None:
        raise TimeoutError(f"it took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} [default: all]")
    parser.add_argument("--quick", action="store_true", help="less of everything: two minutes, and more noise")
    parser.add_argument("--json", type=Path, metavar="F", help="where the result goes [default: bench/results/]")
    parser.add_argument("--plots", action="store_true", help="draw docs/img, write the tables of docs/benchmarks.md")
    parser.add_argument("--from", dest="source", type=Path, metavar="F", help="take this result, and measure nothing")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
