"""A tunnel's files: secret, and written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scistream.errors import ResourceExhausted


def write(path: Path, content: bytes, reader: int | None = None) -> None:
    """Write a new file that only this user reads, and a group if one is named."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        if reader is not None:
            os.fchown(fd, -1, reader)
            os.fchmod(fd, 0o640)
        file.write(content)


def make(path: Path, reader: int | None = None) -> None:
    """Make a directory that only this user enters, and a group if one is named."""
    path.mkdir(mode=0o700)
    show(path, reader)


def show(path: Path, reader: int | None) -> None:
    """Let a group read a file or a directory, or nobody but this user."""
    mode = 0o700 if path.is_dir() else 0o600
    if reader is not None:
        os.chown(path, -1, reader)
        mode |= mode >> 3 & 0o050  # read, and enter
    path.chmod(mode)


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
