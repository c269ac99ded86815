"""Opaque access tokens: their issuer is asked (RFC 7662), and its answer is believed for a moment."""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
import time
from collections import OrderedDict
from typing import Any
from urllib.parse import quote_plus

from s2cs.auth import Caller, digest
from s2cs.identity.fetch import Fetcher
from s2cs.identity.outsiders import caller_of, words
from s2cs.identity.settings import Introspection
from scistream.errors import Unauthenticated, Unavailable

log = logging.getLogger(__name__)

_MOST_ANSWERS = 4096
_AT_ONCE = 16

Claims = dict[str, Any]


class OpaqueMethod:
    """`[[auth.introspection]]` at work.

    Raises:
        FailedPrecondition: the secret or the CA cannot be used.
    """

    def __init__(self, settings: Introspection) -> None:
        self.settings = settings
        pair = f"{quote_plus(settings.client_id)}:{quote_plus(settings.secret())}"
        self._authorization = f"Basic {base64.b64encode(pair.encode()).decode()}"
        self._fetcher = Fetcher(settings.ca)
        # By the hash of the token: until when on the steady clock, and the claims; None is a token that is not good.
        self._answers: OrderedDict[bytes, tuple[float, Claims | None]] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[Claims | None]] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def close(self) -> None:
        """Let go of the issuer."""
        for task in self._asking.values():
            task.cancel()
        await self._fetcher.close()

    async def try_out(self) -> str:
        """Ask the issuer about a token that is none; what it says, in a sentence.

        Raises:
            Unavailable: it cannot be asked, or does not know this gateway.
        """
        await self._fetcher.post(self.settings.endpoint, {"token": secrets.token_urlsafe()}, self._authorization)
        return f"[[auth.introspection]] {self.settings.name}: its issuer answers"

    async def identify(self, token: str) -> Caller:
        """Tell whose a token is.

        Raises:
            Unauthenticated: it is not good, or not for us.
            PermissionDenied: it is good, but not for this.
            Unavailable: its issuer cannot be asked.
        """
        settings = self.settings
        claims = await self._claims(token)
        if claims is None:
            raise Unauthenticated(f"the token is not good, says the issuer of {settings.name}; log in again")
        now = time.time()
        if not _between(claims.get("nbf"), now, claims.get("exp")):
            raise Unauthenticated(f"the token of {settings.name} has expired; log in again")
        if settings.issuer and claims.get("iss", settings.issuer) != settings.issuer:
            raise Unauthenticated(f"the token of {settings.name} is of another issuer")
        if settings.audience and settings.audience not in words(claims.get("aud")):
            raise Unauthenticated(
                f"the token of {settings.name} is not for this gateway; ask for one with the audience "
                f"{settings.audience}"
            )
        return caller_of(settings, claims)

    async def _claims(self, token: str) -> Claims | None:
        key = digest(token)
        until, claims = self._answers.get(key, (0.0, None))
        if time.monotonic() < until:
            return claims
        if key not in self._asking:
            self._asking[key] = asyncio.create_task(self._ask(key, token))
            self._asking[key].add_done_callback(
                lambda task: task.cancelled() or task.exception()
            )  # who asked may be gone
        return await asyncio.shield(self._asking[key])  # one question for all that wait

    async def _ask(self, key: bytes, token: str) -> Claims | None:
        settings = self.settings
        form = {"token": token, "token_type_hint": "access_token"}
        try:
            async with self._slots:
                answer = await self._fetcher.post(settings.endpoint, form, self._authorization)
        except Unavailable as error:
            log.warning("%s cannot be asked about a token: %s", settings.name, error)
            raise Unavailable(
                f"the issuer of {settings.name} cannot be asked now, so its tokens cannot be checked; try again later"
            ) from None
        finally:
            del self._asking[key]
        claims = answer if answer.get("active") is True else None
        kept = settings.negative_cache if claims is None else settings.cache
        self._answers[key] = (time.monotonic() + kept, claims)
        while len(self._answers) > _MOST_ANSWERS:
            self._answers.popitem(last=False)
        return claims


def _between(first: object, now: float, last: object) -> bool:
    """Tell whether it is time; what is not said does not bound it, and what is no time does."""
    for bound in (first, last):
        if bound is not None and (isinstance(bound, bool) or not isinstance(bound, (int, float))):
            return False
    return (not isinstance(first, (int, float)) or first <= now) and (not isinstance(last, (int, float)) or now < last)
