"""`s2uc login`, `logout`, `check-auth`: the user's tokens."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from s2uc.commands.common import Command, Settings, chosen, pass_settings, perform, read_token
from s2uc.commands.completion import gateways
from s2uc.config import KnownGateway
from scistream.errors import InvalidArgument, ScistreamError


async def describe(gateway: KnownGateway, timeout: float) -> dict[str, Any]:
    """Ask a gateway what it is, and who the user is to it."""
    from s2uc.gateway import GatewayClient  # noqa: PLC0415

    async with GatewayClient(gateway.live(), timeout) as client:
        found = await client.describe()
    return {
        "name": found.name,
        "version": found.version,
        "user": found.user,
        "admin": found.admin,
        "backends": [backend.name for backend in found.backends if backend.available],
    }


def _ask(gateway: str) -> str:
    if not sys.stdin.isatty():
        raise InvalidArgument("there is no terminal to ask for the token; give it with --token-file")
    token = str(click.prompt(f"Token for {gateway}", hide_input=True, err=True)).strip()
    if not token:
        raise InvalidArgument("the token is empty")
    return token


@click.command("login", cls=Command, example="s2uc login aps --token-file aps.token")
@click.argument("gateway", shell_complete=gateways)
@click.option("--token-file", type=click.Path(path_type=Path, allow_dash=True), help="Read it there; - is stdin.")
@pass_settings
def login_command(settings: Settings, gateway: str, token_file: Path | None) -> None:
    """Keep your token for a gateway, after the gateway has taken it.

    Without --token-file it is asked for, and not shown.
    """
    known = settings.config.gateway(gateway)
    token = read_token(token_file) or _ask(gateway)
    found = perform(describe(replace(known, token=token), settings.call_timeout()))
    settings.config.set_token(gateway, token)
    settings.emit({"gateway": gateway, **found}, f"you are {found['user']} at gateway {gateway}")


@click.command("logout", cls=Command, example="s2uc logout aps")
@click.argument("gateway", shell_complete=gateways)
@pass_settings
def logout_command(settings: Settings, gateway: str) -> None:
    """Forget your token for a gateway. The gateway itself stays known."""
    settings.config.set_token(gateway, "")
    settings.emit({"gateway": gateway}, f"your token for gateway {gateway} is forgotten")


@click.command("check-auth", cls=Command, example="s2uc check-auth")
@click.argument("gateway", nargs=-1, shell_complete=gateways)
@pass_settings
def check_auth_command(settings: Settings, gateway: tuple[str, ...]) -> None:
    """Say who you are to each gateway, or to those named."""
    known = chosen(settings, gateway)

    async def ask_all() -> list[Any]:
        asking = (describe(one, settings.call_timeout()) for one in known)
        return list(await asyncio.gather(*asking, return_exceptions=True))

    content, lines, failed = [], [], None
    for one, answer in zip(known, perform(ask_all()), strict=True):
        if isinstance(answer, ScistreamError):
            failed = failed or answer
            content.append({"gateway": one.name, "error": str(answer)})
            lines.append(f"{one.name:<20} {answer}")
        elif isinstance(answer, BaseException):
            raise answer
        else:
            content.append({"gateway": one.name, **answer})
            rank = " (admin)" if answer["admin"] else ""
            lines.append(f"{one.name:<20} {answer['user']}{rank}; version {answer['version']}")
    settings.emit({"gateways": content}, "\n".join(lines))
    if failed:
        click.get_current_context().exit(failed.exit_status)
