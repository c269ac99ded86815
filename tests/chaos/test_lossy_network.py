"""Sessions over a control network that loses, repeats and delays: each is there on both sides, or on none."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import s2uc
from s2uc import life
from scistream.errors import ScistreamError
from scistream.proto import scistream_pb2 as pb
from tests.support.gateways import GatewayProcess, gateway
from tests.support.lossy import lossy

BACKENDS = ["nginx", "stunnel", "haproxy"]
SHORT = {"SCISTREAM_LIMITS__HELLO_WAIT": "20", "SCISTREAM_LIMITS__UPDATE_WAIT": "20"}


def live(running: GatewayProcess) -> dict[str, str]:
    with running.client() as client:
        sessions = client.list(pb.ListRequest(), timeout=60).sessions
    return {s.uid: s.state for s in sessions if s.state not in ("RELEASED", "EXPIRED", "FAILED")}


async def one(
    number: int, gates: asyncio.Semaphore, ways: list[s2uc.Gateway], real: list[GatewayProcess]
) -> tuple[str, str]:
    uid = f"lossy-{number}"
    async with gates:
        try:
            session = await s2uc.aio.request(
                *ways, prod_listeners=["127.0.0.1:9"], uid=uid, backend=BACKENDS[number % 3], timeout=60
            )
        except ScistreamError as error:
            return "failed", str(error)
        states = [(await asyncio.to_thread(live, each)).get(uid) for each in real]
        assert states == ["ACTIVE", "ACTIVE"]
        try:
            await life.release(session.uid, ways, timeout=60)
        except ScistreamError as error:
            return "release failed", str(error)
        return "released", ""


async def run(tmp_path: Path, count: int) -> str:
    with gateway(tmp_path / "p", **SHORT) as producer, gateway(tmp_path / "c", **SHORT) as consumer:
        real = [producer, consumer]
        async with lossy(producer, 1) as (p, lost_p), lossy(consumer, 2) as (c, lost_c):
            ways = [
                s2uc.Gateway(name, endpoint, running.ca, running.token)
                for name, endpoint, running in (("p", p, producer), ("c", c, consumer))
            ]
            gates = asyncio.Semaphore(6)
            ends = await asyncio.gather(*(one(i, gates, ways, real) for i in range(count)))
        deadline = asyncio.get_running_loop().time() + 60
        while any([await asyncio.to_thread(live, each) for each in real]):
            # What s2uc could not undo ends with the gateways' own time-outs, or here with the lease of those
            # whose release was lost for good.
            for uid in {uid for each in real for uid in live(each)}:
                if ("release failed") in ends[int(uid.removeprefix("lossy-"))][0]:
                    for each in real:
                        with each.client() as client:
                            client.release(pb.Release(uid=uid))
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.5)
        for each in real:
            assert each.leftovers() == {}
        counts = {end: sum(e[0] == end for e in ends) for end in ("released", "failed", "release failed")}
        return f"{count} requests: {counts}; calls: {dict(lost_p.fates + lost_c.fates)}"


@pytest.mark.timeout(300)
async def test_a_few_requests(tmp_path: Path) -> None:
    await run(tmp_path, 8)


@pytest.mark.soak
@pytest.mark.timeout(3000)
async def test_five_hundred_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = await run(tmp_path, 500)
    with capsys.disabled():
        print(f"\n{told}")
