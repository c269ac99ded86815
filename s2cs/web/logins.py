"""Who is logged in to the page: in memory only, and for as long as the credentials are good."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from s2cs.auth import digest
from scistream.errors import ResourceExhausted

_MOST = 256  # log-ins
_MOST_EACH = 8  # of one user; one more ends the oldest
_MOST_STREAMS = 64
_MOST_STREAMS_EACH = 4  # of one log-in: windows of one browser
_MOST_STREAMS_USER = 8  # of one user


class Bounds(Protocol):
    """How long a log-in lasts, as `[web]` has it."""

    @property
    def idle(self) -> int:
        """Seconds that nobody looks."""
        ...

    @property
    def life(self) -> int:
        """Seconds in all."""
        ...


@dataclass(eq=False)
class Login:
    """One log-in: the credentials that it was made with, and its end."""

    token: str = field(repr=False)
    owner: str  # the user's id
    began: float
    used: float
    streams: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Logins:
    """Keep log-ins by the hash of their cookie."""

    def __init__(self, bounds: Callable[[], Bounds], clock: Callable[[], float] = time.monotonic) -> None:
        """Keep none yet.

        Args:
            bounds: gives the settings in force.
            clock: seconds.
        """
        self._bounds = bounds
        self._clock = clock
        self._by_cookie: dict[bytes, Login] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._by_cookie)

    def open(self, token: str, owner: str) -> str:
        """Log a user in; the cookie, which is known nowhere else.

        Where there are too many, whoever has most of them loses the oldest: a few users keep nobody else out.

        Raises:
            ResourceExhausted: too many are logged in, each of them once.
        """
        for known in list(self._by_cookie):
            self._alive(known)
        if len(self._of(owner)) >= _MOST_EACH:
            self._end(self._of(owner)[0])
        if len(self._by_cookie) >= _MOST:
            ((most, count),) = Counter(login.owner for login in self._by_cookie.values()).most_common(1)
            if count == 1:
                raise ResourceExhausted(f"{_MOST} are logged in to this page already; wait until one has gone")
            self._end(self._of(most)[0])
        cookie, now = secrets.token_urlsafe(32), self._clock()
        self._by_cookie[digest(cookie)] = Login(token, owner, now, now)
        return cookie

    def find(self, cookie: str) -> Login | None:
        """Give the log-in of a cookie, if it has not ended; it is in use now."""
        login = self._alive(digest(cookie))
        if login is not None:
            login.used = self._clock()
        return login

    def lasts(self, login: Login) -> bool:
        """Tell whether a log-in that is looked with may go on."""
        return not login.over.is_set() and self._clock() - login.began <= self._bounds().life

    def close(self, cookie: str) -> None:
        """End a log-in, and what it looks at."""
        self._end(digest(cookie))

    def close_all(self, of: Callable[[str], bool] = lambda owner: True) -> None:
        """End all that there are, or those of some users, by their ids."""
        for cookie, login in list(self._by_cookie.items()):
            if of(login.owner):
                self._end(cookie)

    def attach(self, login: Login) -> None:
        """Count one more stream of a log-in.

        Raises:
            ResourceExhausted: there are too many.
        """
        own = sum(self._by_cookie[cookie].streams for cookie in self._of(login.owner))
        total = sum(each.streams for each in self._by_cookie.values())
        if login.streams >= _MOST_STREAMS_EACH or own >= _MOST_STREAMS_USER or total >= _MOST_STREAMS:
            raise ResourceExhausted("too many windows look at this page already; close one")
        login.streams += 1

    def detach(self, login: Login) -> None:
        """Count one less."""
        login.streams -= 1
        login.used = self._clock()

    def _of(self, owner: str) -> list[bytes]:
        """Give a user's log-ins, oldest first."""
        return [known for known, login in self._by_cookie.items() if login.owner == owner]

    def _alive(self, cookie: bytes) -> Login | None:
        login, now, bounds = self._by_cookie.get(cookie), self._clock(), self._bounds()
        if login is None:
            return None
        if not self.lasts(login) or (not login.streams and now - login.used > bounds.idle):
            self._end(cookie)
            return None
        return login

    def _end(self, cookie: bytes) -> None:
        if (login := self._by_cookie.pop(cookie, None)) is not None:
            login.over.set()
