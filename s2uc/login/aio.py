"""Logging in at a gateway and out again, for asyncio. `s2uc.login` has the same for programs without."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from enum import StrEnum

from s2uc.config import KnownGateway, UserConfig
from s2uc.gateway import TIMEOUT_S, Gateway, GatewayClient
from s2uc.login.browser import by_browser
from s2uc.login.device import by_device
from s2uc.login.grant import Grant, Terms
from s2uc.login.issuer import Issuer
from s2uc.login.prompt import Show, has_browser
from s2uc.login.vault import locked, vault
from s2uc.login.who import Who, ask_who
from scistream.errors import FailedPrecondition, InvalidArgument, ScistreamError
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import shown

PERSON_S = 300.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user wants otherwise than the gateway says. Empty is as the gateway says.

    Args:
        method: the gateway's name of the way to log in, where it has several.
        issuer: where to log in.
        client_id: what the issuer calls `s2uc`.
        scopes: what the token is to allow.
        audience: who the token is for; to name it also says that other gateways of that audience are trusted with it.
        device: finish the login on another device; None decides by whether a browser can be seen here.
        start: start a browser here; else the page is only shown.
        store: where the tokens are kept, `file` or `keyring`.
        timeout: seconds that the person has.
    """

    method: str = ""
    issuer: str = ""
    client_id: str = ""
    scopes: tuple[str, ...] = ()
    audience: str = ""
    device: bool | None = None
    start: bool = True
    store: str = "file"
    timeout: float = PERSON_S


async def find_terms(gateway: Gateway, wish: Wish, timeout: float = TIMEOUT_S) -> Terms | None:
    """Find out what to ask which issuer for; None where the gateway takes tokens by hand only.

    Raises:
        InvalidArgument: the gateway has several ways, or not the one that is wanted.
    """
    if wish.issuer and wish.client_id:
        offers: tuple[pb.Method, ...] = ()
    else:
        async with GatewayClient(gateway, timeout) as client:
            offers = tuple(method for method in await client.methods() if method.issuer and method.client_id)
    fitting = [
        offer
        for offer in offers
        if (not wish.method or offer.name == wish.method)
        and (not wish.issuer or offer.issuer.rstrip("/") == wish.issuer.rstrip("/"))
    ]
    if wish.issuer and not fitting:
        return Terms(wish.issuer, wish.client_id, wish.scopes or ("openid",), wish.audience)
    if not fitting and not (wish.method or wish.client_id):
        return None
    if len(fitting) != 1:
        names = ", ".join(offer.name for offer in offers) or "none"
        which = f"none called {shown(wish.method)}" if wish.method and not fitting else "not one alone"
        raise InvalidArgument(
            f"gateway {gateway.name} has {which} of the ways to log in (it has: {names}); choose one with --method"
        )
    [offer] = fitting
    return Terms(
        offer.issuer,
        wish.client_id or offer.client_id,
        wish.scopes or tuple(offer.scopes),
        wish.audience or offer.audience,
        offer.device_flow,
    )


def check_mix_up(config: UserConfig, known: KnownGateway, terms: Terms, wish: Wish) -> None:
    """See that no gateway gets tokens that another one takes: it could use them there in the user's name.

    Raises:
        FailedPrecondition: it would, and the user has not named the audience.
    """
    if wish.audience or wish.scopes:
        return
    for other in config.gateways():
        if other.endpoint == known.endpoint or not other.store:
            continue
        try:
            grant = vault(config.directory, other.name, other.store).load()
        except ScistreamError:  # its tokens are of no use to anybody
            continue
        if grant and grant.issuer and grant.terms.power == terms.power:
            mend = f"--audience {terms.audience}" if terms.audience else "--scope"
            raise FailedPrecondition(
                f"gateway {known.name} asks for tokens that gateway {other.name} takes, too, and could use them there "
                f"in your name; if you trust both with them, say so with {mend}"
            )


