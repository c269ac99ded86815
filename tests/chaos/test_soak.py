"""Ten thousand sessions on one pair of gateways: what the control servers hold stays flat."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest

import s2uc
from tests.support.gateways import GatewayProcess, gateway
from tests.support.user import known

BACKENDS = ["nginx", "stunnel"]
COUNT = int(os.environ.get("SCISTREAM_SOAK_SESSIONS", "10000"))
FLAT = {"SCISTREAM_LIMITS__KEEP_ENDED": "1"}


def figures(running: GatewayProcess) -> dict[str, int]:
    process = psutil.Process(running.process.pid)
    files = sum(1 for _ in running.directory.rglob("*"))
    return {
        "MiB": process.memory_full_info().uss >> 20,
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "files": files,
    }


async def open_and_release(sides: tuple[s2uc.Gateway, ...], numbers: Iterable[int]) -> None:
    for number in numbers:
        session = await s2uc.aio.request(
            *sides, prod_listeners=["127.0.0.1:9"], backend=BACKENDS[number % 2], lease_s=30, timeout=60
        )
        await session.release()


@pytest.mark.soak
@pytest.mark.timeout(7200)
async def test_nothing_grows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with gateway(tmp_path / "p", **FLAT) as producer, gateway(tmp_path / "c", **FLAT) as consumer:
        sides = (known("p", producer), known("c", consumer))
        seen = []
        step = max(COUNT // 10, 1)
        for first in range(0, COUNT, step):
            numbers = range(first, min(first + step, COUNT))
            await asyncio.gather(*(open_and_release(sides, numbers[i::4]) for i in range(4)))
            await asyncio.sleep(35)  # the ended are forgotten with their leases
            seen.append([figures(producer), figures(consumer)])
            with capsys.disabled():
                print(f"\n{numbers.stop} sessions: producer {seen[-1][0]}, consumer {seen[-1][1]}", end="", flush=True)
        for running in (producer, consumer):
            assert running.leftovers() == {}
        for side in (0, 1):
            early, late = seen[0][side], seen[-1][side]
            for name in ("descriptors", "threads", "files"):
                assert late[name] <= early[name] + 4, name
            assert late["MiB"] <= early["MiB"] * 1.25 + 4
