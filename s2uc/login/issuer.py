"""An issuer of tokens: where its endpoints are, and what a public client says to them (RFC 6749, 7009, 8414)."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from s2uc.login.grant import Grant, Terms, check_url
from scistream.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    ScistreamError,
    Unauthenticated,
    Unavailable,
)
from scistream.vocabulary import printable, shown

_TIMEOUT_S = 10.0
_MAX_ANSWER_BYTES = 2**20

Said = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a token endpoint said, and the tokens if they were granted."""

    said: Said = field(repr=False)
    grant: Grant | None


class Issuer:
    """Speak with an issuer, from `async with` on, which asks what it can do."""

    def __init__(self, url: str, timeout: float = _TIMEOUT_S) -> None:
        self.url = check_url(url, "issuer")
        self._local = urlsplit(url).scheme == "http"
        self._timeout = timeout
        self.metadata: Said = {}

    async def __aenter__(self) -> Self:
        # The system's trust store, where a facility's own CA is; a proxy of the environment, but never on loopback.
        context: ssl.SSLContext | bool = True if self._local else ssl.create_default_context()
        self._client = httpx.AsyncClient(timeout=self._timeout, verify=context, trust_env=not self._local)
        try:
            await self._discover()
        except BaseException:
            await self._client.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def _discover(self) -> None:
        parts = urlsplit(self.url)
        path = parts.path.rstrip("/")
        for place in (f"{path}/.well-known/openid-configuration", f"/.well-known/oauth-authorization-server{path}"):
            status, said = await self._ask("GET", f"{parts.scheme}://{parts.netloc}{place}")
            if status == httpx.codes.OK:
                break
        else:
            raise Unavailable(
                f"issuer {self.url} does not say what it is (HTTP status {status}); is its address right?"
            )
        if str(said.get("issuer", "")).rstrip("/") != self.url.rstrip("/"):
            raise Unavailable(
                f"issuer {self.url} says that it is {shown(str(said.get('issuer', '')))}; its answers are not used"
            )
        self.metadata = said
        self.url = str(said["issuer"])

    def endpoint(self, name: str) -> str:
        """Give an endpoint's address, empty where the issuer has none.

        Raises:
            InvalidArgument: it is not safe to send secrets there.
        """
        found = self.metadata.get(f"{name}_endpoint")
        return check_url(str(found), f"the {name} endpoint of issuer {self.url},", http=self._local) if found else ""

    def needs(self, name: str) -> str:
        """Give an endpoint's address.

        Raises:
            FailedPrecondition: the issuer has none.
        """
        found = self.endpoint(name)
        if not found:
            raise FailedPrecondition(f"issuer {self.url} has no {name} endpoint; this way to log in does not go there")
        return found

    def supports(self, what: str, value: str, assumed: bool = False) -> bool:
        """True when the issuer lists it; `assumed` is the answer where it lists nothing."""
        listed = self.metadata.get(f"{what}_supported")
        return value in listed if isinstance(listed, list) else assumed

    async def keys(self) -> Said:
        """Fetch its public keys (JWKS)."""
        place = check_url(str(self.metadata.get("jwks_uri", "")), f"the jwks_uri of issuer {self.url},", self._local)
        status, said = await self._ask("GET", place)
        if status != httpx.codes.OK:
            raise Unavailable(f"issuer {self.url} does not give its keys (HTTP status {status}); try again later")
        return said

    async def post(self, endpoint: str, form: Mapping[str, str]) -> Said:
        """Send a form to an endpoint; its answer, which may be an `error`.

        Raises:
            Unavailable: there is none, or none that OAuth knows.
        """
        status, said = await self._ask("POST", self.needs(endpoint), form)
        if status == httpx.codes.OK or isinstance(said.get("error"), str):
            return said
        raise Unavailable(f"issuer {self.url} fails (HTTP status {status}); try again later")

    async def _ask(self, method: str, url: str, form: Mapping[str, str] | None = None) -> tuple[int, Said]:
        headers = {"accept": "application/json"}
        try:
            async with self._client.stream(method, url, data=form, headers=headers) as answer:
                text = b""
                async for part in answer.aiter_bytes():
                    text += part
                    if len(text) > _MAX_ANSWER_BYTES:
                        raise Unavailable(f"issuer {self.url} answers too much; is its address right?")
        except httpx.TimeoutException:
            raise Unavailable(f"issuer {self.url} does not answer; try again later") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            why = _why(error)
            raise Unavailable(f"issuer {self.url} cannot be reached: {why}") from None
        try:
            said = json.loads(text) if text else {}
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            if answer.status_code == httpx.codes.OK:
                raise Unavailable(f"issuer {self.url} answers what is no JSON object; is its address right?")
            said = {}
        return answer.status_code, said

    async def token(self, terms: Terms, form: Mapping[str, str]) -> Answer:
        """Ask for tokens.

        Args:
            terms: what they are for.
            form: the grant (`grant_type` and what belongs to it).
        """
        asked_at = time.time()  # their life counts from here at the earliest
        said = await self.post("token", {**terms.form(), **form})
        return Answer(said, None if "error" in said else self._grant(terms, said, asked_at))

    def _grant(self, terms: Terms, said: Said, now: float) -> Grant:
        token, kind, life = said.get("access_token"), said.get("token_type"), said.get("expires_in")
        if not isinstance(token, str) or not token or str(kind).lower() != "bearer":
            raise Unavailable(f"issuer {self.url} gives no bearer token; a gateway takes no other")
        try:
            expires_at = None if life is None else now + float(life)
        except (TypeError, ValueError):
            expires_at = None
        refresh = said.get("refresh_token")
        refresh = refresh if isinstance(refresh, str) else ""
        try:
            return Grant(token, refresh, now, expires_at, terms.issuer, terms.client_id, terms.scopes, terms.audience)
        except InvalidArgument as error:
            raise Unavailable(f"issuer {self.url}: {error}") from None

    async def revoke(self, grant: Grant) -> bool:
        """Make tokens worthless, the refresh token first; False where the issuer has no means for that.

        Raises:
            Unavailable: it did not say that it is done.
        """
        if not self.endpoint("revocation"):
            return False
        for token, kind in ((grant.refresh_token, "refresh_token"), (grant.access_token, "access_token")):
            if token:
                form = {"client_id": grant.client_id, "token": token, "token_type_hint": kind}
                said = await self.post("revocation", form)
                # A token that is a signed statement cannot be taken back: it ends by itself.
                if said.get("error") not in (None, "unsupported_token_type", "invalid_token"):
                    raise refusal(self.url, said)
        return True


