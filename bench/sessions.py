"""Sessions opened at one gateway alone, message by message: for measurements with very many of them."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from bench.gateways import RunningGateway
from s2uc.gateway import GatewayClient
from s2uc.life import update_message
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Role, Uid
from scistream.x509 import SessionCA

_T = TypeVar("_T")

_CHUNK = 250


class Opener:
    """Open and release one-sided sessions over one control connection."""

    def __init__(self, client: GatewayClient, target: str, role: Role = Role.PROD, backend: str = "") -> None:
        self.client = client
        self._target = target
        self._role = role
        self._backend = backend

    async def open(self) -> tuple[str, float]:
        """Open one: REQ, Hello, UpdateTargets. Give its uid and the seconds until it was ACTIVE."""
        uid, role = Uid(str(uuid.uuid4())), self._role
        begin = time.perf_counter()
        request = pb.Request(uid=uid, role=role, num_conn=1, immediate=True, backend=self._backend)
        answer = await self.client.req(request)
        listeners = [self._target] if role is Role.PROD else []
        await self.client.hello(pb.Hello(uid=uid, role=role, prod_listeners=listeners))
        ca = SessionCA.create(uid, datetime.now(UTC) + timedelta(hours=2))
        await self.client.update(update_message(uid, role, [self._target], ca.issue(answer.csr, role)))
        return uid, time.perf_counter() - begin

    async def open_many(self, count: int, at_once: int) -> list[tuple[str, float]]:
        """Open many, so many of them at the same time."""
        return await _bounded([self.open() for _ in range(count)], at_once)

    async def open_until(self, count: int, at_once: int, deadline: float) -> list[tuple[str, float]]:
        """Open many, but begin no more of them after a time (of the performance counter)."""
        opened: list[tuple[str, float]] = []
        while len(opened) < count and (not opened or time.perf_counter() < deadline):
            opened += await self.open_many(min(_CHUNK, count - len(opened)), at_once)
        return opened

    async def release_many(self, uids: Sequence[str], at_once: int) -> float:
        """Release many; seconds that it took."""
        begin = time.perf_counter()
        await _bounded([self.client.release(uid) for uid in uids], at_once)
        return time.perf_counter() - begin


async def _bounded(work: Iterable[Awaitable[_T]], at_once: int) -> list[_T]:
    gate = asyncio.Semaphore(at_once)

    async def one(each: Awaitable[_T]) -> _T:
        async with gate:
            return await each

    return await asyncio.gather(*(one(each) for each in work))


@asynccontextmanager
async def opener(gateway: RunningGateway, target: str, backend: str = "") -> AsyncIterator[Opener]:
    """Speak with a gateway for a block."""
    async with GatewayClient(gateway.library, 120.0) as client:
        yield Opener(client, target, backend=backend)
