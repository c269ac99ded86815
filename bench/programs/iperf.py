"""iperf3: from the server to the client, as data flows from producer to consumer, with 1 and 4 connections."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.host import program
from bench.place import Missing, Place
from bench.programs.base import served
from bench.traffic import Address


@contextmanager
def serve(place: Place) -> Iterator[list[Address]]:
    """Run iperf3's server."""
    path = program("iperf3")
    if path is None:
        raise Missing("iperf3 is not installed")
    host = place.producer.address
    with served(place, "iperf3", lambda port: [path, "-s", "-B", host, "-p", str(port)]) as addresses:
        yield addresses


def measure(addresses: list[Address], seconds: float) -> dict[tuple[str, str, str], float]:
    """Run the client."""
    found = {}
    for streams in (1, 4):
        host, port = addresses[0]
        how = ["-R", "-J", "-t", str(max(1, round(seconds))), "-P", str(streams)]
        command = [program("iperf3") or "iperf3", "-c", host, "-p", str(port), *how]
        answer = _answer(command)
        found[f"rate, {streams} connections", "Gb/s", "more"] = answer["end"]["sum_received"]["bits_per_second"] / 1e9
    return found


def _answer(command: list[str]) -> dict[str, Any]:
    """Run the client; again when the server has not done with the test before."""
    deadline = time.monotonic() + 10
    while True:
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        answer: dict[str, Any] = json.loads(run.stdout)
        if "error" not in answer:
            return answer
        if "busy" not in answer["error"] or time.monotonic() > deadline:
            raise RuntimeError(answer["error"])
        time.sleep(0.2)
