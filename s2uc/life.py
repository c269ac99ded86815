"""A session that is there: how it is, and its end, at all its gateways at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from s2uc.gateway import TIMEOUT_S, Gateway, GatewayClient
from scistream.errors import NotFound, ScistreamError
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Uid


async def together(*steps: Coroutine[Any, Any, Any]) -> list[Any]:
    """Run steps at once; the first that fails stops the others and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(step) for step in steps]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def status(uid: Uid, gateways: Sequence[Gateway], timeout: float = TIMEOUT_S) -> list[pb.SessionInfo | None]:
    """Ask gateways, in their order, how a session is; None where it is unknown.

    Raises:
        NotFound: no gateway knows it.
    """

    async def ask(gateway: Gateway) -> pb.SessionInfo | None:
        async with GatewayClient(gateway, timeout) as client:
            try:
                found = await client.list(uid)
            except NotFound:
                return None
            return found[0] if found else None

    answers = await together(*(ask(gateway) for gateway in gateways))
    if not any(answers):
        raise _unknown(uid, gateways)
    return answers


async def release(uid: Uid, gateways: Sequence[Gateway], timeout: float = TIMEOUT_S) -> list[bool]:
    """Give a session back at its gateways; False where it was unknown.

    Every gateway is asked, also when another cannot be reached.

    Raises:
        NotFound: no gateway knows it.
        ScistreamError: a gateway did not do it; the others have.
    """

    async def give_back(gateway: Gateway) -> bool:
        async with GatewayClient(gateway, timeout) as client:
            try:
                await client.release(uid)
            except NotFound:
                return False
            return True

    answers = await asyncio.gather(*(give_back(gateway) for gateway in gateways), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    if not any(answers):
        raise _unknown(uid, gateways)
    return [bool(answer) for answer in answers]


def _unknown(uid: Uid, gateways: Sequence[Gateway]) -> ScistreamError:
    return NotFound(f"session {uid} is not known at {' or '.join(gateway.name for gateway in gateways)}")
