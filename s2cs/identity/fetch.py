"""Asking an issuer: bounded in time and size, and only over TLS or on loopback."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path
from typing import Any

import httpx

from s2cs.identity.settings import is_safe_url
from scistream.errors import FailedPrecondition, Unavailable

_ANSWER_BYTES = 256 * 1024
_WAIT_S = 5.0  # for a connection, or for the next bytes
_WHOLE_S = 10.0


class Fetcher:
    """Ask for JSON documents.

    Args:
        ca: PEM file with the CAs to trust; None is those that this host trusts.

    Raises:
        FailedPrecondition: the CA file cannot be used.
    """

    def __init__(self, ca: Path | None = None) -> None:
        try:
            trust = ssl.create_default_context(cafile=ca)
        except (OSError, ssl.SSLError) as error:
            raise FailedPrecondition(f"CA {ca} cannot be used: {error.strerror or error}; mend [auth]") from None
        limits = httpx.Limits(max_connections=16, keepalive_expiry=30)
        self._client = httpx.AsyncClient(verify=trust, timeout=_WAIT_S, limits=limits, follow_redirects=False)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()

    async def get(self, url: str) -> dict[str, Any]:
        """Get a JSON object.

        Raises:
            Unavailable: it cannot be had; the message is for the operator.
        """
        return await self._ask("GET", url)

    async def post(self, url: str, form: dict[str, str], authorization: str) -> dict[str, Any]:
        """Send a form; the JSON object that is the answer.

        Raises:
            Unavailable: there is none; the message is for the operator.
        """
        return await self._ask("POST", url, data=form, headers={"authorization": authorization})

    async def _ask(self, method: str, url: str, **more: Any) -> dict[str, Any]:
        if not is_safe_url(url):
            raise Unavailable(f"{url} is not asked: it is neither https nor on loopback")
        headers = {"accept": "application/json", "accept-encoding": "identity", **more.pop("headers", {})}
        try:
            async with (
                asyncio.timeout(_WHOLE_S),
                self._client.stream(method, url, headers=headers, **more) as answer,
            ):
                if answer.status_code != 200:
                    raise Unavailable(f"{url} answers {answer.status_code}")
                body = bytearray()
                async for part in answer.aiter_raw():
                    body += part
                    if len(body) > _ANSWER_BYTES:
                        raise Unavailable(f"{url} answers with more than {_ANSWER_BYTES} bytes")
        except TimeoutError:
            raise Unavailable(f"{url} does not answer within {_WHOLE_S:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise Unavailable(f"{url} cannot be reached: {error or type(error).__name__}") from None
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            raise Unavailable(f"{url} does not answer with JSON") from None
        if not isinstance(document, dict):
            raise Unavailable(f"{url} does not answer with a JSON object")
        return document
