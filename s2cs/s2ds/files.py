"""A tunnel's files: secret, and written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scistream.errors import ResourceExhausted


def write(path: Path, content: bytes) -> None:
    """Write a new file that only this user reads."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)


@contextmanager
def room(directory: Path) -> Iterator[None]:
    """Turn a full or read-only disk into one sentence.

    Raises:
        ResourceExhausted: something below the directory could not be written.
    """
    try:
        yield
    except OSError as error:
        raise ResourceExhausted(
            f"{error.filename or directory} cannot be written ({error.strerror}); the operator makes room there"
        ) from None
