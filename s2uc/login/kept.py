"""A login that is kept: it gives a token that is good, and renews it in time, once for all who ask."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from s2uc.login.grant import Grant
from s2uc.login.issuer import Issuer, refusal
from s2uc.login.vault import Vault, locked, vault
from scistream.errors import ScistreamError, Unauthenticated


class Kept:
    """The tokens of one gateway, as the user's directory has them.

    Whoever asks, in whatever process, an issuer is asked once: refresh tokens may be good for one time only, and a
    second use of one makes issuers end the login.

    Args:
        directory: the user's configuration.
        name: the gateway.
        store: where the tokens are (`file`, `keyring`).
    """

    def __init__(self, directory: Path, name: str, store: str) -> None:
        self._directory, self._name, self._store = directory, name, store
        self._grant: Grant | None = None

    async def token(self, rejected: str = "") -> str:
        """Give a good access token.

        Args:
            rejected: a token that the gateway has refused; another one is wanted.

        Raises:
            Unauthenticated: there is none, and only its user can get one.
            Unavailable: the issuer would be needed, and cannot be reached.
        """
        grant = self._grant
        if grant is None or not grant.fresh() or grant.access_token == rejected:
            grant = self._grant = await self._renewed(rejected)
        return grant.access_token

    async def _renewed(self, rejected: str) -> Grant:
        kept = await asyncio.to_thread(vault, self._directory, self._name, self._store)
        grant = self._existing(await asyncio.to_thread(kept.load))
        if grant.fresh() and grant.access_token != rejected:
            return grant
        if not grant.refresh_token:
            return self._last(grant, rejected)
        async with locked(self._directory, self._name):
            grant = self._existing(await asyncio.to_thread(kept.load))  # somebody else may have been here
            if grant.fresh() and grant.access_token != rejected:
                return grant
            try:
                return await _to_its_end(_renew(grant, kept))
            except Unauthenticated:  # the issuer knows the login no more
                await asyncio.to_thread(kept.save, replace(grant, refresh_token=""))
                return self._last(grant, rejected)
            except ScistreamError:
                if grant.good() and grant.access_token != rejected:
                    return grant
                raise

    def _existing(self, grant: Grant | None) -> Grant:
        if grant is None:
            raise Unauthenticated(f"you are not logged in at gateway {self._name}; run: s2uc login {self._name}")
        return grant

    def _last(self, grant: Grant, rejected: str) -> Grant:
        """Give a token that cannot be renewed, as long as it lasts."""
        if grant.good() and grant.access_token != rejected:
            return grant
        ended = "" if grant.expires_at is None else f" at {datetime.fromtimestamp(grant.expires_at, UTC):%F %T} UTC"
        raise Unauthenticated(f"your login at gateway {self._name} has ended{ended}; run: s2uc login {self._name}")


async def _renew(grant: Grant, kept: Vault) -> Grant:
    renewed = await renew(grant)
    await asyncio.to_thread(kept.save, renewed)
    return renewed


async def _to_its_end(work: Coroutine[Any, Any, Grant]) -> Grant:
    """Do what must not be cut off: between an issuer's answer and the file, the only good tokens are in memory."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        raise


async def renew(grant: Grant) -> Grant:
    """Get new tokens for old ones.

    Raises:
        Unauthenticated: the issuer takes the old ones no more.
        Unavailable: it cannot be reached, or not used.
    """
    terms = grant.terms
    async with Issuer(grant.issuer) as issuer:
        answer = await issuer.token(terms, {"grant_type": "refresh_token", "refresh_token": grant.refresh_token})
        if answer.grant is None:
            raise refusal(issuer.url, answer.said)
    # An issuer that gives no new refresh token means that the old one goes on.
    return replace(answer.grant, refresh_token=answer.grant.refresh_token or grant.refresh_token)
