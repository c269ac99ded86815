"""A container engine: the calls of Docker's API that a data server needs, over the engine's Unix socket.

Podman's service answers the same calls.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from scistream.errors import Unavailable

_T = TypeVar("_T")

_TIMEOUT_S = 30.0
_END_S = 10.0  # how long the engine may take to see that a container has ended, when its process has


class NoSuch(Unavailable):
    """The engine knows no such image or container."""


@dataclass(frozen=True, slots=True)
class End:
    """How a container ended."""

    code: int
    out_of_memory: bool


class Engine:
    """An engine. Nothing is kept open between calls."""

    def __init__(self, where: Path) -> None:
        self._socket = where

    def ask(self, method: str, path: str, body: Any = None, timeout_s: float = _TIMEOUT_S, **query: str) -> Any:
        """Make a call, and give what it answers.

        Raises:
            NoSuch: there is no such image or container.
            Unavailable: the engine does not answer, or refuses.
        """
        self._try()
        transport = httpx.HTTPTransport(uds=str(self._socket), verify=False)
        try:
            with httpx.Client(transport=transport, trust_env=False, timeout=timeout_s) as client:
                return self._read(client.request(method, f"http://engine/{path}", json=body, params=query))
        except httpx.HTTPError as error:
            raise self._silent(error) from None

    async def call(self, method: str, path: str, body: Any = None, timeout_s: float = _TIMEOUT_S, **query: str) -> Any:
        """Make a call, and let others run meanwhile. See `ask`."""
        transport = httpx.AsyncHTTPTransport(uds=str(self._socket), verify=False)
        try:
            async with httpx.AsyncClient(transport=transport, trust_env=False, timeout=timeout_s) as client:
                return self._read(await client.request(method, f"http://engine/{path}", json=body, params=query))
        except httpx.HTTPError as error:
            raise self._silent(error) from None

    def image(self, name: str) -> str:
        """Find the identity of an image by its name.

        Raises:
            NoSuch: it is not there.
        """
        return self.part(self.ask("GET", f"images/{name}/json"), "Id", str)

    def prune(self, label: str, age_s: int) -> None:
        """Remove the containers with a label that do not run and were made before that."""
        filters = json.dumps({"label": [label], "until": [f"{age_s}s"]})
        self.ask("POST", "containers/prune", filters=filters)

    async def end_of(self, container: str) -> End:
        """Wait for the engine to see the end of a container whose process has ended."""
        await self.call("POST", f"containers/{container}/wait", timeout_s=_END_S)
        state = await self.state(container)
        return End(self.part(state, "ExitCode", int), bool(state.get("OOMKilled")))

    async def state(self, container: str) -> dict[str, Any]:
        """Tell how a container is: `Running`, `Pid`, `ExitCode`, ..."""
        return self.part(await self.call("GET", f"containers/{container}/json"), "State", dict)

    async def said(self, container: str) -> str:
        """What a container said before its program took over the tunnel's log."""
        return text_of(await self.call("GET", f"containers/{container}/logs", stdout="1", stderr="1", tail="20"))

    async def remove(self, container: str) -> None:
        """Remove a container with its volumes, running or not; harmless when it is not there."""
        try:
            await self.call("DELETE", f"containers/{container}", force="1", v="1")
        except NoSuch:
            return

    async def named(self, labels: Mapping[str, str]) -> list[str]:
        """The names of all containers with these labels, running or not."""
        filters = json.dumps({"label": [f"{name}={value}" for name, value in labels.items()]})
        found = await self.call("GET", "containers/json", all="1", filters=filters)
        if not isinstance(found, list):
            raise self._strange()
        return [str(name).removeprefix("/") for each in found for name in self.part(each, "Names", list)[:1]]

    def part(self, answer: Any, name: str, kind: type[_T]) -> _T:
        """Take a part of an answer.

        Raises:
            Unavailable: there is none, or it is of another type.
        """
        found = answer.get(name) if isinstance(answer, dict) else None
        if not isinstance(found, kind):
            raise self._strange()
        return found

    def _strange(self) -> Unavailable:
        return Unavailable(f"what answers at {self._socket} is no container engine; correct [s2ds] engine")

    def _read(self, response: httpx.Response) -> Any:
        if response.is_success or response.status_code == httpx.codes.NOT_MODIFIED:
            if not (response.headers.get("content-type", "").startswith("application/json") and response.content):
                return response.content
            try:
                return response.json()
            except ValueError:
                raise self._strange() from None
        try:
            why = str(response.json()["message"])
        except (ValueError, KeyError, TypeError):
            why = f"status {response.status_code}"
        kind = NoSuch if response.status_code == httpx.codes.NOT_FOUND else Unavailable
        raise kind(f"the container engine refuses: {' '.join(why.split())[:300]}")

    def _try(self) -> None:
        """Connect once by hand: httpcore would leave a socket that cannot be connected to the collector."""
        with socket.socket(socket.AF_UNIX) as trial:
            try:
                trial.connect(str(self._socket))
            except OSError as error:
                raise self._silent(error) from None

    def _silent(self, error: Exception) -> Unavailable:
        if isinstance(error, PermissionError):
            return Unavailable(
                f"the container engine at {self._socket} is not open to this user; make it one of the socket's group"
            )
        why = str(error).rpartition("] ")[2] or type(error).__name__
        return Unavailable(
            f"the container engine at {self._socket} does not answer ({why}); start it, or correct [s2ds] engine"
        )


def text_of(frames: Any) -> str:
    """Read an engine's log, if it is one: each part has a header of 8 bytes, with its length in the last 4."""
    parts, at = [], 0
    frames = frames if isinstance(frames, bytes) else b""
    while at + 8 <= len(frames):
        size = int.from_bytes(frames[at + 4 : at + 8], "big")
        parts.append(frames[at + 8 : at + 8 + size])
        at += 8 + size
    return b"".join(parts).decode(errors="replace")
