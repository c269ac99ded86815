"""`s2uc verify`: is every leg of a session as promised."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from s2uc.commands.common import UID, Command, Settings, pass_settings, perform
from s2uc.commands.completion import uids
from s2uc.commands.looks import Column, fitted, painted, span, table, width
from s2uc.commands.sessions import gateways_of
from scistream.vocabulary import Uid

if TYPE_CHECKING:
    from s2uc.verification import Leg

_COLUMNS = (
    Column("LEG", 90),
    Column("GATEWAY", 60),
    Column("ADDRESS", 80),
    Column("FOUND", 100),
    Column("TOOK", 40, right=True),
    Column("TLS", 50),
    Column("KNOWN BY", 30),
)
_WORDS = {
    ("producer", "listener"): "gateway listens (WAN)",
    ("consumer", "listener"): "gateway listens (LAN)",
    ("producer", "application"): "producer's application",
    ("consumer", "handshake"): "TLS to other gateway",
    ("consumer", "stranger"): "strangers are refused",
    ("consumer", "plain"): "UDP to other gateway",
}


@click.command("verify", cls=Command, example="s2uc verify 2f1c...\ns2uc verify 2f1c... --passive --json")
@click.argument("uid", type=UID, shell_complete=uids)
@click.option("--passive", is_flag=True, help="Open nothing that the producer's application would see.")
@pass_settings
def verify_command(settings: Settings, uid: Uid, passive: bool) -> None:
    """Try each leg of an open session, from where it begins: can it be reached, and is TLS as promised.

    Running streams are not touched. Where none runs, the producer's application sees connections that end at once,
    unless --passive. Exit: 0 when all is as promised, 1 when something is not.
    """
    from s2uc.verification import verify  # noqa: PLC0415 - gRPC and X.509, which help needs not

    legs = perform(verify(uid, gateways_of(settings, uid), passive, settings.call_timeout()))
    faults = sum(not leg.ok for leg in legs)
    content = {"uid": uid, "ok": not faults, "legs": [leg.as_dict() for leg in legs]}
    settings.emit(content, "" if settings.json else "\n".join(_lines(legs, width())))
    if not settings.json:
        settings.say(
            f"{faults} of {len(legs)} legs are not as promised" if faults else f"all {len(legs)} legs are good"
        )
        if any(leg.kind == "plain" for leg in legs):
            settings.say(
                "it is of udp: nothing between the gateways is encrypted, and nothing shows whether datagrams arrive, "
                "or who sends them"
            )
    if faults:
        click.get_current_context().exit(1)


def _lines(legs: tuple[Leg, ...], room: int) -> list[str]:
    rows = table(_COLUMNS, [_row(leg) for leg in legs], room)
    lines = rows[:1]
    for line, leg in zip(rows[1:], legs, strict=True):
        lines.append(painted(line, "" if leg.ok else "FAILED"))
        if leg.fault:
            lines += fitted(leg.fault, room, "    ")
    shown = {leg.certificate: leg for leg in legs if leg.certificate}
    for leg in shown.values():
        if (peer := leg.peer()) is not None:
            lines += fitted(f"{leg.address} shows {peer['subject']}, named {', '.join(peer['names'])}", room)
            lines += fitted(f"valid {peer['not_before']} to {peer['not_after']}", room, "    ")
            lines += fitted(f"SHA-256 {peer['sha256']}", room, "    ")
    return lines


def _row(leg: Leg) -> list[str]:
    return [
        _WORDS.get((leg.side, leg.kind), leg.kind),
        leg.gateway,
        leg.address,
        "FAULT" if leg.fault else "UNENCRYPTED" if leg.kind == "plain" else "ok",
        span(leg.elapsed_us),
        f"{leg.tls_version} {leg.tls_cipher}".strip(),
        leg.note,
    ]
