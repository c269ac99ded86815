"""The pods of a gateway, as the cluster has them now: listed once, and then followed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from s2cs.s2ds.kubernetes import reading
from s2cs.s2ds.kubernetes.api import Api, Outdated
from s2cs.s2ds.kubernetes.reading import Pod
from scistream.errors import NotFound, ScistreamError, Unavailable

log = logging.getLogger(__name__)

_AGAIN_S = 1.0


class Pods:
    """Know all pods of a label. What changes is told, and whoever waits for a pod is woken."""

    def __init__(self, api: Api, selector: str, changed: Callable[[str, Pod | None], None]) -> None:
        """Make it; `changed` is told each pod that is not as it was, None when it is gone."""
        self._api = api
        self._selector = selector
        self._changed = changed
        self._pods: dict[str, Pod] = {}
        self._news = asyncio.Condition()
        self._following: asyncio.Task[None] | None = None
        self._version = ""

    def __iter__(self) -> Iterator[Pod]:
        return iter(tuple(self._pods.values()))

    def get(self, name: str) -> Pod | None:
        """Give a pod as it is now; None when there is none."""
        return self._pods.get(name)

    def present(self, name: str) -> Pod:
        """Give a pod that is to be there.

        Raises:
            Unavailable: it is not, or not for long.
        """
        pod = self.get(name)
        if pod is None or reading.leaves(pod):
            raise Unavailable(f"pod {name} was deleted before it ran; see who deletes pods of S2CS")
        return pod

    async def open(self) -> None:
        """List them, and begin to follow.

        Raises:
            FailedPrecondition, Unavailable: they cannot be listed.
        """
        await self._list()
        self._following = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Follow them no more."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)

    async def create(self, manifest: dict[str, Any]) -> Pod:
        """Make a pod."""
        made: Pod = await self._api.ask("POST", "pods", manifest)
        self._pods.setdefault(reading.name(made), made)  # what was followed may be newer
        return made

    async def delete(self, name: str) -> bool:
        """Order a pod's end; False when there is none."""
        try:
            await self._api.ask("DELETE", f"pods/{name}")
        except NotFound:
            return False
        return True

    async def until(self, name: str, holds: Callable[[Pod | None], bool], timeout_s: float) -> bool:
        """Wait for something to hold of a pod; False if it does not in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._news:
                await self._news.wait_for(lambda: holds(self._pods.get(name)))
                return True
        return False

    async def _list(self) -> None:
        before = tuple(self._pods)  # one that is made meanwhile may not be in the answer
        found = await self._api.ask("GET", "pods", labelSelector=self._selector)
        try:
            version, pods = found["metadata"]["resourceVersion"], {reading.name(pod): pod for pod in found["items"]}
        except (KeyError, TypeError):
            raise self._api.strange("no list of pods") from None
        self._version = version
        for name in [*(name for name in before if name not in pods), *pods]:
            await self._note(name, pods.get(name))

    async def _note(self, name: str, pod: Pod | None) -> None:
        if pod is None:
            self._pods.pop(name, None)
        else:
            self._pods[name] = pod
        self._changed(name, pod)
        async with self._news:
            self._news.notify_all()

    async def _follow(self) -> None:
        """Follow for ever; after each silence of the API they are listed, as something may have been missed."""
        silent, missed = False, False
        while True:
            begin = time.monotonic()
            try:
                if not missed:
                    await self._watch()
                    await asyncio.sleep(begin + _AGAIN_S - time.monotonic())  # if it has ended at once
                await self._list()
                silent = missed = False
                continue
            except Outdated:
                pass
            except ScistreamError as error:
                if not silent:
                    log.warning("%s; sessions that run go on", error)
                silent = True
            except Exception:
                log.exception("the cluster's news could not be taken")
            missed = True
            await asyncio.sleep(_AGAIN_S)

    async def _watch(self) -> None:
        """Take news until the API ends the watch."""
        query = {"labelSelector": self._selector, "resourceVersion": self._version}
        async with self._api.watch("pods", **query) as changes:
            async for change in changes:
                pod = change["object"]
                self._version = pod["metadata"]["resourceVersion"]
                await self._note(reading.name(pod), None if change["type"] == "DELETED" else pod)
