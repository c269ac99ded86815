"""What it costs to open a session: library call, whole process, and the help page."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import s2uc
from bench.datapath import BACKENDS, two_gateways, user_gateway
from bench.traffic import ask, producer
from tests.support.gateways import GatewayProcess


def measure(runs: int, report: Callable[[str], None]) -> list[dict[str, Any]]:
    """Time `runs` sessions of each backend; milliseconds.

    Returns:
        A row for each figure, with minimum, median and maximum.
    """
    rows = []
    with producer() as port, tempfile.TemporaryDirectory() as directory, two_gateways(Path(directory)) as gateways:
        for backend in BACKENDS:
            times = [_to_first_byte(gateways, backend, port) for _ in range(runs + 1)][1:]
            rows.append(_row(f"library call to first byte, {backend}", times, report))
        rows.append(_row("s2uc --help, whole process", [_process(["--help"]) for _ in range(runs)], report))
        config = Path(directory) / "user"
        for name, running in zip(("a", "b"), gateways, strict=True):
            files = [
                "--ca",
                str(running.directory / "certs" / "ca.crt"),
                "--token-file",
                str(running.directory / "token"),
            ]
            _process(["gateway", "add", name, running.address, *files], config)
        arguments = ["request", "--producer", "a", "--consumer", "b", "--prod-listeners", f"127.0.0.1:{port}", "--json"]
        for backend in BACKENDS:
            times = [
                _process([*arguments, "--backend", backend], config, release=True) for _ in range(max(3, runs // 4))
            ]
            rows.append(_row(f"s2uc request, whole process, {backend}", times, report))
    return rows


def _to_first_byte(gateways: tuple[GatewayProcess, GatewayProcess], backend: str, port: int) -> float:
    sides = list(map(user_gateway, gateways))
    begin = time.perf_counter()
    with s2uc.request(*sides, prod_listeners=[f"127.0.0.1:{port}"], backend=backend) as session:
        listener = session.listeners[0]
        with socket.create_connection((listener.host, listener.port), 30) as connection:
            ask(connection, 1)
            return (time.perf_counter() - begin) * 1000


def _process(arguments: list[str], config: Path | None = None, release: bool = False) -> float:
    environ = os.environ | ({"SCISTREAM_CONFIG_DIR": str(config)} if config else {})
    program = str(Path(sys.executable).with_name("s2uc"))
    begin = time.perf_counter()
    done = subprocess.run([program, *arguments], env=environ, check=True, capture_output=True)
    milliseconds = (time.perf_counter() - begin) * 1000
    if release:
        subprocess.run(
            [program, "release", json.loads(done.stdout)["uid"]], env=environ, check=True, capture_output=True
        )
    return milliseconds


def _row(what: str, times: list[float], report: Callable[[str], None]) -> dict[str, Any]:
    figures = {"min_ms": min(times), "median_ms": statistics.median(times), "max_ms": max(times)}
    shown = " ".join(f"{milliseconds:6.0f}" for milliseconds in figures.values())
    report(f"{what:42} {shown} ms  (min median max of {len(times)})")
    return {"what": what, **figures, "n": len(times)}
