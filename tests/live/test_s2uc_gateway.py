"""The client of one gateway: it outlives the gateway's restarts, and says what the gateway says."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from s2uc.gateway import GatewayClient, wait_until
from s2uc.side import Side, Terms
from scistream.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Endpoint, Role
from tests.support.gateways import gateway, restarted
from tests.support.user import known


async def test_calls_outlive_a_restart(tmp_path: Path) -> None:
    with gateway(tmp_path / "g") as running:
        async with GatewayClient(known("g", running)) as client:
            described = await client.describe()
            assert (described.user, described.admin) == ("admin", True)
            await asyncio.to_thread(running.stop)
            call = asyncio.create_task(client.describe())
            await asyncio.sleep(0.3)
            assert not call.done()
            with restarted(running):
                assert (await call).name == described.name


async def test_another_address_is_used_when_one_does_not_answer(tmp_path: Path) -> None:
    with gateway(tmp_path / "g") as running:
        good = known("g", running)
        nobody = Endpoint("127.0.0.1", running.first_port + 1)
        for addresses in ((nobody, good.endpoint), (good.endpoint, nobody)):
            both = replace(good, endpoint=addresses[0], others=addresses[1:])
            async with GatewayClient(both) as client:
                assert (await client.describe()).user == "admin"
        async with GatewayClient(replace(good, endpoint=nobody, others=(nobody,)), timeout=1) as client:
            with pytest.raises(Unavailable, match="was refused"):
                await client.describe()


async def test_watching_outlives_a_restart(tmp_path: Path) -> None:
    with gateway(tmp_path / "g") as running:
        async with GatewayClient(known("g", running)) as client:
            side = Side(client, Role.PROD, Terms(), "key", lambda event: None, 0)
            await side.reserve()
            states: list[str] = []
            async with aclosing(client.watch(side.terms.uid)) as events:
                states.append((await anext(events)).session.state)
                await asyncio.to_thread(running.stop)
                with restarted(running):
                    states += [event.session.state async for event in events]
            assert states[0] == "RESERVED"
            assert states[-1] in ("RELEASED", "FAILED")
    assert running.leftovers() == {}


async def test_a_gateway_that_went_away_is_waited_for_only_so_long(tmp_path: Path) -> None:
    with gateway(tmp_path / "g") as running:
        async with GatewayClient(known("g", running), timeout=1.0) as client:
            await client.describe()
            await asyncio.to_thread(running.stop)
            with pytest.raises(Unavailable, match="was refused"):
                await client.describe()
            with pytest.raises(Unavailable, match="was refused"):
                async with aclosing(client.watch("x")) as events:
                    await anext(events)


async def test_what_the_gateway_says(tmp_path: Path) -> None:
    with gateway(tmp_path / "g", SCISTREAM_LIMITS__HELLO_WAIT="1") as running:
        async with GatewayClient(known("g", running)) as client:
            with pytest.raises(NotFound, match=r"^gateway g: there is no session x"):
                await client.list("x")
            with pytest.raises(InvalidArgument, match=r"^gateway g: "):
                await client.req(pb.Request(uid="x", role="BOTH", num_conn=1, immediate=True))
            side = Side(client, Role.PROD, Terms(), "key", lambda event: None, 0)
            await side.reserve()
            with pytest.raises(DeadlineExceeded, match="has ended"):
                await wait_until(client, side.terms.uid, lambda info: info.state == "ACTIVE")
            side = Side(client, Role.PROD, Terms(), "key", lambda event: None, 0)
            await side.reserve()
            waiting = asyncio.create_task(wait_until(client, side.terms.uid, lambda info: info.state == "ACTIVE"))
            await client.release(side.terms.uid)
            with pytest.raises(FailedPrecondition, match="has ended"):
                await waiting
