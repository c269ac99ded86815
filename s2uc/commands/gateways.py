"""`s2uc gateway`: the facilities a user knows."""

from __future__ import annotations

from pathlib import Path

import click

from s2uc.commands.common import ENDPOINT, FILE, Group, Settings, pass_settings, perform, read_ca, read_token
from s2uc.commands.completion import gateways
from s2uc.commands.tokens import describe
from s2uc.config import KnownGateway
from scistream.errors import Unauthenticated
from scistream.vocabulary import Endpoint


@click.group(
    "gateway", cls=Group, example="s2uc gateway add aps aps.example.org:5000 --ca aps-ca.crt --token-file aps.token"
)
def gateway_command() -> None:
    """The facilities you know: add, list, remove."""


@gateway_command.command(
    "add", example="s2uc gateway add aps aps.example.org:5000 --ca aps-ca.crt --token-file aps.token"
)
@click.argument("name")
@click.argument("address", type=ENDPOINT)
@click.option(
    "--ca", type=FILE, help="The CA certificate that the gateway's own comes from [default: this computer's]."
)
@click.option("--token-file", type=click.Path(path_type=Path, allow_dash=True), help="Your token there; - is stdin.")
@click.option("--no-check", is_flag=True, help="Keep it without asking the gateway.")
@pass_settings
def add(
    settings: Settings, name: str, address: Endpoint, ca: Path | None, token_file: Path | None, no_check: bool
) -> None:
    """Make a gateway known, or change what is known of it. It is asked first whether all fits.

    Without --token-file, s2uc login adds your token later.
    """
    gateway = KnownGateway(name, address, read_ca(ca), read_token(token_file))
    gateway.live()
    found = {}
    if not no_check:
        try:
            found = perform(describe(gateway, settings.call_timeout()))
        except Unauthenticated:  # it is the right gateway; without a token it says no more
            if gateway.token:
                raise
    settings.config.save_gateway(gateway)
    who = f"; you are {found['user']} there" if found else ""
    if not gateway.token:
        settings.say(f"your token there is not known yet; run: s2uc login {name}")
    settings.emit({"gateway": name, "address": str(address), **found}, f"gateway {name} at {address} is known now{who}")


@gateway_command.command("list", example="s2uc gateway list")
@pass_settings
def list_gateways(settings: Settings) -> None:
    """Show the gateways you know."""
    known = settings.config.gateways()
    content = [{"gateway": g.name, "address": str(g.endpoint), "token": bool(g.token)} for g in known]
    lines = [f"{g.name:<20} {g.endpoint!s:<40} {'' if g.token else 'no token'}".rstrip() for g in known]
    settings.emit({"gateways": content}, "\n".join(lines))
    if not known:
        settings.say("no gateway is known yet; run: s2uc gateway add NAME HOST:PORT")


@gateway_command.command("remove", example="s2uc gateway remove aps")
@click.argument("name", shell_complete=gateways)
@pass_settings
def remove(settings: Settings, name: str) -> None:
    """Forget a gateway and your token there."""
    settings.config.forget_gateway(name)
    settings.emit({"gateway": name}, f"gateway {name} is forgotten")
