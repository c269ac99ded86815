"""The benchmarks run: a part of them for seconds, to their result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gateways import gateway
from bench.place import Missing, Node, cpu_seconds, pss_bytes
from bench.sessions import opener
from bench.traffic import connect, producer, round_trips, transfer
from bench.wan import Wire, two_sites

ROOT = Path(__file__).parents[2]


def test_a_part_runs_by_one_command_and_writes_its_result(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    command = [sys.executable, "-m", "bench", "control", "--quick", "--json", str(file)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert run.returncode == 0, run.stderr
    result = json.loads(file.read_text())
    assert result["failed"] == {}
    assert {"commit", "kernel", "CPU"} <= set(result["machine"])
    rows = result["parts"]["control"]["rows"]
    assert [row["sessions"] for row in rows] == [1, 100]
    assert all(row["list_ms"]["p50"] > 0 for row in rows)


async def test_the_proxies_of_a_gateway_are_found_and_measured(tmp_path: Path) -> None:
    with gateway(tmp_path / "g", Node()) as running:
        async with opener(running, "127.0.0.1:9") as sessions:
            assert not running.proxies()
            uid, _ = await sessions.open()
            found = running.proxies()
            assert pss_bytes(found) > 1_000_000
            assert cpu_seconds(found) > 0
            await sessions.release_many([uid], 1)
            assert not running.proxies()


def test_an_unknown_part_is_said() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "bench", "nothing"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "there is no part nothing; there are datapath" in run.stderr


def test_the_wire_delays_and_carries_and_is_gone_afterwards(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("namespaces need root")
    try:
        with two_sites(Wire(20, 0.001, "tuned"), tmp_path) as place, producer(place.producer, tmp_path) as port:
            names = [place.producer.namespace, place.consumer.namespace]
            with place.consumer.inside():
                address = (place.producer.address, port)
                assert min(round_trips(address, 3)) >= 0.020
                assert transfer([address], tuple, 0.5).gbps > 0
            with pytest.raises(OSError, match=r"timed out|unreachable|refused"):
                connect(address, 0.3)  # not from here
    except Missing as error:
        pytest.skip(str(error))
    assert not any(Path(f"/run/netns/{name}").exists() for name in names)
