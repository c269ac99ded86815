"""Where names lead: looked up once, by a bounded number of threads, and the address is used from then on."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Callable
from typing import Any

from s2cs.policy.addresses import Address, plain
from scistream.errors import DeadlineExceeded, InvalidArgument
from scistream.vocabulary import Endpoint

_Lookup = Callable[..., list[tuple[Any, ...]]]


class Resolver:
    """Look names up, at most so many at once.

    The system's resolver cannot be interrupted. A look-up that nobody waits for any more keeps its place until it
    ends by itself, so that names that no server answers for pile no threads up.
    """

    def __init__(self, places: int = 16, timeout_s: float = 5.0, lookup: _Lookup = socket.getaddrinfo) -> None:
        """Prepare to look up.

        Args:
            places: most look-ups at once.
            timeout_s: how long a caller waits, a free place included.
            lookup: what `socket.getaddrinfo` is.
        """
        self._places = asyncio.Semaphore(places)
        self._timeout_s = timeout_s
        self._lookup = lookup

    async def addresses(self, endpoint: Endpoint) -> list[Address]:
        """Find an endpoint's addresses, with IPv4 inside IPv6 unwrapped; of an address, itself.

        Raises:
            InvalidArgument: the name does not resolve.
            DeadlineExceeded: the resolver does not answer.
        """
        if endpoint.ip is not None:
            return [plain(endpoint.ip)]
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await self._look_up(endpoint)
        except TimeoutError:
            raise DeadlineExceeded(f"host {endpoint.host} was not resolved within {self._timeout_s:.0f} s") from None
        except (OSError, UnicodeError):
            raise InvalidArgument(
                f"host {endpoint.host} does not resolve here; check the name, or give an address"
            ) from None
        texts = dict.fromkeys(str(sockaddr[0]).partition("%")[0] for *_, sockaddr in found)
        return [plain(ipaddress.ip_address(text)) for text in texts]

    async def _look_up(self, endpoint: Endpoint) -> list[tuple[Any, ...]]:
        await self._places.acquire()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[tuple[Any, ...]]] = loop.create_future()

        def look_up() -> None:
            try:
                found = self._lookup(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
                loop.call_soon_threadsafe(self._done, answer, found, None)
            except RuntimeError:
                return  # the loop has ended meanwhile
            except Exception as error:
                loop.call_soon_threadsafe(self._done, answer, [], error)

        try:
            threading.Thread(target=look_up, name=f"resolve {endpoint.host}", daemon=True).start()
        except BaseException:
            self._places.release()
            raise
        return await answer

    def _done(
        self, answer: asyncio.Future[list[tuple[Any, ...]]], found: list[tuple[Any, ...]], error: Exception | None
    ) -> None:
        self._places.release()
        if answer.done():
            return  # nobody waits for it any more
        if error is None:
            answer.set_result(found)
        else:
            answer.set_exception(error)
