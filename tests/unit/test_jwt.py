"""What a signed token has to say. The keys are known here, so that everything can be signed."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from math import inf
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from s2cs.auth import Caller
from s2cs.identity.oidc import JwtMethod, issuer_of
from s2cs.identity.settings import Oidc
from s2cs.users import Rank
from scistream.errors import PermissionDenied, ScistreamError, Unauthenticated, Unavailable

ISSUER = "http://127.0.0.1:1"  # nobody is there
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SHORT = rsa.generate_private_key(public_exponent=65537, key_size=1024)
P256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
ED = ed25519.Ed25519PrivateKey.generate()
PUBLISHED: list[dict[str, Any]] = [
    {"kid": "rsa", **jwt.algorithms.RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True)},
    {"kid": "short", **jwt.algorithms.RSAAlgorithm.to_jwk(SHORT.public_key(), as_dict=True)},
    {"kid": "p256", **jwt.algorithms.ECAlgorithm.to_jwk(P256.public_key(), as_dict=True)},
    {"kid": "p384", **jwt.algorithms.ECAlgorithm.to_jwk(P384.public_key(), as_dict=True)},
    {"kid": "ed", **jwt.algorithms.OKPAlgorithm.to_jwk(ED.public_key(), as_dict=True)},
    {"kid": "secret", "kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"},
    {"kid": "sealing", "use": "enc", **jwt.algorithms.RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True)},
    {"kid": "junk", "kty": "RSA", "n": "AA", "e": "!"},
]


def method(published: list[dict[str, Any]] | None = None, **changes: Any) -> JwtMethod:
    settings = {"name": "lab", "issuer": ISSUER, "audience": "gw"} | changes
    made = JwtMethod(Oidc.model_validate(settings))
    made.keys._keys = PUBLISHED if published is None else published
    made.keys._fetched_at = made.keys._tried_at = time.monotonic()
    return made


def token(
    key: Any = RSA,
    algorithm: str = "RS256",
    kid: str | None = "rsa",
    header: dict[str, Any] | None = None,
    **claims: Any,
) -> str:
    """A good token, but for changes; None leaves a claim out, and times are from now."""
    whole = {"iss": ISSUER, "aud": "gw", "sub": "ada", "exp": 600, "iat": 0} | claims
    now = int(time.time())
    said = {
        name: value + now if name in ("exp", "nbf", "iat") and type(value) is int else value
        for name, value in whole.items()
        if value is not None
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jwt.warnings.InsecureKeyLengthWarning)  # that is what is tried
        return jwt.encode(said, key, algorithm=algorithm, headers={"kid": kid, **(header or {})} if kid else header)


def later(*arguments: Any, **claims: Any) -> Callable[[], str]:
    """The same, made when it is needed: its times are from then."""
    return lambda: token(*arguments, **claims)


async def identified(text: str, **settings: Any) -> Caller:
    made = method(**settings)
    try:
        return await made.identify(text)
    finally:
        await made.close()


@pytest.mark.parametrize(
    "made",
    [
        later(),
        later(P256, "ES256", "p256"),
        later(ED, "EdDSA", "ed"),
        later(RSA, "PS256"),
        later(aud=["other", "gw"]),
        later(header={"typ": "at+jwt"}),
        later(header={"typ": "application/at+JWT"}),
        later(exp=-20),
        later(nbf=20, iat=20),
        later(P256, "ES256", None),  # there is only one for it
    ],
)
async def test_good(made: Callable[[], str]) -> None:
    caller = await identified(made())
    assert (caller.id, caller.name, caller.role, caller.method) == ("oidc:lab:ada", "lab:ada", Rank.USER, "oidc")


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (later(exp=-40), "has expired"),
        (later(exp=None), "is not one that can be read"),
        (later(exp="soon"), "is not one that can be read"),
        (later(exp=float("inf")), "is not one that can be read"),
        (later(exp=float("nan")), "is not one that can be read"),
        (later(nbf=60), "is not good yet"),
        (later(iat=60), "is not good yet"),
        (later(aud="other"), "is not for this gateway; ask for one with the audience gw"),
        (later(aud=None), "is not one that can be read"),
        (later(aud=["gw2"]), "is not for this gateway"),
        (later(iss="https://other"), "is of another issuer"),
        (later(sub=None), "is not one that can be read"),
        (later(sub=""), "does not say whose it is"),
        (later(sub="a\nb"), "does not say whose it is"),
        (later(sub="a" * 256), "does not say whose it is"),
        (later(sub="Ada Lovelace"), "claim sub of the token of lab has 'Ada Lovelace' for a name"),
        (later(SHORT, kid="short"), "with a key that its issuer has not"),
        (later(P384, "ES384", "p384"), "is signed by 'ES384', and accepted are RS256"),
        (later("c2VjcmV0-secret-secret-secret-secret-secret", "HS256", "secret"), "is signed by 'HS256'"),
        (later(kid="sealing"), "with a key that its issuer has not"),
        (later(kid="junk"), "with a key that its issuer has not"),
        (later(kid="gone"), "with a key that its issuer has not"),
        (later(RSA, "RS256", "p256"), "with a key that its issuer has not"),
        (later(header={"typ": "logout+jwt"}), "is no access token"),
        (later(header={"crit": ["exp"], "exp": 1}), "is not one that can be read"),
        (later(kid=None), "with a key that its issuer has not"),  # three could be meant
    ],
)
async def test_bad(made: Callable[[], str], says: str) -> None:
    text = made()
    with pytest.raises(Unauthenticated) as caught:
        await identified(text)
    assert says in str(caught.value)
    assert text not in str(caught.value)


async def test_a_curve_has_to_fit_the_algorithm() -> None:
    with pytest.raises(Unauthenticated, match="a key that its issuer has not"):
        await identified(
            token(P384, "ES384", "p384"), algorithms=["ES384"], published=[PUBLISHED[3] | {"crv": "P-256"}]
        )
    assert (await identified(token(P384, "ES384", "p384"), algorithms=["ES384"])).name == "lab:ada"


@pytest.mark.parametrize(
    ("claims", "settings", "role", "scopes"),
    [
        ({}, {}, Rank.USER, {"sessions", "read"}),
        ({}, {"admins": ["ada"]}, Rank.ADMIN, {"sessions", "read", "admin"}),
        ({}, {"operators": ["ada", "bob"]}, Rank.OPERATOR, {"sessions", "read", "admin"}),
        ({"groups": ["ops"]}, {"operator_groups": ["ops"]}, Rank.USER, {"sessions", "read"}),  # no claim was named
        (
            {"g": "ops x"},
            {"groups_claim": "g", "operator_groups": ["ops"]},
            Rank.OPERATOR,
            {"sessions", "read", "admin"},
        ),
        ({"g": ["root"]}, {"groups_claim": "g", "admin_groups": ["root"]}, Rank.ADMIN, {"sessions", "read", "admin"}),
        ({"g": 7}, {"groups_claim": "g", "admin_groups": ["root"]}, Rank.USER, {"sessions", "read"}),
        ({"scope": "a b"}, {"required_scopes": ["b"]}, Rank.USER, {"sessions", "read"}),
        ({"scp": ["a", "b"]}, {"required_scopes": ["b"]}, Rank.USER, {"sessions", "read"}),
        ({"scope": "look"}, {"grants": {"look": ["read"], "all": ["sessions"]}}, Rank.USER, {"read"}),
        ({"scope": "look"}, {"grants": {"look": ["read"]}, "admins": ["ada"]}, Rank.USER, {"read"}),
        ({"scope": "all"}, {"grants": {"all": ["read", "admin"]}, "admins": ["ada"]}, Rank.ADMIN, {"read", "admin"}),
        ({"scope": "all"}, {"grants": {"all": ["admin"]}}, Rank.USER, {"admin"}),
    ],
)
async def test_ranks_and_scopes(claims: dict[str, Any], settings: Any, role: Rank, scopes: set[str]) -> None:
    caller = await identified(token(**claims), **settings)
    assert (caller.role, caller.scopes) == (role, scopes)


@pytest.mark.parametrize(
    ("claims", "settings"),
    [
        ({"scope": "a"}, {"required_scopes": ["a", "b"]}),
        ({"scope": "ab"}, {"required_scopes": ["a"]}),
        ({"scope": 7}, {"required_scopes": ["a"]}),
        ({"scope": "a"}, {"grants": {"b": ["read"]}}),
    ],
)
async def test_scopes_that_are_missing(claims: dict[str, Any], settings: Any) -> None:
    with pytest.raises(PermissionDenied, match="log in again and ask for"):
        await identified(token(**claims), **settings)


async def test_groups_are_kept_apart_and_bounded() -> None:
    groups = ["staff", "with space", "a\nb", *(f"g{number}" for number in range(1000)), 7, None]
    caller = await identified(token(g=groups), groups_claim="g")
    assert all(group.startswith("lab:") for group in caller.groups)
    assert len(caller.groups) <= 256
    assert not any("\n" in group or " " in group for group in caller.groups)


@pytest.mark.parametrize("exp", [10**400, 1e308, "99999999999"], ids=["huge", "far", "text"])
async def test_an_end_that_is_far_or_a_text(exp: object) -> None:
    caller = await identified(
        jwt.encode({"iss": ISSUER, "aud": "gw", "sub": "ada", "exp": exp}, RSA, "RS256", {"kid": "rsa"})
    )
    assert caller.expires_at == (99999999999 + 30 if isinstance(exp, str) else inf if exp == 10**400 else 1e308)


async def test_nobody_there_and_no_keys() -> None:
    made = JwtMethod(Oidc(name="lab", issuer=ISSUER, audience="gw"))
    for _ in range(2):
        with pytest.raises(Unavailable, match="the issuer of lab cannot be asked for its keys now"):
            await made.identify(token())
    await made.close()


@pytest.mark.parametrize(
    ("text", "issuer"),
    [
        (token(), ISSUER),
        (token(iss=None), ""),
        ("a.b.c", None),
        ("e30.e30.e30", None),
        ("..", None),
        ("made-up", None),
        ("a.b.c.d.e", None),
        (f"eyJhbGciOiJub25lIn0.{'W' * 9000}.x", None),
    ],
)
def test_which_issuer_a_token_names(text: str, issuer: str | None) -> None:
    assert issuer_of(text) == issuer


@pytest.mark.parametrize("text", ["[" * 12000, '{"a":' * 3000, '"x"', "7", "null", ""])
async def test_claims_that_are_no_object(text: str) -> None:
    made = jwt.PyJWS().encode(text.encode(), RSA, algorithm="RS256", headers={"kid": "rsa"})
    assert issuer_of(made) is None
    with pytest.raises(ScistreamError, match="is not one that can be read"):
        await identified(made)
