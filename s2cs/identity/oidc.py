"""Access tokens that are JWTs: checked here, with keys that their issuer publishes."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from math import inf
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from s2cs.auth import Caller
from s2cs.identity.fetch import Fetcher
from s2cs.identity.outsiders import caller_of
from s2cs.identity.settings import Oidc
from scistream.errors import Unauthenticated, Unavailable
from scistream.vocabulary import shown

log = logging.getLogger(__name__)

_AGAIN_S = 10.0  # between two looks for keys, whatever tokens say
_MOST_KEYS = 64
_LEAST_RSA_BITS = 2048
_TYPES = ("jwt", "at+jwt", "application/at+jwt")
_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}
_SENTENCES: dict[type[Exception], str] = {
    jwt.ExpiredSignatureError: "has expired; log in again",
    jwt.ImmatureSignatureError: "is not good yet; compare this host's clock with the issuer's",
    jwt.InvalidAudienceError: "is not for this gateway; ask for one with the audience {audience}",
    jwt.InvalidIssuerError: "is of another issuer",
    jwt.InvalidSignatureError: "is not signed by its issuer",
}


def issuer_of(token: str) -> str | None:
    """Tell which issuer a JWT names; None when it is no JWT. Nothing is checked yet."""
    parts = token.split(".")
    if len(parts) != 3 or not all(parts[:2]):
        return None
    try:
        header, claims = (json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in parts[:2])
    except (ValueError, RecursionError):
        return None
    if not isinstance(header, dict) or not isinstance(claims, dict) or "alg" not in header:
        return None
    issuer = claims.get("iss")
    return issuer if isinstance(issuer, str) else ""


class Keys:
    """An issuer's keys: fetched when they are needed, again when they are old, and kept while it is away.

    Times are of the steady clock.
    """

    def __init__(self, method: Oidc, fetcher: Fetcher) -> None:
        self._method = method
        self._fetcher = fetcher
        self._keys: list[dict[str, Any]] = []
        self._fetched_at = self._tried_at = -inf
        self._fetching = asyncio.Lock()
        self._renewal: asyncio.Task[None] | None = None

    def take_over(self, before: Keys) -> None:
        """Know what another of the same issuer knew."""
        self._keys, self._fetched_at = before._keys, before._fetched_at

    async def find(self, kid: str | None, algorithm: str) -> jwt.PyJWK:
        """Find the key that a token says it is signed with.

        Raises:
            Unauthenticated: the issuer has no such key.
            Unavailable: the issuer cannot be asked, and what it said is too old.
        """
        age = time.monotonic() - self._fetched_at
        if age > self._method.keys_kept:
            await self._fetch()
        elif age > self._method.keys_ttl and (self._renewal is None or self._renewal.done()):
            self._renewal = asyncio.create_task(self._fetch())
        if (key := self._lookup(kid, algorithm)) is None:
            await self._fetch()
            key = self._lookup(kid, algorithm)
        if time.monotonic() - self._fetched_at > self._method.keys_kept:
            raise Unavailable(
                f"the issuer of {self._method.name} cannot be asked for its keys now, so its tokens cannot be "
                "checked; try again later"
            )
        if key is None:
            raise Unauthenticated(f"the token of {self._method.name} is signed with a key that its issuer has not")
        return key

    def _lookup(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        fitting = [key for key in self._keys if _fits(key, algorithm) and (kid is None or key.get("kid") == kid)]
        if len(fitting) != 1:
            return None  # none, or a guess
        try:
            key = jwt.PyJWK(fitting[0], algorithm)
        except (jwt.PyJWTError, ValueError):
            return None
        if isinstance(key.key, RSAPublicKey) and key.key.key_size < _LEAST_RSA_BITS:
            return None
        return key

    async def _fetch(self) -> None:
        """Fetch the keys, if that was not tried a moment ago; what goes wrong leaves those that are there."""
        async with self._fetching:
            if time.monotonic() - self._tried_at < _AGAIN_S:
                return
            self._tried_at = time.monotonic()
            try:
                await self.fetch()
            except Unavailable as error:
                log.warning("the keys of %s cannot be fetched: %s", self._method.name, error)

    async def fetch(self) -> int:
        """Fetch the keys; how many there are for the accepted algorithms.

        Raises:
            Unavailable: they cannot be had; the message is for the operator.
        """
        issuer = self._method.issuer
        found = await self._fetcher.get(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        if found.get("issuer") != issuer:
            raise Unavailable(f"{issuer} says that it is {shown(str(found.get('issuer')))}; mend [[auth.oidc]] issuer")
        keys = (await self._fetcher.get(str(found.get("jwks_uri")))).get("keys")
        if not isinstance(keys, list):
            raise Unavailable(f"{issuer} publishes no keys")
        self._keys = [key for key in keys[:_MOST_KEYS] if isinstance(key, dict)]
        self._fetched_at = time.monotonic()
        return sum(any(_fits(key, algorithm) for algorithm in self._method.algorithms) for key in self._keys)


def _fits(key: dict[str, Any], algorithm: str) -> bool:
    """Tell whether a published key is for signatures of an algorithm; one with a shared secret never is."""
    if key.get("use", "sig") != "sig" or key.get("alg", algorithm) != algorithm:
        return False
    if algorithm in _CURVES:
        return key.get("kty") == "EC" and key.get("crv") == _CURVES[algorithm]
    return bool(key.get("kty") == ("OKP" if algorithm == "EdDSA" else "RSA"))


class JwtMethod:
    """`[[auth.oidc]]` at work."""

    def __init__(self, settings: Oidc) -> None:
        self.settings = settings
        self._fetcher = Fetcher(settings.ca)
        self.keys = Keys(settings, self._fetcher)

    async def close(self) -> None:
        """Let go of the issuer."""
        await self._fetcher.close()

    async def try_out(self) -> str:
        """Ask the issuer; what it says, in a sentence.

        Raises:
            Unavailable: it cannot be asked, or its tokens could not be checked.
        """
        if not (keys := await self.keys.fetch()):
            raise Unavailable(f"{self.settings.issuer} publishes no key for {', '.join(self.settings.algorithms)}")
        return f"[[auth.oidc]] {self.settings.name}: its issuer publishes {keys} key{'s' if keys > 1 else ''} that fit"

    async def identify(self, token: str) -> Caller:
        """Tell whose a JWT of this issuer is.

        Raises:
            Unauthenticated: it is not good, or not for us.
            PermissionDenied: it is good, but not for this.
            Unavailable: its issuer cannot be asked.
        """
        return caller_of(self.settings, await self._claims(token), self.settings.leeway)

    async def _claims(self, token: str) -> dict[str, Any]:
        settings = self.settings
        try:
            header = jwt.get_unverified_header(token)
            algorithm, kind = header.get("alg"), header.get("typ", "JWT")
            if algorithm not in settings.algorithms:
                raise Unauthenticated(
                    f"the token of {settings.name} is signed by {shown(str(algorithm))}, and accepted are "
                    f"{', '.join(settings.algorithms)}"
                )
            if "crit" in header or not isinstance(kind, str) or kind.lower() not in _TYPES:
                raise Unauthenticated(f"the token of {settings.name} is no access token")
            key = await self.keys.find(header.get("kid"), algorithm)
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=settings.leeway,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            words = _SENTENCES.get(type(error), "is not one that can be read; log in again")
            raise Unauthenticated(f"the token of {settings.name} {words.format(audience=settings.audience)}") from None
        return claims
