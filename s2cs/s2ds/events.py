"""What happens to tunnels that nobody asked for, and those who follow it."""

from __future__ import annotations

import asyncio

from s2cs.s2ds.contract import TunnelEvent


class Events:
    """Everybody who watches hears of every event from then on."""

    def __init__(self) -> None:
        self._watches: set[Watch] = set()

    def publish(self, event: TunnelEvent) -> None:
        """Tell all."""
        for watch in self._watches:
            watch.put(event)

    def watch(self) -> Watch:
        """Follow what happens from now on."""
        watch = Watch(self._watches)
        self._watches.add(watch)
        return watch

    def end(self) -> None:
        """End for all who watch."""
        for watch in list(self._watches):
            watch.end()


class Watch:
    """One reader of events."""

    def __init__(self, watches: set[Watch]) -> None:
        self._queue: asyncio.Queue[TunnelEvent | None] = asyncio.Queue()
        self._watches = watches

    def put(self, event: TunnelEvent) -> None:
        """Let the reader have an event."""
        self._queue.put_nowait(event)

    def end(self) -> None:
        """End after what was put. Ending twice is harmless."""
        self._watches.discard(self)
        self._queue.put_nowait(None)

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> TunnelEvent:
        if (event := await self._queue.get()) is None:
            self._queue.put_nowait(None)
            raise StopAsyncIteration
        return event

    async def aclose(self) -> None:
        """End it, as a generator's."""
        self.end()
