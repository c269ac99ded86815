"""`s2uc login`, `logout`, `check-auth`: who the user is at the gateways."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from s2uc.commands.common import Command, Settings, pass_settings, perform, read_token, remark
from s2uc.commands.completion import gateways
from s2uc.commands.each import ask_each
from scistream.errors import InvalidArgument, ScistreamError

if TYPE_CHECKING:
    from s2uc.login import Who, Wish

_STORES = click.Choice(["file", "keyring"])
_UNDONE = "it cannot be taken back from here, and is good until it ends or your gateway's operator revokes it"


def _ask(gateway: str) -> str:
    if not sys.stdin.isatty():
        raise InvalidArgument("there is no terminal to ask for the token; give it with --token-file")
    token = str(click.prompt(f"Token for {gateway}", hide_input=True, err=True)).strip()
    if not token:
        raise InvalidArgument("the token is empty")
    return token


@click.command(
    "login",
    cls=Command,
    example="s2uc login aps\ns2uc login aps --device\ns2uc login aps --token-file aps.token",
)
@click.argument("gateway", shell_complete=gateways)
@click.option("--token-file", type=click.Path(path_type=Path, allow_dash=True), help="Read it there; - is stdin.")
@click.option("--no-browser", is_flag=True, help="Show the page's address; a browser on this computer has to open it.")
@click.option("--device", is_flag=True, help="Show a code to type on any device [default: where no browser is].")
@click.option("--method", default="", metavar="NAME", help="Which of the gateway's ways to log in.")
@click.option("--issuer", default="", metavar="URL", help="Log in there [default: as the gateway says].")
@click.option("--client-id", default="", metavar="ID", help="What the issuer calls s2uc [default: the same].")
@click.option("--scope", multiple=True, metavar="SCOPE", help="Ask for it; may be repeated [default: the same].")
@click.option("--audience", default="", metavar="NAME", help="Who the token is for [default: the same].")
@click.option("--store", type=_STORES, help="Where tokens are kept [default: $SCISTREAM_TOKEN_STORE, or file].")
@pass_settings
def login_command(
    settings: Settings,
    gateway: str,
    token_file: Path | None,
    no_browser: bool,
    device: bool,
    store: str | None,
    scope: tuple[str, ...],
    **wanted: str,
) -> None:
    """Log in at a gateway, by its issuer or with a token from its operator.

    Where the gateway names an issuer, a browser opens there; without one a code is shown to type on any device. The
    tokens are renewed by themselves. With --token-file, or where there is no issuer, a token is kept.
    """
    from s2uc.login import Wish  # noqa: PLC0415

    if device and no_browser:
        raise click.UsageError("--device and --no-browser are two ways; give one")
    if token_file and (device or no_browser or scope or any(wanted.values())):
        raise click.UsageError("--token-file goes with none of the options of an issuer")
    wish = Wish(
        scopes=tuple(part for text in scope for part in text.split()),
        device=device or None,
        start=not no_browser,
        store=_store(store),
        timeout=settings.call_timeout(300.0),
        **wanted,
    )
    who = perform(_log_in(settings, gateway, read_token(token_file), wish))
    settings.emit({"gateway": gateway, **who.as_dict()}, f"you are {who} at gateway {gateway}")


def _store(given: str | None) -> str:
    found = given or os.environ.get("SCISTREAM_TOKEN_STORE", "") or "file"
    if found not in _STORES.choices:
        raise InvalidArgument(f"SCISTREAM_TOKEN_STORE={found} is unknown; use {' or '.join(_STORES.choices)}")
    return found


async def _log_in(settings: Settings, gateway: str, token: str, wish: Wish) -> Who:
    from s2uc.login import aio  # noqa: PLC0415

    config, timeout = settings.config, settings.call_timeout()
    known = config.gateway(gateway)
    terms = None if token else await aio.find_terms(known.live(), wish, timeout)
    if terms is None:
        return await aio.keep_token(config, gateway, token or _ask(gateway), wish.store, timeout)
    purpose = f" for {terms.audience}" if terms.audience else ""
    remark(f"gateway {gateway} lets you log in at {terms.issuer}{purpose} (scopes: {' '.join(terms.scopes) or 'none'})")
    return await aio.log_in(config, gateway, terms, wish, lambda prompt: remark(str(prompt)), timeout)


@click.command("logout", cls=Command, example="s2uc logout aps")
@click.argument("gateway", shell_complete=gateways)
@click.option("--no-revoke", is_flag=True, help="Only forget; the issuer is not asked to revoke them.")
@pass_settings
def logout_command(settings: Settings, gateway: str, no_revoke: bool) -> None:
    """Revoke your tokens for a gateway at their issuer, and forget them. The gateway itself stays known."""
    from s2uc.login import Ended, aio  # noqa: PLC0415

    ended = perform(aio.log_out(settings.config, gateway, revoke=not no_revoke))
    if ended is Ended.FORGOTTEN:
        settings.say(f"the token for gateway {gateway} is not revoked: {_UNDONE}")
    text = {
        Ended.REVOKED: f"your tokens for gateway {gateway} are revoked and forgotten",
        Ended.FORGOTTEN: f"your token for gateway {gateway} is forgotten",
        Ended.NONE: f"no token for gateway {gateway} was kept",
    }[ended]
    settings.emit({"gateway": gateway, "tokens": ended}, text)


@click.command("check-auth", cls=Command, example="s2uc check-auth")
@click.argument("gateway", nargs=-1, shell_complete=gateways)
@pass_settings
def check_auth_command(settings: Settings, gateway: tuple[str, ...]) -> None:
    """Say who you are to each gateway, or to those named: by which method, as what, and until when."""
    from s2uc.login.who import ask_who  # noqa: PLC0415

    timeout = settings.call_timeout()
    ask_each(settings, gateway, lambda one: ask_who(one, timeout), _show)


def _show(name: str, answer: Who | ScistreamError) -> str:
    version = "" if isinstance(answer, ScistreamError) else f"; version {answer.version}"
    return f"{name:<20} {answer}{version}"
