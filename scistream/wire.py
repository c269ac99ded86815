"""The control channel: TLS 1.3 with bounds, and errors as gRPC statuses.

TLS 1.3 alone is left by what this package's `__init__` sets for gRPC.
"""

from __future__ import annotations

import grpc
import grpc.aio

from scistream.errors import BY_STATUS, ScistreamError, TryAgain

# Import grpc from here: what it needs has been set by then.
__all__ = [
    "AGAIN",
    "CHANNEL_OPTIONS",
    "MAX_ANSWER_BYTES",
    "MAX_MESSAGE_BYTES",
    "MAX_METADATA_BYTES",
    "OWN_WORDS",
    "error_from",
    "grpc",
    "marks_of",
    "status_of",
]

# The trailing metadata of an error that a gateway means, with its status: what the network makes up has none.
OWN_WORDS = "scistream-status"
AGAIN = "scistream-again"  # beside it: nothing was done, and the same call may well succeed in a moment

MAX_MESSAGE_BYTES = 256 * 1024  # what a gateway takes
MAX_ANSWER_BYTES = 64 * 2**20  # what a client takes: a list of as many sessions as a gateway may have
MAX_METADATA_BYTES = 16 * 1024

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
]


def status_of(error: ScistreamError) -> grpc.StatusCode:
    """Give the gRPC status that an error travels as."""
    return grpc.StatusCode[error.status]


def marks_of(error: ScistreamError) -> tuple[tuple[str, str], ...]:
    """Give the trailing metadata of an error."""
    return ((OWN_WORDS, error.status), *(((AGAIN, "yes"),) if isinstance(error, TryAgain) else ()))


def error_from(status: grpc.StatusCode, details: str) -> ScistreamError:
    """Give the error that a gRPC status stands for."""
    return BY_STATUS.get(status.name, ScistreamError)(details)
