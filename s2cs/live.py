"""A session while this process runs: its present state, who waits for it, who watches it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import Enum
from math import inf

from s2cs.s2ds.contract import Traffic, TunnelStatus
from scistream.errors import ScistreamError, Unavailable
from scistream.machine import Session

_BACKLOG = 256  # events a watcher may be behind


class News(Enum):
    """The kinds of events that watchers get."""

    STATE = "state"
    PROD_LISTENERS = "prod_listeners"
    EXPIRY = "expiry"
    DATA_SERVER = "data_server"


@dataclass(frozen=True, slots=True)
class Item:
    """One event: the session after it, and a sentence."""

    kind: News
    session: Session
    message: str = ""


@dataclass(frozen=True, slots=True)
class Listed:
    """One session of a list; a long list comes often, and most of it is what it was."""

    live: Live
    session: Session
    tunnel: TunnelStatus | None  # of one that holds nothing there is none
    traffic: Traffic | None  # where it is known


class Live:
    """Hold a session, and tell whoever waits when it changes."""

    def __init__(self, session: Session, ended_at: float = inf) -> None:
        self.session = session
        self.ended_at = ended_at  # of one that ended in an earlier process, the start of this one
        self.error: ScistreamError | None = None  # why the last effect could not be carried out
        self.task: asyncio.Task[None] | None = None  # the last effect, done when all before it are
        self.cut = False  # its streams are to be cut, whoever stops it next
        self.unsure = False  # whether its node has taken over the last update; to be done again when that is in sight
        self.warned = False
        self.waiting = 0  # calls of old clients that wait for its Hello
        self.look_at = 0.0  # until then time means nothing to it
        self.traffic: Traffic | None = None  # what it moved in all, when that is known
        self.told: tuple[object, bytes] = None, b""  # a list's last words of it, and what they were made of
        self._changed = asyncio.Event()
        self._watchers: set[asyncio.Queue[Item | None]] = set()

    def become(self, session: Session) -> None:
        """Take on a new state and wake those who wait."""
        self.session = session
        self.look_at = 0.0
        self._changed.set()
        self._changed = asyncio.Event()

    def moved(self, traffic: Traffic) -> None:
        """Know what it moved in all."""
        self.traffic = traffic

    async def until(self, condition: Callable[[Session], bool]) -> Session:
        """Wait until the session fulfils a condition."""
        while not condition(self.session):
            await self._changed.wait()
        return self.session

    def publish(self, kind: News, message: str = "") -> None:
        """Send an event to the watchers; one that is too far behind is cut off."""
        item = Item(kind, self.session, message)
        for queue in list(self._watchers):
            if queue.qsize() >= _BACKLOG:
                self._watchers.discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(item)

    async def watch(self) -> AsyncIterator[Item]:
        """Follow the session: its present state, then each event, until it has ended.

        Raises:
            Unavailable: the watcher reads too slowly.
        """
        queue: asyncio.Queue[Item | None] = asyncio.Queue()
        queue.put_nowait(Item(News.STATE, self.session, self.session.reason))
        self._watchers.add(queue)
        try:
            while True:
                item = await queue.get()
                if item is None:
                    raise Unavailable(f"the watcher of session {self.session.uid} was too slow; watch it again")
                yield item
                if item.session.state.ended:
                    return
        finally:
            self._watchers.discard(queue)
