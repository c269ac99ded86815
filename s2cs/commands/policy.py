"""`s2cs policy`: who may what, explained."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import click

from s2cs.commands.common import CONTEXT, config_option, load, opened
from scistream.errors import PermissionDenied


@click.group(context_settings=CONTEXT, epilog="Example: s2cs policy test alice --target 10.1.7.3:5000")
def policy() -> None:
    """Who may what, by the rules of the settings."""


@policy.command(context_settings=CONTEXT, short_help="Say whether somebody may do something, and why.")
@click.argument("user")
@click.option("--group", "groups", multiple=True, metavar="G", help="A group, beside those known here; repeat.")
@click.option("--target", "targets", multiple=True, metavar="H:P", help="An application to lead to; repeat.")
@click.option("--peer", "peers", multiple=True, metavar="H:P", help="Another gateway to lead to; repeat.")
@click.option("--num-conn", default=1, show_default=True, metavar="N", help="Connections of a session.")
@click.option("--rate", default="0", metavar="R", help="Its rate, as 10Gb/s [default: no limit].")
@click.option("--lease", default="", metavar="T", help="Its lease, as 8h [default: the usual one].")
@click.option("--protocol", default="tcp", metavar="P", help="tcp, or udp, which goes in plain [default: tcp].")
@click.option("--backend", default="", metavar="B", help="Its proxy [default: the usual one].")
@config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def test(
    user: str,
    groups: tuple[str, ...],
    targets: tuple[str, ...],
    peers: tuple[str, ...],
    num_conn: int,
    rate: str,
    lease: str,
    protocol: str,
    backend: str,
    file: Path | None,
    as_json: bool,
) -> None:
    """Say whether USER may open a session and lead it there, by which line of the settings, and why.

    What USER has open now counts. Exit status: 0 all of it is allowed, 3 something is refused. The settings are
    those of the file; a running gateway has them since its last reload.

    Example: s2cs policy test alice --group tomo --target 10.1.7.3:5000 --rate 10Gb/s
    """
    from s2cs.policy.decision import Open, Use, used  # noqa: PLC0415
    from s2cs.policy.explain import Explainer  # noqa: PLC0415
    from scistream.machine import Owner  # noqa: PLC0415
    from scistream.vocabulary import Rate, Role, Transport, parse_duration, parse_endpoints  # noqa: PLC0415

    settings = load(file)
    explainer = Explainer(settings, file)
    with opened(settings) as store:
        known = next((each for each in store.users.all() if each.name == user), None)
        running = [s for s in store.sessions() if known and s.owner.id == known.id and not s.state.ended]
    whom = Owner(known.id if known else "", user, frozenset(groups) | (known.groups if known else frozenset()))
    use: Use = used(running)
    asked = Open(num_conn, Rate.parse(rate), parse_duration(lease) if lease else 0, backend, use)
    answers = [explainer.opening(whom, asked)]
    udp = Transport.parse(protocol) is Transport.UDP
    if udp:
        answers += explainer.datagrams(whom, asked)
    for role, endpoints in ((Role.PROD, targets), (Role.CONS, peers)):
        answers += asyncio.run(explainer.leading(whom, role, parse_endpoints(endpoints), udp))
    allowed = all(answer.decision.allowed for answer in answers)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "user": user,
                    "known": known is not None,
                    "groups": sorted(whom.groups),
                    "rule": explainer.rule(whom),
                    "sessions": use.sessions,
                    "allowed": allowed,
                    "decisions": [
                        {
                            "asked": answer.asked,
                            "allowed": answer.decision.allowed,
                            "reason": answer.decision.reason,
                            "rule": str(answer.decision.rule),
                            "source": answer.source,
                        }
                        for answer in answers
                    ],
                }
            )
        )
    else:
        who = "" if known else " (not known here: judged by the name, and by what --group says)"
        groups_of = ", ".join(sorted(whom.groups)) or "none"
        click.echo(f"user     {user}{who}, groups {groups_of}, {use.sessions} sessions now")
        click.echo(f"rule     {explainer.rule(whom)}")
        for answer in answers:
            word = "allowed" if answer.decision.allowed else "REFUSED"
            click.echo(f"{word}  {answer.asked}")
            click.echo(f"         {answer.decision.reason}")
            click.echo(f"         {answer.decision.rule}" + (f", {answer.source}" if answer.source else ""))
    if not allowed:
        sys.exit(PermissionDenied.exit_status)