async def log_in(
    config: UserConfig, name: str, terms: Terms, wish: Wish, show: Show, timeout: float = TIMEOUT_S
) -> Who:
    """Get tokens for a gateway, and keep them when the gateway has taken them.

    Args:
        config: the user's directory.
        name: the gateway, as the user calls it.
        terms: what `find_terms` found.
        wish: how.
        show: is called with what the person has to do.
        timeout: seconds for each call to the gateway.

    Raises:
        Unauthenticated, PermissionDenied: the person, the issuer or the gateway refused.
        DeadlineExceeded: nobody logged in.
        Unavailable: the issuer or the gateway cannot be reached.
    """
    known = config.gateway(name)
    check_mix_up(config, known, terms, wish)
    place = vault(config.directory, name, wish.store)
    with suppress(InvalidArgument):  # a damaged entry will be replaced
        await asyncio.to_thread(place.load)  # a keyring that does not open is told of before anybody logs in
    async with Issuer(terms.issuer) as issuer:
        if issuer.supports("scopes", "offline_access") and "offline_access" not in terms.scopes:
            terms = replace(terms, scopes=(*terms.scopes, "offline_access"))
        if _on_device(issuer, terms, wish):
            grant = await by_device(issuer, terms, show, wish.timeout)
        else:
            grant = await by_browser(issuer, terms, show, wish.timeout, start=wish.start and has_browser())
        try:
            gateway = replace(known, store="").live().with_token(grant.access_token)
            who = await ask_who(gateway, timeout)
        except ScistreamError:
            with suppress(ScistreamError):
                await issuer.revoke(grant)
            raise
    async with locked(config.directory, name):
        await asyncio.to_thread(place.save, grant)
        if known.store not in ("", wish.store):
            with suppress(ScistreamError):
                await asyncio.to_thread(vault(config.directory, name, known.store).forget)
        config.save_gateway(replace(known, token="", store=wish.store))
    return who


def _on_device(issuer: Issuer, terms: Terms, wish: Wish) -> bool:
    possible = bool(issuer.endpoint("device_authorization")) and terms.device_flow
    if wish.device and not possible:
        raise FailedPrecondition(f"issuer {issuer.url} has no device flow for this; log in where a browser is")
    return possible and (wish.device is True or (wish.device is None and wish.start and not has_browser()))


async def keep_token(config: UserConfig, name: str, token: str, store: str = "", timeout: float = TIMEOUT_S) -> Who:
    """Keep a token that was given by hand, when the gateway has taken it.

    Raises:
        Unauthenticated: it is nobody's there.
    """
    known = config.gateway(name)
    who = await ask_who(replace(known, store="").live().with_token(token), timeout)
    async with locked(config.directory, name) if store == "keyring" or known.store else nullcontext():
        if store == "keyring":
            await asyncio.to_thread(vault(config.directory, name, store).save, Grant(token))
            config.save_gateway(replace(known, token="", store=store))
        else:
            config.save_gateway(replace(known, token=token, store=""))
        if known.store and known.store != store:
            await asyncio.to_thread(vault(config.directory, name, known.store).forget)
    return who


class Ended(StrEnum):
    """What became of tokens at a logout."""

    REVOKED = "revoked"  # their issuer takes them no more
    FORGOTTEN = "forgotten"  # here; somebody who has a copy can use it until it ends
    NONE = "none"  # there were none


async def log_out(config: UserConfig, name: str, *, revoke: bool = True) -> Ended:
    """Revoke a gateway's tokens at their issuer, and forget them.

    Raises:
        Unavailable: the issuer cannot be asked; then they are still here.
    """
    known = config.gateway(name)
    if not known.store:
        config.save_gateway(replace(known, token=""))
        return Ended.FORGOTTEN if known.token else Ended.NONE
    async with locked(config.directory, name):
        place = vault(config.directory, name, known.store)
        grant = await asyncio.to_thread(place.load)
        revoked = False
        if grant and grant.issuer and revoke:
            async with Issuer(grant.issuer) as issuer:
                revoked = await issuer.revoke(grant)
        await asyncio.to_thread(place.forget)
        config.save_gateway(replace(known, token="", store=""))
    return Ended.REVOKED if revoked else Ended.FORGOTTEN if grant else Ended.NONE
