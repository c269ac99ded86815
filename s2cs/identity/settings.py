"""`[auth]`: the ways in which somebody can prove who they are."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, model_validator

from s2cs.tables import Duration, Listen, Table, others_can_read
from scistream.errors import FailedPrecondition

Scope = Literal["sessions", "read", "admin"]
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
MethodName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
_LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|::1")


def is_safe_url(url: str) -> bool:
    """Tell whether what is asked there cannot be read on the way: https, or http on loopback."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and (
            parts.scheme == "https" or (parts.scheme == "http" and bool(_LOOPBACK.fullmatch(parts.hostname or "")))
        )
    except ValueError:
        return False


def _url(value: object) -> str:
    if not isinstance(value, str) or not is_safe_url(value) or any(mark in value for mark in "?#@ "):
        raise ValueError("give an https address without query and user; http is for loopback only")
    return value


Url = Annotated[str, BeforeValidator(_url)]


class Names(Table):
    """What methods outside of this gateway have in common: what a name from there is here, and what it may."""

    name: MethodName  # users are shown as NAME:WHO, which no user of this gateway can be called
    operators: tuple[str, ...] = ()  # WHO of those that may see and release everybody's sessions
    admins: tuple[str, ...] = ()  # WHO of those that may do everything


class Issuer(Names):
    """What methods of OAuth have in common."""

    kind: ClassVar[str]
    required_scopes: tuple[str, ...] = ()
    grants: dict[str, tuple[Scope, ...]] = Field(default_factory=dict)  # by the issuer's scope; empty: sessions, read
    issuer: Url | None = None  # of opaque tokens: checked where the answer names one, and needed for s2uc login
    audience: str = ""  # of opaque tokens: checked when given
    username_claim: str
    groups_claim: str = ""
    operator_groups: tuple[str, ...] = ()
    admin_groups: tuple[str, ...] = ()
    ca: Path | None = None  # PEM, of an issuer that is not known to everybody
    login_client: str = ""  # the client id with which s2uc login asks; empty: tokens come by another way
    login_scopes: tuple[str, ...] = ("openid",)
    login_device_flow: bool = True


class Oidc(Issuer):
    """`[[auth.oidc]]`: access tokens that are JWTs of an OpenID Connect issuer."""

    kind: ClassVar[str] = "oidc"
    issuer: Url
    audience: Annotated[str, Field(min_length=1)]
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = ("RS256", "PS256", "ES256", "EdDSA")
    username_claim: str = "sub"
    leeway: Annotated[int, Field(ge=0, le=300)] = 30  # seconds that clocks may differ
    keys_ttl: Duration = 3600  # after that the issuer's keys are fetched again
    keys_kept: Duration = 86400  # how long they are good while the issuer cannot be reached


class Introspection(Issuer):
    """`[[auth.introspection]]`: opaque access tokens, of which their issuer is asked (RFC 7662)."""

    kind: ClassVar[str] = "introspection"
    endpoint: Url
    client_id: Annotated[str, Field(min_length=1)]  # who this gateway is to the issuer
    secret_file: Path | None = None  # mode 0600
    secret_env: str = ""  # or the variable of the environment that has it
    prefix: str = ""  # tokens that begin so are this issuer's; one method may go without
    username_claim: str = "username"
    cache: Annotated[int, Field(ge=0, le=600)] = 30  # seconds that a good answer is believed
    negative_cache: Annotated[int, Field(ge=0, le=600)] = 5

    @model_validator(mode="after")
    def _one_secret(self) -> Introspection:
        if (self.secret_file is None) == (not self.secret_env):
            raise ValueError("give either secret_file or secret_env")
        return self

    @model_validator(mode="after")
    def _for_us(self) -> Introspection:
        if not (self.audience or self.required_scopes):
            raise ValueError("give audience or required_scopes, or a token for any other service of the issuer is good")
        return self

    def secret(self) -> str:
        """Read the secret.

        Raises:
            FailedPrecondition: it is not there, or others can read it.
        """
        if self.secret_file is None:
            if secret := os.environ.get(self.secret_env, ""):
                return secret
            raise FailedPrecondition(f"[[auth.introspection]] {self.name}: the environment has no {self.secret_env}")
        try:
            if others_can_read(self.secret_file):
                raise FailedPrecondition(f"{self.secret_file} can be read by others; chmod 600 {self.secret_file}")
            if secret := self.secret_file.read_text().strip():
                return secret
        except (OSError, UnicodeDecodeError) as error:
            raise FailedPrecondition(f"{self.secret_file} cannot be read: {error}") from None
        raise FailedPrecondition(f"{self.secret_file} is empty; write the client's secret into it")


class Certificates(Names):
    """`[auth.certificates]`: certificates of clients, on ports of their own."""

    name: MethodName = "cert"
    listen: tuple[Listen, ...] = ()  # empty: no certificates are asked for
    ca: Path | None = None  # PEM; who issues them
    crl: Path | None = None  # PEM or DER; read again when it changes
    username: Literal["cn", "email", "dns", "uri"] = "cn"  # where in the certificate the name is

    @model_validator(mode="after")
    def _whole(self) -> Certificates:
        if self.listen and self.ca is None:
            raise ValueError("listen needs ca, the file with the CA of your users' certificates")
        return self


class Auth(Table):
    """`[auth]`: who is let in."""

    tokens: bool = True  # those of s2cs user
    oidc: tuple[Oidc, ...] = ()
    introspection: tuple[Introspection, ...] = ()
    certificates: Certificates = Certificates()

    @model_validator(mode="after")
    def _apart(self) -> Auth:
        names = [method.name for method in (*self.issuers, self.certificates)]
        if len(set(names)) < len(names):
            raise ValueError(f"each method needs a name of its own; found {', '.join(names)}")
        issuers = [method.issuer for method in self.oidc]
        if len(set(issuers)) < len(issuers):
            raise ValueError("an issuer may have one [[auth.oidc]] only")
        prefixes = [method.prefix for method in self.introspection]
        if len(set(prefixes)) < len(prefixes):
            raise ValueError("each [[auth.introspection]] needs a prefix of its own; one may go without")
        if not (self.tokens or self.oidc or self.introspection or self.certificates.listen):
            raise ValueError("nobody could get in; leave tokens on, or add another method")
        return self

    @property
    def issuers(self) -> tuple[Issuer, ...]:
        """All methods of OAuth."""
        return (*self.oidc, *self.introspection)
