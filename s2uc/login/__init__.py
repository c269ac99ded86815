"""Logging in at gateways from a program.

    import s2uc

    who = s2uc.login.in_browser("aps")      # opens a browser on the issuer that the gateway names
    with s2uc.request(s2uc.known_gateway("aps"), ...) as session: ...   # tokens are renewed by themselves
    s2uc.login.out("aps")

Each waits for its end; `s2uc.login.aio` has them for asyncio.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from s2uc.blocking import wait_for
from s2uc.config import UserConfig
from s2uc.login import aio
from s2uc.login.aio import Ended, Wish
from s2uc.login.prompt import Prompt, Show
from s2uc.login.who import Who, ask_who
from scistream.errors import FailedPrecondition

__all__ = ["Ended", "Prompt", "Who", "Wish", "aio", "in_browser", "on_device", "out", "who", "with_token"]


def _print(prompt: Prompt) -> None:
    sys.stderr.write(f"{prompt}\n")


def in_browser(name: str, wish: Wish | None = None, *, config: str | None = None, show: Show = _print) -> Who:
    """Log in at a gateway that the user's directory knows, in a browser on this computer.

    Args:
        name: the gateway, as the user calls it.
        wish: what is to be otherwise than the gateway says.
        config: the user's directory; None is the default one.
        show: is called with the page; it goes to stderr by default.

    Raises:
        FailedPrecondition: the gateway names no issuer; then see `with_token`.
        PermissionDenied: the person or the issuer refused.
        DeadlineExceeded: nobody logged in.
    """
    wish = wish or Wish()
    return wait_for(_log_in(name, wish if wish.device is not None else replace(wish, device=False), config, show))


def on_device(name: str, wish: Wish | None = None, *, config: str | None = None, show: Show = _print) -> Who:
    """Log in as `in_browser` does, but with a code that is typed on any device."""
    return wait_for(_log_in(name, replace(wish or Wish(), device=True), config, show))


def with_token(name: str, token: str, *, store: str = "", config: str | None = None) -> Who:
    """Keep a token that the gateway's operator gave, in the gateway's file, or in the `keyring`."""
    return wait_for(aio.keep_token(UserConfig.locate(config), name, token, store))


def out(name: str, *, config: str | None = None) -> Ended:
    """Revoke the tokens for a gateway, and forget them."""
    return wait_for(aio.log_out(UserConfig.locate(config), name))


def who(name: str, *, config: str | None = None) -> Who:
    """Ask a gateway who the user is."""
    return wait_for(ask_who(UserConfig.locate(config).gateway(name).live()))


async def _log_in(name: str, wish: Wish, config: str | None, show: Show) -> Who:
    directory = UserConfig.locate(config)
    terms = await aio.find_terms(directory.gateway(name).live(), wish)
    if terms is None:
        raise FailedPrecondition(f"gateway {name} names no issuer to log in at; use s2uc.login.with_token")
    return await aio.log_in(directory, name, terms, wish, show)
