"""`s2uc logs`: what became of a session, and what its proxies printed, at both gateways."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC
from typing import TYPE_CHECKING, Any

import click

from s2uc.commands.common import UID, Command, Settings, chosen, pass_settings, perform, put, remark
from s2uc.commands.completion import gateways, uids
from s2uc.commands.looks import painted
from s2uc.commands.sessions import gateways_of
from scistream.errors import DeadlineExceeded, NotFound, ScistreamError, Unavailable
from scistream.vocabulary import Uid

if TYPE_CHECKING:
    from s2uc.gateway import Gateway
    from scistream.proto.scistream_pb2 import SessionLog

_PERIOD_S = 1.0  # between looks when they are followed


@click.command("logs", cls=Command, example="s2uc logs 2f1c...\ns2uc logs 2f1c... --gateway aps --follow")
@click.argument("uid", type=UID, shell_complete=uids)
@click.option(
    "--gateway", "names", multiple=True, metavar="GATEWAY", shell_complete=gateways, help="Only there; repeat."
)
@click.option(
    "--lines", type=click.IntRange(0, 1_000_000), default=50, show_default=True, help="Of the proxies' last lines."
)
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until the session has ended.")
@pass_settings
def logs_command(settings: Settings, uid: Uid, names: tuple[str, ...], lines: int, follow: bool) -> None:
    """Show each state that a session came to, when and why, and what its proxies printed last.

    Of a session that has ended, too, for as long as `s2uc status` knows it. With --follow and --json, an object a line.
    """
    asked = [gateway.live() for gateway in chosen(settings, names)] if names else gateways_of(settings, uid)
    told = _Told(settings, uid, lines)
    failed = perform(told.follow(asked) if follow else told.once(asked))
    if failed:
        click.get_current_context().exit(failed.exit_status)


class _Told:
    """What was shown, so that nothing is shown twice."""

    def __init__(self, settings: Settings, uid: Uid, lines: int) -> None:
        self._settings, self._uid, self._lines = settings, uid, lines

    async def once(self, asked: list[Gateway]) -> ScistreamError | None:
        """Show what there is; give the error of a gateway that did not answer where another did."""
        from s2uc.life import unknown  # noqa: PLC0415

        answers = await asyncio.gather(*map(self._ask, asked))
        errors = [answer for answer in answers if isinstance(answer, ScistreamError)]
        found = [(g.name, a) for g, a in zip(asked, answers, strict=True) if a and not isinstance(a, ScistreamError)]
        if not found:
            raise errors[0] if errors else unknown(self._uid, asked)
        if self._settings.json:
            put(json.dumps({"uid": self._uid, "gateways": [self._content(*one) for one in found]}))
        else:
            for name, log in found:
                self._show(name, log, 0, 0)
        for error in errors:
            remark(f"s2uc: {error}")
        return errors[0] if errors else None

    async def follow(self, asked: list[Gateway]) -> ScistreamError | None:
        """Show what there is and what comes, until the session has ended wherever it is known."""
        from s2uc.life import unknown  # noqa: PLC0415

        answers = await asyncio.gather(*map(self._follow_at, asked))
        failed = next((answer for answer in answers if isinstance(answer, ScistreamError)), None)
        if True not in answers:
            raise failed or unknown(self._uid, asked)
        return failed

    async def _follow_at(self, gateway: Gateway) -> bool | ScistreamError:
        """Tell whether the session was known there, or why that is not known."""
        from s2uc.gateway import GatewayClient  # noqa: PLC0415
        from scistream.machine import State  # noqa: PLC0415

        since, printed = 0, 0
        away = known = False
        async with GatewayClient(gateway, self._settings.call_timeout()) as client:
            while True:
                try:
                    log = await client.logs(self._uid, 0 if known else self._lines or 1)
                except NotFound:
                    return known
                except ScistreamError as error:
                    if not known:
                        remark(f"s2uc: {error}")
                        return error
                    if not isinstance(error, Unavailable | DeadlineExceeded):
                        raise
                    if not away:
                        remark(f"s2uc: {error}; trying again")
                    away = True
                else:
                    if away:
                        remark(f"s2uc: gateway {gateway} answers again")
                    away = False
                    if not known and not self._lines:
                        printed = log.printed
                    if log.printed < printed:  # its count began anew
                        printed = max(0, log.printed - len(log.lines))
                    since = self._show(gateway.name, log, since, printed)
                    known, printed = True, log.printed
                    if log.changes and State(log.changes[-1].state).ended:
                        return True
                await asyncio.sleep(_PERIOD_S)

    async def _ask(self, gateway: Gateway) -> SessionLog | ScistreamError | None:
        from s2uc.gateway import GatewayClient  # noqa: PLC0415

        try:
            async with GatewayClient(gateway, self._settings.call_timeout()) as client:
                return await client.logs(self._uid, self._lines or 1)
        except NotFound:
            return None
        except ScistreamError as error:
            return error

    def _show(self, gateway: str, log: SessionLog, since: int, printed: int) -> int:
        """Print what is new since a time and so many lines; give the time of the last change, in microseconds."""
        for change in log.changes:
            if change.at.ToMicroseconds() <= since:
                continue
            at = change.at.ToDatetime(tzinfo=UTC)
            if self._settings.json:
                put(json.dumps({"gateway": gateway, "role": log.role, **_change(change)}))
            else:
                put(
                    painted(
                        f"{gateway}  {at:%Y-%m-%d %H:%M:%S}  {change.state:<10}  {change.reason}".rstrip(), bold=True
                    )
                )
        new = min(len(log.lines), log.printed - printed)
        missed = log.printed - printed - new
        if printed and missed > 0 and not self._settings.json:
            put(f"{gateway}  ... {missed} lines more")
        for line in log.lines[len(log.lines) - new :] if self._lines or printed else ():
            put(json.dumps({"gateway": gateway, "line": line}) if self._settings.json else f"{gateway}  {line}")
        return max((change.at.ToMicroseconds() for change in log.changes), default=since)

    def _content(self, name: str, log: SessionLog) -> dict[str, Any]:
        return {
            "gateway": name,
            "role": log.role,
            "backend": log.backend,
            "changes": [_change(change) for change in log.changes],
            "lines": list(log.lines) if self._lines else [],
            "printed": log.printed,
        }


def _change(change: Any) -> dict[str, str]:
    return {"at": change.at.ToDatetime(tzinfo=UTC).isoformat(), "state": change.state, "reason": change.reason}
