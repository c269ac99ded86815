"""`s2uc watch`: sessions while they live. On a terminal a table that is drawn again, elsewhere a line for each event.

The table's numbers come from one `list` a second to each gateway: one call whatever the number of sessions, never
two at once, and none where nobody looks. A gateway that is slow or away holds up nothing: what it said last stays, and
its silence is told. The events come by the gateways' streams, which miss nothing in between.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from s2uc.commands.common import DURATION, UID, Command, Settings, chosen, pass_settings, perform, put, remark
from s2uc.commands.completion import uids
from s2uc.commands.looks import Column, clock, fitted, painted, size, sparkline, table, width
from s2uc.commands.screen import redrawable, screen
from s2uc.commands.sessions import gateways_of, tabulated
from s2uc.commands.views import COLUMNS, SIDES, content, row, why
from scistream.errors import DeadlineExceeded, NotFound, ScistreamError, Unavailable
from scistream.vocabulary import Role, Uid

if TYPE_CHECKING:
    from s2uc.gateway import Gateway, GatewayClient
    from scistream.proto.scistream_pb2 import SessionInfo

_PERIOD_S = 1.0
_ANSWER_S = 5.0  # how long a look may take before the gateway counts as away
_SAMPLES = 24
_OPEN = ("ACTIVE", "RECOVERING")
_UID_WIDTH = 14
_TABLE = (*COLUMNS, Column("RATE LATELY", 82))
_SHORT = tuple(replace(column, worth=1) if column.title in ("SINCE", "UNTIL") else column for column in _TABLE)


@click.command("watch", cls=Command, example="s2uc watch\ns2uc watch 2f1c... 77ab... --json")
@click.argument("uid", type=UID, nargs=-1, shell_complete=uids)
@click.option("--lines", is_flag=True, help="A line for each event, on a terminal, too.")
@click.option(
    "--every", type=DURATION, default=10, show_default="10s", help="Of lines, one about the traffic so often."
)
@pass_settings
def watch_command(settings: Settings, uid: tuple[Uid, ...], lines: bool, every: int) -> None:
    """Follow sessions, or all of yours that there are now, until they have ended.

    On a terminal a table with the rates of the last seconds, drawn again each second; otherwise a line for each event,
    and about the traffic now and then; with --json, an object for each event. A gateway may be restarted meanwhile.
    Exit status 1 when a session FAILED.
    """
    asked = {one: gateways_of(settings, one) for one in uid}
    gateways = {g.name: g for found in asked.values() for g in found} if uid else {}
    known = list(gateways.values()) or [gateway.live() for gateway in chosen(settings, ())]
    if settings.json or lines or not redrawable():
        states = perform(_follow_all(settings, known, frozenset(uid), 0 if settings.json else every))
    else:
        watched = _Watched(known, frozenset(uid), settings.call_timeout())
        try:
            states = perform(watched.show())
        finally:
            if (left := watched.lines()) and watched.seen:
                put("\n".join(left))
    if "FAILED" in states:
        click.get_current_context().exit(1)


@dataclass
class _Line:
    """A session at a gateway: as it was told last, and its rates."""

    info: SessionInfo
    rates: deque[int] = field(default_factory=lambda: deque([-1] * _SAMPLES, _SAMPLES))


class _Watched:
    """The sessions on the screen."""

    def __init__(self, gateways: Sequence[Gateway], wanted: Collection[Uid], patience_s: float) -> None:
        self.seen: dict[tuple[str, str], _Line] = {}  # by gateway and uid
        self._gateways, self._wanted = gateways, wanted
        self._patience_s = patience_s  # how long a gateway may be away that has sessions which others do not tell of
        self._away: dict[str, tuple[datetime, ScistreamError]] = {}  # since when, and why
        self._asked: set[str] = set()  # gateways that have answered once

    async def show(self) -> list[str]:
        """Draw the table each second until all sessions have ended; give their states."""
        from s2uc.life import unknown  # noqa: PLC0415

        looking = [asyncio.create_task(self._look(gateway)) for gateway in self._gateways]
        try:
            with screen() as draw:
                while not self._over():
                    draw(self.lines(lively=True))
                    done, _ = await asyncio.wait(looking, timeout=_PERIOD_S, return_when=asyncio.FIRST_EXCEPTION)
                    for task in done:
                        task.result()
        finally:
            for task in looking:
                task.cancel()
        if missing := [uid for uid in self._wanted if not any(uid == found for _, found in self.seen)]:
            raise unknown(missing[0], self._gateways)
        return [line.info.state for line in self.seen.values()]

    def _over(self) -> bool:
        """Tell whether nothing more is to be seen; raises what ends it before."""
        from scistream.machine import State  # noqa: PLC0415

        lost: ScistreamError | None = None
        for gateway in self._gateways:
            infos = [line.info for (name, _), line in self.seen.items() if name == gateway.name]
            if gateway.name in self._asked and all(State(info.state).ended for info in infos):
                continue
            since, error = self._away.get(gateway.name, (None, None))
            if since is None or (datetime.now(UTC) - since).total_seconds() < self._patience_s:
                return False
            lost = lost or error
        if lost is not None:
            raise lost
        return True

    async def _look(self, gateway: Gateway) -> None:
        from s2uc.gateway import GatewayClient  # noqa: PLC0415

        clock_ = asyncio.get_running_loop().time
        while True:
            async with GatewayClient(gateway, _ANSWER_S) as client:
                begin = clock_()
                try:
                    while True:
                        begin = clock_()
                        self._take(gateway.name, await _listed(client, self._wanted))
                        await asyncio.sleep(max(0.1, begin + _PERIOD_S - clock_()))
                except (Unavailable, DeadlineExceeded) as error:
                    self._away.setdefault(gateway.name, (datetime.now(UTC), error))
                    for (name, _), line in self.seen.items():
                        if name == gateway.name:
                            line.rates.append(-1)
                await asyncio.sleep(max(0.1, begin + _PERIOD_S - clock_()))

    def _take(self, gateway: str, infos: Sequence[SessionInfo]) -> None:
        """Take what a gateway says. What is new after its first word is not ours, unless it was asked for."""
        from scistream.machine import State  # noqa: PLC0415

        first = gateway not in self._asked
        self._asked.add(gateway)
        self._away.pop(gateway, None)
        for info in infos:
            key = gateway, info.uid
            wanted = info.uid in self._wanted if self._wanted else first and not State(info.state).ended
            if key in self.seen or wanted:
                line = self.seen.setdefault(key, _Line(info))
                line.info = info
                line.rates.append(info.traffic.bytes_per_s)
        told = {info.uid for info in infos}
        for name, uid in [key for key in self.seen if key[0] == gateway and key[1] not in told]:
            del self.seen[name, uid]  # it ended so long ago that the gateway has forgotten it

    def lines(self, lively: bool = False) -> list[str]:
        """Give the table; lively: with the rates of the last seconds, and the time."""
        room = width()
        found = sorted(self.seen.items(), key=lambda one: (one[0][1], one[1].info.role != Role.PROD))
        told = []
        if lively:
            told += [f"{datetime.now(UTC):%H:%M:%S} UTC   Ctrl-C ends this, not the sessions"[: room or None], ""]
            short = _shortened({uid for (_, uid), _ in found})
            cells = [
                [short[uid], *row(name, line.info)[1:], sparkline(line.rates, line.info.traffic.peak_bytes_per_s)]
                for (name, uid), line in found
            ]
            drawn = table(_SHORT, cells, room) if cells else ["no sessions yet"]
            told += drawn[:1]
            for text, (_, line) in zip(drawn[1:], found, strict=False):
                told.append(painted(text, line.info.state))
                if reason := why(line.info):
                    told += fitted(reason, room, "    ")
        elif found:
            told += tabulated([(name, line.info) for (name, _), line in found], room)
        for name, (since, error) in self._away.items():
            told += fitted(f"gateway {name} has not answered since {clock(since)} UTC: {error}; trying again", room)
        return told


def _shortened(uids: Collection[str]) -> dict[str, str]:
    """Give the beginnings of long uids, where these tell them apart."""
    short = {uid: uid if len(uid) <= _UID_WIDTH else f"{uid[: _UID_WIDTH - 2]}.." for uid in uids}
    return short if len(set(short.values())) == len(short) else {uid: uid for uid in uids}


async def _listed(client: GatewayClient, wanted: Collection[Uid]) -> list[SessionInfo]:
    """Ask for those that are wanted and known there, or for all."""
    if not wanted:
        return list(await client.list())

    async def ask(uid: Uid) -> tuple[SessionInfo, ...]:
        try:
            return await client.list(uid)
        except NotFound:
            return ()

    return [info for found in await asyncio.gather(*map(ask, wanted)) for info in found]


async def _follow_all(
    settings: Settings, gateways: Sequence[Gateway], wanted: Collection[Uid], every_s: int
) -> list[str]:
    """Follow the events at all gateways at once, a line for each, and tell of traffic; gives the last states."""
    from s2uc.gateway import GatewayClient  # noqa: PLC0415
    from s2uc.life import together, unknown  # noqa: PLC0415
    from scistream.machine import State  # noqa: PLC0415

    async def follow(client: GatewayClient, uid: str) -> str:
        state, away = "", False

        def lost() -> None:
            nonlocal away
            away = True
            remark(f"s2uc: gateway {client.gateway} does not answer; trying again")

        async with aclosing(client.watch(uid, lost)) as events:
            async for event in events:
                if away:
                    away = False
                    remark(f"s2uc: gateway {client.gateway} answers again")
                state = event.session.state
                _show(settings, client.gateway.name, event)
        if not state or not State(state).ended:
            raise Unavailable(f"gateway {client.gateway.name}: it stopped reporting on session {uid}")
        return state

    async def follow_gateway(gateway: Gateway) -> list[tuple[str, str]]:
        async with GatewayClient(gateway, settings.call_timeout()) as client:
            infos = await _listed(client, wanted)
            uids = [info.uid for info in infos if wanted or not State(info.state).ended]
            following = asyncio.ensure_future(together(*(follow(client, one) for one in uids)))
            try:
                while not (await asyncio.wait({following}, timeout=every_s or None))[0]:
                    await _tell_traffic(client, uids)
                return list(zip(uids, following.result(), strict=True))
            finally:
                following.cancel()
                await asyncio.wait({following})

    seen = [one for found in await together(*map(follow_gateway, gateways)) for one in found]
    if missing := sorted(set(wanted) - {uid for uid, _ in seen}):
        raise unknown(missing[0], gateways)
    return [state for _, state in seen]


async def _tell_traffic(client: GatewayClient, uids: Collection[str]) -> None:
    """Print a line for each session that is open, with what one `list` says of it."""
    try:
        infos = await client.list()
    except ScistreamError:
        return  # who follows the events says so
    for info in infos:
        if info.uid in uids and info.state in _OPEN and info.HasField("traffic"):
            traffic = info.traffic
            told = f"{traffic.connections_open} open, {size(traffic.bytes_per_s)}/s"
            moved = ((traffic.bytes_from_producer, "producer"), (traffic.bytes_from_consumer, "consumer"))
            told += "".join(f", {size(count)} from the {side}" for count, side in moved)
            _line(datetime.now(UTC), client.gateway.name, info, told)


def _line(at: datetime, gateway: str, info: SessionInfo, news: str) -> None:
    put(f"{at:%H:%M:%S.%f}  {info.uid}  {gateway:<12}  {SIDES[info.role]}  {info.state:<10}  {news}".rstrip())


def _show(settings: Settings, gateway: str, event: Any) -> None:
    from scistream.proto.scistream_pb2 import SessionEvent  # noqa: PLC0415

    kind = SessionEvent.Kind.Name(event.kind)
    at = event.at.ToDatetime(tzinfo=UTC)
    info = event.session
    if settings.json:
        told = content(gateway, info)
        put(json.dumps({"event": kind, "at": at.isoformat(), "message": event.message, "session": told}))
        return
    news = event.message or (", ".join(info.prod_listeners) if kind == "PROD_LISTENERS" else info.reason)
    _line(at, gateway, info, news)
