"""A session that is there: how it is, and its end, at all its gateways at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

from s2uc.gateway import TIMEOUT_S, Gateway, GatewayClient
from scistream.errors import FailedPrecondition, NotFound, ScistreamError
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Role, Transport, Uid
from scistream.x509 import Credentials, SessionCA

_SPARE = timedelta(minutes=10)  # that a CA lives longer than what it has signed


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
    found: list[pb.SessionInfo | None] = []
    for answer in await survey(uid, gateways, timeout):
        if isinstance(answer, ScistreamError):
            raise answer
        found.append(answer)
    return found


async def survey(
    uid: Uid, gateways: Sequence[Gateway], timeout: float = TIMEOUT_S
) -> list[pb.SessionInfo | ScistreamError | None]:
    """Do the same, with the error in the place of an answer, where another gateway knows the session.

    Raises:
        NotFound: no gateway knows it.
        ScistreamError: a gateway did not answer, and no other knows it.
    """

    async def ask(gateway: Gateway) -> pb.SessionInfo | ScistreamError | None:
        try:
            async with GatewayClient(gateway, timeout) as client:
                return await _look(client, uid)
        except ScistreamError as error:
            return error

    answers = await together(*(ask(gateway) for gateway in gateways))
    errors = [answer for answer in answers if isinstance(answer, ScistreamError)]
    if not any(isinstance(answer, pb.SessionInfo) for answer in answers):
        raise errors[0] if errors else unknown(uid, gateways)
    return answers


async def _look(client: GatewayClient, uid: Uid) -> pb.SessionInfo | None:
    try:
        found = await client.list(uid)
    except NotFound:
        return None
    return found[0] if found else None


def _end(of: pb.SessionInfo | pb.Response) -> datetime:
    end: datetime = of.expires_at.ToDatetime(tzinfo=UTC)
    return end


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
    done = " and ".join(gateway.name for gateway, answer in zip(gateways, answers, strict=True) if answer is True)
    for answer in answers:
        if isinstance(answer, ScistreamError) and done:
            raise type(answer)(f"{answer}; session {uid} is released at {done} alone, so release it again later")
        if isinstance(answer, BaseException):
            raise answer
    if not any(answers):
        raise unknown(uid, gateways)
    return [bool(answer) for answer in answers]


async def renew(uid: Uid, gateways: Sequence[Gateway], lease_s: int = 0, timeout: float = TIMEOUT_S) -> datetime:
    """Make a session live longer, with new credentials under a new CA; running streams notice nothing.

    First both gateways trust the new CA beside the old one, then both get certificates of the new one: at no
    moment is there a pair of them that does not trust each other.

    Args:
        uid: the session.
        gateways: both of its gateways.
        lease_s: seconds from now; 0 is the shorter of the gateways' defaults.
        timeout: for each call, in seconds.

    Returns:
        The new end of the lease (UTC).

    Raises:
        NotFound: a gateway does not know it.
        FailedPrecondition: only one of its gateways was given, or it is not open.
    """
    async with AsyncExitStack() as stack:
        asked = [await stack.enter_async_context(GatewayClient(gateway, timeout)) for gateway in gateways]
        found = await together(*(_look(client, uid) for client in asked))
        known = [(client, info) for client, info in zip(asked, found, strict=True) if info]
        if not known:
            raise unknown(uid, gateways)
        if {info.role for _, info in known} != set(Role):
            raise FailedPrecondition(
                f"session {uid} is renewed at both its gateways at once, and only one is known here"
            )
        clients, infos = [client for client, _ in known], [info for _, info in known]
        lease_s = lease_s or min(d.default_lease_s for d in await together(*(c.describe() for c in clients)))
        if all(info.protocol == Transport.UDP for info in infos):  # which has no credentials
            answers = await together(*(client.renew(pb.Renew(uid=uid, lease_s=lease_s)) for client in clients))
            return min(map(_end, answers))
        ca = SessionCA.create(uid, max(*map(_end, infos), datetime.now(UTC) + timedelta(seconds=lease_s)) + _SPARE)
        message = pb.Renew(uid=uid, lease_s=lease_s, trust_anchor=ca.certificate.der)
        answers = await together(*(client.renew(message) for client in clients))
        expires_at = min(map(_end, answers))
        updates = []
        for client, info, answer in zip(clients, infos, answers, strict=True):
            credentials = ca.issue(answer.csr, Role(info.role), expires_at)
            updates.append(client.update(update_message(uid, Role(info.role), info.targets, credentials)))
        await together(*updates)
        return expires_at


def update_message(uid: Uid, role: Role, targets: Iterable[str], credentials: Credentials | None) -> pb.UpdateTargets:
    """Put UpdateTargets into the wire's words."""
    message = pb.UpdateTargets(uid=uid, role=role, remote_listeners=targets)
    if credentials is not None:
        message.certificate, message.trust_anchor = credentials.certificate.der, credentials.trust_anchor.der
    return message


def unknown(uid: Uid, gateways: Sequence[Gateway]) -> NotFound:
    """Say that no gateway knows a session."""
    return NotFound(f"session {uid} is not known at {' or '.join(gateway.name for gateway in gateways)}")
