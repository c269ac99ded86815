"""A request to the page as a call through the door of the control channel: the same checks, counts and records."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from starlette.requests import Request

from s2cs.door import Door
from scistream.errors import ScistreamError

_Answer = TypeVar("_Answer")
_STATUS = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "FAILED_PRECONDITION": 409,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


class Refused(Exception):
    """What the door says no with."""

    def __init__(self, status: int, words: str) -> None:
        """Say it in HTTP's figures and the door's words."""
        super().__init__(words)
        self.status = status

    @classmethod
    def by(cls, error: ScistreamError) -> Refused:
        """Say what went wrong before the door was reached."""
        return cls(_STATUS.get(error.status, 500), str(error))


@dataclass(frozen=True, slots=True)
class _Context:
    """As much of gRPC's context as the door looks at."""

    client: tuple[str, int]
    token: str

    def peer(self) -> str:
        host, port = self.client
        return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [("authorization", f"Bearer {self.token}")]

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    async def abort(self, code: Any, words: str, metadata: Any) -> NoReturn:
        raise Refused(_STATUS.get(code.name, 500), words)


def _plain(message: Any) -> Any:
    return message


async def ask(
    door: Door, request: Request, token: str, method: str, message: Any, act: Callable[[Any], Awaitable[_Answer]]
) -> _Answer:
    """Do something for whoever has a token.

    Args:
        door: through which everybody goes.
        request: whose address is counted.
        token: the credentials.
        method: what it is called, in the door's table of scopes and in the audit log.
        message: what is asked, as the audit log has it.
        act: does it.

    Raises:
        Refused: it was not done.
    """

    async def inner(message: Any, context: Any) -> _Answer:
        return await act(message)

    answer: _Answer = await door.guard_unary(inner, _plain, f"/scistream.Web/{method}")(
        message, _context(request, token)
    )
    return answer


def follow(
    door: Door, request: Request, token: str, method: str, frames: Callable[[], AsyncIterator[_Answer]]
) -> AsyncIterator[_Answer]:
    """Give frame after frame for as long as the credentials are good.

    Raises:
        Refused: they are not, or not any more.
    """

    async def inner(message: Any, context: Any) -> AsyncIterator[_Answer]:
        async for frame in frames():
            yield frame

    guarded: AsyncIterator[_Answer] = door.guard_stream(inner, _plain, f"/scistream.Web/{method}")(
        None, _context(request, token)
    )
    return guarded


def _context(request: Request, token: str) -> _Context:
    client = request.client
    return _Context((client.host, client.port) if client else ("", 0), token)
