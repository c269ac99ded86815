"""`python -m bench [setup] [datapath]`: run benchmarks, print tables, write bench/results/*.json."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

import scistream
from bench import datapath, setup

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run what is asked for, or everything."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("what", nargs="*", choices=["setup", "datapath", []], help="[default: both]")
    parser.add_argument("--runs", type=int, default=20, help="sessions for each set-up figure [default: 20]")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of transfers for each data path [default: 3]")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of a transfer [default: 2]")
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": _machine()}
    print(" ".join(f"{key}={value}" for key, value in result["machine"].items()), flush=True)

    def report(line: str) -> None:
        print(line, flush=True)

    if not options.what or "setup" in options.what:
        result["setup"] = setup.measure(options.runs, report)
    if not options.what or "datapath" in options.what:
        result["datapath"] = datapath.measure(options.rounds, options.gigabytes, report)
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / time.strftime("%Y%m%dT%H%M%S.json")
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {file}")


def _machine() -> dict[str, str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "scistream": scistream.__version__,
        "commit": commit.stdout.strip() or "unknown",
        "kernel": platform.release(),
        "cpus": str(psutil.cpu_count()),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
