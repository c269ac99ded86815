"""`s2uc gateway`: the facilities a user knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from s2uc.commands.common import ENDPOINTS, FILE, Group, Settings, pass_settings, perform, read_ca, read_token
from s2uc.commands.completion import gateways
from s2uc.config import KnownGateway
from scistream.errors import ScistreamError, Unauthenticated
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
@click.argument("addresses", type=ENDPOINTS)
@click.option(
    "--ca", type=FILE, help="The CA certificate that the gateway's own comes from [default: this computer's]."
)
@click.option("--token-file", type=click.Path(path_type=Path, allow_dash=True), help="Your token there; - is stdin.")
@click.option("--cert", type=FILE, help="Your certificate, where the gateway takes certificates.")
@click.option("--key", type=FILE, help="Its private key, not encrypted.")
@click.option("--no-check", is_flag=True, help="Keep it without asking the gateway.")
@pass_settings
def add(
    settings: Settings,
    name: str,
    addresses: tuple[Endpoint, ...],
    ca: Path | None,
    token_file: Path | None,
    cert: Path | None,
    key: Path | None,
    no_check: bool,
) -> None:
    """Make a gateway known, or change what is known of it. It is asked first whether all fits.

    A facility with several control servers has several addresses: HOST:PORT,HOST:PORT. Any that answers is used.

    What was known of it before, your token too, is forgotten. Without --token-file or --cert, s2uc login says later
    who you are. --cert and --key are read again at each use.
    """
    if (cert is None) != (key is None):
        raise click.UsageError("--cert and --key go together")
    certificate, private = (str(path.absolute()) if path else "" for path in (cert, key))
    first, *others = addresses
    known = (name, first, read_ca(ca), read_token(token_file), certificate, private)
    gateway = KnownGateway(*known, others=tuple(others))
    address = gateway.address
    before = _credentials(settings, name)
    found = perform(_add(settings, gateway, no_check))
    if not gateway.credentials:
        what = f"your {before} there is forgotten" if before else "who you are there is not known yet"
        settings.say(f"{what}; run: s2uc login {name}")
    who = f"; you are {found['user']} there" if found else ""
    settings.emit({"gateway": name, "address": address, **found}, f"gateway {name} at {address} is known now{who}")


def _credentials(settings: Settings, name: str) -> str:
    """Say by what the user has been known at a gateway until now, "" when by nothing."""
    try:
        return settings.config.gateway(name).credentials
    except ScistreamError:  # not known, or not to be read: it is written anew
        return ""


async def _add(settings: Settings, gateway: KnownGateway, no_check: bool) -> dict[str, Any]:
    live, found = gateway.live(), {}
    if not no_check:
        from s2uc.login.who import ask_who  # noqa: PLC0415

        try:
            found = (await ask_who(live, settings.call_timeout())).as_dict()
        except Unauthenticated:  # it is the right gateway; to nobody it says no more
            if gateway.credentials:
                raise
    await _end_login(settings, gateway.name)
    settings.config.save_gateway(gateway)
    return found


async def _end_login(settings: Settings, name: str) -> None:
    """Revoke what a login has left, if that can be done; it is forgotten in any case."""
    if not settings.config.knows_login(name):
        return
    from s2uc.login import aio  # noqa: PLC0415

    try:
        await aio.log_out(settings.config, name)
    except ScistreamError as error:
        settings.say(f"your login at gateway {name} is forgotten, but not revoked: {error}")
        await aio.log_out(settings.config, name, revoke=False)


@gateway_command.command("list", example="s2uc gateway list")
@pass_settings
def list_gateways(settings: Settings) -> None:
    """Show the gateways you know."""
    known = settings.config.gateways()
    content = [{"gateway": g.name, "address": g.address, "credentials": g.credentials} for g in known]
    lines = [f"{g.name:<20} {g.address:<40} {g.credentials or 'no token'}".rstrip() for g in known]
    settings.emit({"gateways": content}, "\n".join(lines))
    if not known:
        settings.say("no gateway is known yet; run: s2uc gateway add NAME HOST:PORT")


@gateway_command.command("remove", example="s2uc gateway remove aps")
@click.argument("name", shell_complete=gateways)
@pass_settings
def remove(settings: Settings, name: str) -> None:
    """Forget a gateway and your token there; a login is revoked, if its issuer can be asked."""
    perform(_end_login(settings, name))
    settings.config.forget_gateway(name)
    settings.emit({"gateway": name}, f"gateway {name} is forgotten")
