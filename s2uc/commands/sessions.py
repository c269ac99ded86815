"""`s2uc list`, `status`, `renew`, `release`: sessions that are there."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from s2uc.commands.common import DURATION, UID, Command, Settings, chosen, pass_settings, perform, remark
from s2uc.commands.completion import gateways, uids
from s2uc.commands.looks import facts, fitted, painted, table, width
from s2uc.commands.views import COLUMNS, SIDES, content, row, sides, why
from scistream.errors import NotFound, ScistreamError
from scistream.vocabulary import Role, Uid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from s2uc.config import KnownGateway
    from s2uc.gateway import Gateway
    from scistream.proto.scistream_pb2 import SessionInfo


_NARROW = 120  # columns of text, in which not even what matters most fits beside a long uid
_LONG_UID = 14


def gateways_of(settings: Settings, uid: Uid) -> list[Gateway]:
    """Give the gateways of a session that was asked for from here; of another, all that are known."""
    record = settings.config.find_session(uid)
    names = tuple(dict.fromkeys(record.gateways[role] for role in Role if role in record.gateways)) if record else ()
    return [gateway.live() for gateway in chosen(settings, names)]


def tabulated(found: Sequence[tuple[str, SessionInfo]], room: int) -> list[str]:
    """Give sessions at gateways as a table, the oldest first, with the reason below each that has one.

    Where it is narrow, long uids would cost the columns that one looks for: each is a line above its session then.
    """
    began = {info.uid: info.created_at.seconds for _, info in found}
    found = sorted(found, key=lambda one: (began[one[1].uid], one[1].uid, one[1].role != Role.PROD))
    above = 0 < room < _NARROW and max(map(len, began)) > _LONG_UID
    cells = [row(gateway, info) for gateway, info in found]
    first, indent = (1, "  ") if above else (0, "")
    lines = table(COLUMNS[first:], [cell[first:] for cell in cells], room and room - len(indent))
    told = [indent + lines[0]]
    for i, (_, info) in enumerate(found):
        if above and (not i or found[i - 1][1].uid != info.uid):
            told.append(info.uid)
        told.append(painted(indent + lines[i + 1], info.state))
        if reason := why(info):
            told += fitted(reason, room, "    ")
    return told


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

    shown: list[tuple[str, SessionInfo]] = []
    failed = None
    for gateway, answer in zip(known, perform(ask_all()), strict=True):
        if isinstance(answer, ScistreamError):
            failed = failed or answer
            remark(f"s2uc: {answer}")
            continue
        if isinstance(answer, BaseException):
            raise answer
        shown += [(gateway.name, info) for info in answer if everything or not State(info.state).ended]
    text = "\n".join(tabulated(shown, width())) if shown and not settings.json else ""
    settings.emit({"sessions": [content(name, info) for name, info in shown]}, text)
    if not shown and not failed and not settings.json:
        settings.say("no sessions" if everything else "no running sessions; --all shows those that have ended, too")
    if failed:
        click.get_current_context().exit(failed.exit_status)


@click.command("status", cls=Command, example="s2uc status 2f1c...")
@click.argument("uid", type=UID, shell_complete=uids)
@pass_settings
def status_command(settings: Settings, uid: Uid) -> None:
    """Show one session, at both of its gateways. When one does not answer, show what the other says."""
    from s2uc import life  # noqa: PLC0415
    from scistream.machine import State  # noqa: PLC0415

    asked = gateways_of(settings, uid)
    answers = perform(life.survey(uid, asked, settings.call_timeout()))
    failed = [answer for answer in answers if isinstance(answer, ScistreamError)]
    for error in failed:
        remark(f"s2uc: {error}")
    found = [
        (gateway.name, info)
        for gateway, info in zip(asked, answers, strict=True)
        if info and not isinstance(info, ScistreamError)
    ]
    found.sort(key=lambda one: one[1].role != Role.PROD)
    states = list(dict.fromkeys(info.state for _, info in found))
    both = {SIDES[info.role]: content(name, info) for name, info in found}
    answer = {
        "uid": uid,
        "state": states[0] if len(states) == 1 else "/".join(side["state"] for side in both.values()),
        "expires_at": min(side["expires_at"] for side in both.values()),
        "producer": both.get("producer"),
        "consumer": both.get("consumer"),
    }
    heads = [SIDES[info.role] for _, info in found]
    lines = [f"session {uid} is {painted('/'.join(states), states[0])}", *facts(heads, sides(found), width())]
    settings.emit(answer, "\n".join(lines))
    ended = [name for name, info in found if State(info.state).ended]
    held = [name for name, _ in found if name not in ended]
    if ended and held:
        settings.say(f"it has ended at {ended[0]}; give back what {held[0]} holds: s2uc release {uid}")
    if failed:
        click.get_current_context().exit(failed[0].exit_status)


@click.command("renew", cls=Command, example="s2uc renew 2f1c... --lease 8h")
@click.argument("uid", type=UID, shell_complete=uids)
@click.option("--lease", type=DURATION, default=0, help="Its life from now, as 2h [default: the gateways' choice].")
@pass_settings
def renew_command(settings: Settings, uid: Uid, lease: int) -> None:
    """Make a session live longer, with new credentials; running streams notice nothing."""
    from s2uc import life  # noqa: PLC0415

    expires_at = perform(life.renew(uid, gateways_of(settings, uid), lease, settings.call_timeout()))
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

    gateways = gateways_of(settings, uid)
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
