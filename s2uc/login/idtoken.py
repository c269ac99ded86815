"""The statement of an issuer about who has logged in: it must be this issuer's, for us, and for this login."""

from __future__ import annotations

import hmac
from typing import Any

from s2uc.login.grant import Terms
from s2uc.login.issuer import Issuer
from scistream.errors import Unavailable

_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
_LEEWAY_S = 60


async def check_id_token(issuer: Issuer, terms: Terms, token: str, nonce: str) -> None:
    """Check signature, issuer, audience, times and nonce (OpenID Connect Core 3.1.3.7).

    Raises:
        Unavailable: it does not hold.
    """
    import jwt  # noqa: PLC0415 - few logins have one

    try:
        key = _key(jwt, await issuer.keys(), jwt.get_unverified_header(token).get("kid"))
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=_ALGORITHMS,
            audience=terms.client_id,
            issuer=issuer.url,
            leeway=_LEEWAY_S,
            options={"require": ["iss", "sub", "aud", "exp", "iat"]},
        )
    except jwt.PyJWTError as error:
        raise Unavailable(f"issuer {issuer.url}: its id token does not hold ({error}); the login is not used") from None
    if not hmac.compare_digest(str(claims.get("nonce", "")).encode(), nonce.encode()):
        raise Unavailable(f"issuer {issuer.url}: its id token is of another login; this one is not used")


def _key(jwt: Any, keys: dict[str, Any], kid: object) -> Any:
    for key in jwt.PyJWKSet.from_dict(keys).keys:
        if kid is None or key.key_id == kid:
            return key
    raise jwt.InvalidTokenError("it is signed with a key that is not published")
