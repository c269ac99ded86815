"""`s2uc ping`: how far away gateways are, and how they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from s2uc.commands.common import Command, Settings, pass_settings
from s2uc.commands.completion import gateways
from s2uc.commands.each import ask_each
from scistream.errors import ScistreamError

if TYPE_CHECKING:
    from s2uc.ping import Ping


@click.command("ping", cls=Command, example="s2uc ping aps\ns2uc ping --count 20 --json")
@click.argument("gateway", nargs=-1, shell_complete=gateways)
@click.option("--count", type=click.IntRange(1, 1000), default=5, show_default=True, help="Calls to each.")
@pass_settings
def ping_command(settings: Settings, gateway: tuple[str, ...], count: int) -> None:
    """Measure the way to each gateway, or to those named, and say how the gateway is.

    Nothing is opened there. Exit: 0 when all answer; else as the first that does not.
    """
    from s2uc.ping import ping  # noqa: PLC0415 - gRPC, which help needs not

    timeout = settings.call_timeout(10)
    ask_each(settings, gateway, lambda one: ping(one, count, timeout), _show)


def _show(name: str, answer: Ping | ScistreamError) -> str:
    return f"{name}: {answer}" if isinstance(answer, ScistreamError) else _words(answer)


def _words(found: Ping) -> str:
    told = found.as_dict()
    call, tls = told["call_ms"], told["tls"]
    return "\n".join(
        [
            f"{told['gateway']}: {told['name']} at {told['address']} answers; s2cs {told['version']}",
            f"  connect {told['connect_ms']} ms, TLS handshake {told['handshake_ms']} ms, "
            f"call {call['median']} ms ({call['min']} to {call['max']}, {told['calls']} calls)",
            *(f"  {address}: {fault or 'serves, too'}" for address, fault in told["others"].items()),
            f"  {tls['version']} {tls['cipher']}, certificate until {found.certificate_until:%Y-%m-%d}",
            f"  you are {told['user']}; {told['free_ports']} ports free",
            *([f"  {told['unready']}"] if told["unready"] else []),
            *(f"  {name} {state}" for name, state in told["backends"].items()),
        ]
    )
