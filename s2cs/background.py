"""Tasks that go on beside whoever began them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class Background:
    """Keep tasks until they end; an event loop alone may forget them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Begin something, and go on."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def cancel(self) -> None:
        """Tell all to end."""
        for task in self._tasks:
            task.cancel()

    async def ended(self) -> None:
        """Wait for the end of all that are there now, whatever it is."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
