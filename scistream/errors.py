"""What can go wrong, as one shallow tree.

Each class carries the gRPC status it travels as and the exit status a command line ends with. The
message is one sentence that names the thing and says what mends it.
"""

from __future__ import annotations

from typing import ClassVar


class ScistreamError(Exception):
    """Say what went wrong in one sentence; the base of all that this project raises on purpose."""

    status: ClassVar[str] = "INTERNAL"
    exit_status: ClassVar[int] = 1


class InvalidArgument(ScistreamError):
    """A value that no state of the system could accept."""

    status = "INVALID_ARGUMENT"
    exit_status = 2


class NotFound(ScistreamError):
    """No such session, or somebody else's: the two look alike."""

    status = "NOT_FOUND"
    exit_status = 5


class AlreadyExists(ScistreamError):
    """The uid is taken by a live session of other content."""

    status = "ALREADY_EXISTS"


class FailedPrecondition(ScistreamError):
    """A good request at the wrong moment, or one that this gateway is not set up for."""

    status = "FAILED_PRECONDITION"


class ResourceExhausted(ScistreamError):
    """Ports, sessions or another capacity are used up."""

    status = "RESOURCE_EXHAUSTED"
    exit_status = 6


class Unauthenticated(ScistreamError):
    """No credentials, or wrong ones."""

    status = "UNAUTHENTICATED"
    exit_status = 3


class PermissionDenied(ScistreamError):
    """Known, but not allowed."""

    status = "PERMISSION_DENIED"
    exit_status = 3


class DeadlineExceeded(ScistreamError):
    """A wait came to its end."""

    status = "DEADLINE_EXCEEDED"
    exit_status = 4


class Unavailable(ScistreamError):
    """The other side cannot be reached, or cannot serve now."""

    status = "UNAVAILABLE"
    exit_status = 4


class TryAgain(Unavailable):
    """Nothing can be done for a moment: the same call is worth another attempt soon."""


def _tree(base: type[ScistreamError]) -> dict[str, type[ScistreamError]]:
    return {cls.status: cls for cls in [base, *base.__subclasses__()]}


BY_STATUS: dict[str, type[ScistreamError]] = _tree(ScistreamError)
"""Each gRPC status name with the class that stands for it."""
