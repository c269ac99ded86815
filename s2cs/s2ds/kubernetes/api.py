"""The Kubernetes API: the few calls that S2CS needs, and what it refuses in one sentence each."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from scistream.errors import FailedPrecondition, NotFound, ResourceExhausted, ScistreamError, Unavailable
from scistream.vocabulary import printable

_ANSWER_S = 10.0
WATCH_S = 60  # how long the API follows changes before it is asked anew: a connection that died unseen is found then
_FORBIDDEN = "is forbidden: User"
_MEND = "give S2CS's account that right, as deploy/kubernetes/base/access.yaml does"
_MANY = 1000


class Outdated(Unavailable):
    """What was to be followed from is not known any more; list again."""


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API is, and as whom it is asked."""

    url: str  # empty: of the cluster that this process is a pod of
    ca: Path
    token_file: Path  # read at each call: the cluster replaces it now and then
    namespace: str

    @property
    def address(self) -> str:
        """The URL.

        Raises:
            FailedPrecondition: none is set, and this is no pod.
        """
        if self.url:
            return self.url.rstrip("/")
        host, port = (os.environ.get(f"KUBERNETES_SERVICE_{part}", "") for part in ("HOST", "PORT"))
        if not host or not port:
            raise FailedPrecondition("this is no pod of a cluster; name its API's URL as [kubernetes] api")
        return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


class Api:
    """A namespace of a cluster, asked as one account."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._client: httpx.AsyncClient | None = None

    @property
    def namespace(self) -> str:
        """Where everything is."""
        return self._access.namespace

    def open(self) -> None:
        """Prepare to ask; nothing is asked.

        Raises:
            FailedPrecondition: the address or the CA cannot be used.
        """
        address, ca = self._access.address, self._access.ca
        try:
            trust = ssl.create_default_context(cafile=ca)
        except (OSError, ssl.SSLError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise FailedPrecondition(f"[kubernetes] ca {ca} cannot be used: {why}; name the CA of the API") from None
        limits = httpx.Limits(max_connections=_MANY, max_keepalive_connections=10)
        self._client = httpx.AsyncClient(
            base_url=address, verify=trust, timeout=_ANSWER_S, trust_env=False, limits=limits
        )

    async def close(self) -> None:
        """Close all connections. Closing twice is harmless."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def ask(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        """Ask for something of the namespace; a path with a slash at its beginning is of the whole API.

        Raises:
            NotFound: there is none.
            FailedPrecondition: this account may not, or what is sent cannot be used.
            ResourceExhausted: a quota is used up.
            Unavailable: there is no answer, or none that is understood.
        """
        client, head = self._ready()
        try:
            response = await client.request(method, self._path(path), json=body, params=query, headers=head)
        except httpx.HTTPError as error:
            raise self._silent(error) from None
        if not response.is_success:
            raise self._refused(response)
        try:
            return response.json()
        except ValueError:
            raise self.strange("no JSON") from None

    @asynccontextmanager
    async def watch(self, path: str, **query: str) -> AsyncIterator[AsyncIterator[Any]]:
        """Follow changes for a while: each is an object with `type` and `object`.

        Raises:
            Outdated: what it is to begin with is too old.
            FailedPrecondition, Unavailable: as `ask`.
        """
        client, head = self._ready()
        timeout = httpx.Timeout(_ANSWER_S, read=WATCH_S + _ANSWER_S)
        params = {"watch": "1", "timeoutSeconds": str(WATCH_S), **query}
        try:
            url = self._path(path)
            async with client.stream("GET", url, params=params, headers=head, timeout=timeout) as response:
                if not response.is_success:
                    await response.aread()
                    raise self._refused(response)
                yield _changes(response)
        except httpx.HTTPError as error:
            raise self._silent(error) from None

    def _ready(self) -> tuple[httpx.AsyncClient, dict[str, str]]:
        if self._client is None:
            raise Unavailable("the Kubernetes API is not asked any more: this data server is closed")
        try:
            token = self._access.token_file.read_text().strip()
        except OSError as error:
            where = self._access.token_file
            raise FailedPrecondition(
                f"[kubernetes] token_file {where} cannot be read: {error.strerror}; name the one of S2CS's account"
            ) from None
        return self._client, {"authorization": f"Bearer {token}"}

    def _path(self, path: str) -> str:
        return path if path.startswith("/") else f"/api/v1/namespaces/{self.namespace}/{path}"

    def strange(self, what: str) -> Unavailable:
        """Say that something else answers, or what was said has been changed on the way."""
        return Unavailable(
            f"what answers at {self._access.address} says {what}, which the Kubernetes API does not; "
            "is [kubernetes] api right?"
        )

    def _silent(self, error: Exception) -> Unavailable:
        why = str(error) or type(error).__name__
        return Unavailable(
            f"the Kubernetes API at {self._access.address} does not answer ({printable(why)}); "
            "is it up, and [kubernetes] api right?"
        )

    def _refused(self, response: httpx.Response) -> ScistreamError:
        why = _message(response)
        match response.status_code:
            case httpx.codes.UNAUTHORIZED:
                return FailedPrecondition(
                    f"the Kubernetes API does not know the token in {self._access.token_file}; renew it"
                )
            case httpx.codes.FORBIDDEN if "exceeded quota" in why:
                return ResourceExhausted(f"the cluster's quota has no room for the session: {why}")
            case httpx.codes.FORBIDDEN if _FORBIDDEN in why:
                return FailedPrecondition(f"the cluster does not let S2CS do it: {why}; {_MEND}")
            case httpx.codes.FORBIDDEN | httpx.codes.UNPROCESSABLE_ENTITY | httpx.codes.BAD_REQUEST:
                return FailedPrecondition(f"the cluster does not take it: {why}; mend [kubernetes], or the cluster")
            case httpx.codes.NOT_FOUND:
                return NotFound(f"the cluster does not have it: {why}; is [kubernetes] namespace right?")
            case httpx.codes.GONE:
                return Outdated(why)
            case _:
                return Unavailable(f"the Kubernetes API refuses: {why}; try again, or look at the cluster")


async def _changes(response: httpx.Response) -> AsyncIterator[Any]:
    async for line in response.aiter_lines():
        try:
            change = json.loads(line)
        except ValueError:
            return  # cut short
        if change["type"] == "ERROR":
            raise Outdated(str(change["object"].get("message", "")))
        yield change


def _message(response: httpx.Response) -> str:
    try:
        why = str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        why = f"status {response.status_code}"
    return printable(" ".join(why.split()))[:400]
