"""`s2uc list`, `status`, `watch`, `renew`, `release`: sessions that are there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC
from typing import TYPE_CHECKING, Any

import click

from s2uc.commands.common import DURATION, UID, Command, Settings, chosen, pass_settings, perform, put, remark
from s2uc.commands.completion import gateways, uids
from scistream.errors import NotFound, ScistreamError, Unavailable
from scistream.vocabulary import Role, Uid

if TYPE_CHECKING:
    from s2uc.config import KnownGateway
    from s2uc.gateway import Gateway
    from scistream.proto.scistream_pb2 import SessionInfo

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_SIDES = {"PROD": "producer", "CONS": "consumer"}


def _gateways(settings: Settings, uid: Uid) -> list[Gateway]:
    """Give the gateways of a session that was asked for from here; of another, all that are known."""
    record = settings.config.find_session(uid)
    names = tuple(dict.fromkeys(record.gateways[role] for role in Role if role in record.gateways)) if record else ()
    return [gateway.live() for gateway in chosen(settings, names)]


def _content(gateway: str, info: SessionInfo) -> dict[str, Any]:
    return {
        "uid": info.uid,
        "gateway": gateway,
        "role": info.role,
        "state": info.state,
        "reason": info.reason,
        "owner": info.owner,
        "backend": info.backend,
        "backend_version": info.backend_version,
        "num_conn": info.num_conn,
        "rate_bytes_per_s": info.rate_bytes_per_s,
        "listeners": list(info.listeners),
        "prod_listeners": list(info.prod_listeners),
        "targets": list(info.targets),
        "created_at": info.created_at.ToDatetime(tzinfo=UTC).isoformat(),
        "expires_at": info.expires_at.ToDatetime(tzinfo=UTC).isoformat(),
        "labels": dict(info.labels),
        "tls_version": info.tls_version,
        "tls_cipher": info.tls_cipher,
        "traffic": _traffic(info),
        "since": info.since.ToDatetime(tzinfo=UTC).isoformat() if info.HasField("since") else None,
        "deadline": info.deadline.ToDatetime(tzinfo=UTC).isoformat() if info.HasField("deadline") else None,
        "restarts": info.restarts,
        "last_death": info.last_death,
    }


def _traffic(info: SessionInfo) -> dict[str, int] | None:
    """Give what the session has moved, as numbers; None where the gateway does not say."""
    if not info.HasField("traffic"):
        return None
    return {field.name: getattr(info.traffic, field.name) for field in info.traffic.DESCRIPTOR.fields}


def _moved(info: SessionInfo) -> str:
    """Say what the session has moved."""
    traffic = info.traffic
    if not traffic.connections_total:
        return ""
    words = [
        f"{_bytes(traffic.bytes_from_producer)} from the producer",
        f"{_bytes(traffic.bytes_from_consumer)} from the consumer",
        f"{traffic.connections_open} of {traffic.connections_total} connections open",
    ]
    if traffic.bytes_per_s:
        words.append(f"now {_bytes(traffic.bytes_per_s)}/s")
    return ", ".join(words)


def _bytes(count: int) -> str:
    """Show a count of bytes for people, in steps of a thousand."""
    size, unit = float(count), 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{count} B" if unit == 0 else f"{size:.3g} {_UNITS[unit]}"


def _line(gateway: str, info: SessionInfo) -> str:
    side = _SIDES.get(info.role, info.role)
    end = f"{info.expires_at.ToDatetime(tzinfo=UTC):%Y-%m-%d %H:%M}"
    where = ",".join(info.listeners)
    return f"{info.uid:<36}  {side}  {info.state:<10}  {gateway:<12}  {info.backend:<8}  {end}  {where}"


@click.command("list", cls=Command, example="s2uc list --gateway aps")
@click.option(
    "--gateway", "names", multiple=True, metavar="GATEWAY", shell_complete=gateways, help="Only there; repeat."
)
@click.option("--all", "everything", is_flag=True, help="Those that have ended, too.")
@pass_settings
def list_command(settings: Settings, names: tuple[str, ...], everything: bool) -> None:
    """Show your sessions at all gateways you know."""
    from s2uc.gateway import GatewayClient  # noqa: PLC0415
    from scistream.machine import State  # noqa: PLC0415

    known = chosen(settings, names)

    async def ask(gateway: KnownGateway) -> tuple[SessionInfo, ...]:
        async with GatewayClient(gateway.live(), settings.call_timeout()) as client:
            return await client.list()

    async def ask_all() -> list[Any]:
        return await asyncio.gather(*map(ask, known), return_exceptions=True)

    content, lines, failed = [], [], None
    for gateway, answer in zip(known, perform(ask_all()), strict=True):
        if isinstance(answer, ScistreamError):
            failed = failed or answer
            remark(f"s2uc: {answer}")
            continue
        if isinstance(answer, BaseException):
            raise answer
        found = [info for info in answer if everything or not State(info.state).ended]
        content += [_content(gateway.name, info) for info in found]
        lines += [_line(gateway.name, info) for info in found]
    settings.emit({"sessions": content}, "\n".join(lines))
    if not lines and not failed and not settings.json:
        settings.say("no sessions" if everything else "no running sessions; --all shows those that have ended, too")
    if failed:
        click.get_current_context().exit(failed.exit_status)


@click.command("status", cls=Command, example="s2uc status 2f1c...")
@click.argument("uid", type=UID, shell_complete=uids)
@pass_settings
def status_command(settings: Settings, uid: Uid) -> None:
    """Show one session, at both of its gateways. When one does not answer, show what the other says."""
    from s2uc import life  # noqa: PLC0415

    gateways = _gateways(settings, uid)
    answers = perform(life.survey(uid, gateways, settings.call_timeout()))
    failed = [answer for answer in answers if isinstance(answer, ScistreamError)]
    for error in failed:
        remark(f"s2uc: {error}")
    found = [
        (gateway.name, info)
        for gateway, info in zip(gateways, answers, strict=True)
        if info and not isinstance(info, ScistreamError)
    ]
    states = {info.state for _, info in found}
    sides = {_SIDES[info.role]: _content(name, info) for name, info in found}
    content = {
        "uid": uid,
        "state": states.pop() if len(states) == 1 else "/".join(side["state"] for side in sides.values()),
        "expires_at": min(side["expires_at"] for side in sides.values()),
        "producer": sides.get("producer"),
        "consumer": sides.get("consumer"),
    }
    lines = []
    for name, info in found:
        lines.append(_line(name, info))
        lines += [f"    {word} {text}" for word, text in _details(info)]
    settings.emit(content, "\n".join(lines))
    if failed:
        click.get_current_context().exit(failed[0].exit_status)


def _details(info: SessionInfo) -> list[tuple[str, str]]:
    details = [
        ("leads to", ", ".join(info.targets)),
        ("moved", _moved(info)),
        ("because", info.reason),
        ("TLS", f"{info.tls_version} {info.tls_cipher}".strip()),
        ("labels", ", ".join(f"{key}={value}" for key, value in sorted(info.labels.items()))),
    ]
    return [(word, text) for word, text in details if text]


@click.command("watch", cls=Command, example="s2uc watch 2f1c...")
@click.argument("uid", type=UID, required=False, shell_complete=uids)
@pass_settings
def watch_command(settings: Settings, uid: Uid | None) -> None:
    """Follow a session, or all of yours that there are now, until they have ended.

    A line for each event; with --json, an object a line. Exit status 1 when a session FAILED.
    """
    gateways = _gateways(settings, uid) if uid else [gateway.live() for gateway in chosen(settings, ())]
    states = perform(_watch_all(settings, gateways, uid))
    if "FAILED" in states:
        click.get_current_context().exit(1)


async def _watch_all(settings: Settings, gateways: Sequence[Gateway], uid: Uid | None) -> list[str]:
    """Follow at all gateways at once; gives the last states."""
    from s2uc.gateway import GatewayClient  # noqa: PLC0415
    from s2uc.life import together  # noqa: PLC0415
    from scistream.machine import State  # noqa: PLC0415

    async def follow(client: GatewayClient, uid: str) -> str:
        state = ""
        async with aclosing(client.watch(uid)) as events:
            async for event in events:
                state = event.session.state
                _show(settings, client.gateway.name, event)
        if not state or not State(state).ended:
            raise Unavailable(f"gateway {client.gateway.name}: it stopped reporting on session {uid}")
        return state

    async def follow_gateway(gateway: Gateway) -> list[str]:
        async with GatewayClient(gateway, settings.call_timeout()) as client:
            try:
                found = await client.list(uid or "")
            except NotFound:
                return []
            uids = [info.uid for info in found if uid or not State(info.state).ended]
            return await together(*(follow(client, one) for one in uids))

    seen = [state for states in await together(*map(follow_gateway, gateways)) for state in states]
    if uid and not seen:
        raise NotFound(f"session {uid} is not known at {' or '.join(gateway.name for gateway in gateways)}")
    return seen


def _show(settings: Settings, gateway: str, event: Any) -> None:
    from scistream.proto.scistream_pb2 import SessionEvent  # noqa: PLC0415

    kind = SessionEvent.Kind.Name(event.kind)
    at = event.at.ToDatetime(tzinfo=UTC)
    info = event.session
    if settings.json:
        content = _content(gateway, info)
        put(json.dumps({"event": kind, "at": at.isoformat(), "message": event.message, "session": content}))
        return
    news = event.message or (", ".join(info.prod_listeners) if kind == "PROD_LISTENERS" else info.reason)
    put(f"{at:%H:%M:%S.%f}  {info.uid}  {gateway:<12}  {_SIDES[info.role]}  {info.state:<10}  {news}".rstrip())


@click.command("renew", cls=Command, example="s2uc renew 2f1c... --lease 8h")
@click.argument("uid", type=UID, shell_complete=uids)
@click.option("--lease", type=DURATION, default=0, help="Its life from now, as 2h [default: the gateways' choice].")
@pass_settings
def renew_command(settings: Settings, uid: Uid, lease: int) -> None:
    """Make a session live longer, with new credentials; running streams notice nothing."""
    from s2uc import life  # noqa: PLC0415

    expires_at = perform(life.renew(uid, _gateways(settings, uid), lease, settings.call_timeout()))
    record = settings.config.find_session(uid)
    if record:
        settings.config.save_session(replace(record, expires_at=expires_at))
    settings.emit(
        {"uid": uid, "expires_at": expires_at.isoformat()},
        f"session {uid} lives until {expires_at:%Y-%m-%d %H:%M:%S} UTC",
    )


@click.command("release", cls=Command, example="s2uc release 2f1c...")
@click.argument("uid", type=UID, shell_complete=uids)
@pass_settings
def release_command(settings: Settings, uid: Uid) -> None:
    """End a session and give everything back, at both gateways."""
    from s2uc import life  # noqa: PLC0415

    gateways = _gateways(settings, uid)
    try:
        answers = perform(life.release(uid, gateways, settings.call_timeout()))
    except NotFound:
        settings.config.forget_session(uid)
        raise
    settings.config.forget_session(uid)
    done = [gateway.name for gateway, answer in zip(gateways, answers, strict=True) if answer]
    settings.emit(
        {"uid": uid, "state": "RELEASED", "gateways": done}, f"session {uid} released at {' and '.join(done)}"
    )