def refusal(issuer: str, said: Mapping[str, object]) -> ScistreamError:
    """Make an error of an issuer's own (RFC 6749, 8628), in a sentence that says what to do."""
    code = str(said.get("error"))
    told = said.get("error_description")
    detail = printable(f"{code}: {told}" if isinstance(told, str) and told else code)[:300]
    match code:
        case "access_denied":
            return PermissionDenied(
                f"issuer {issuer}: access was refused on its page ({detail}); log in again to change that"
            )
        case "expired_token":
            return DeadlineExceeded(f"issuer {issuer}: the code has expired; run the login again and be quicker")
        case "invalid_grant":
            return Unauthenticated(f"issuer {issuer}: the login is over ({detail}); log in again")
        case "temporarily_unavailable" | "server_error":
            return Unavailable(f"issuer {issuer} cannot serve now ({detail}); try again later")
        case "invalid_client" | "unauthorized_client":
            return PermissionDenied(f"issuer {issuer} does not let this client do that ({detail}); check the client id")
        case _:
            return PermissionDenied(f"issuer {issuer} refuses: {detail}")


def _why(error: Exception) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({cause.verify_message}); SSL_CERT_FILE names further CAs"
        cause = cause.__cause__ or cause.__context__
    return printable(str(error)) or type(error).__name__
