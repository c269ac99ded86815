"""Files with secrets in them: written whole, mode 0600, and read only when nobody else can."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from scistream.errors import FailedPrecondition, InvalidArgument


def private_directory(path: Path) -> None:
    """Make a directory that only its owner can look into.

    Raises:
        FailedPrecondition: the system does not let it be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise FailedPrecondition(f"{path} cannot be made: {error.strerror}; use --config DIR") from None


def write_secret(path: Path, text: str) -> None:
    """Put a file of mode 0600 in place, whole or not at all.

    Raises:
        FailedPrecondition: the system does not let it be written.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600 from the start
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                Path(name).unlink()
            raise
    except OSError as error:
        raise FailedPrecondition(f"{path} cannot be written: {error.strerror}") from None


def remove(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        FailedPrecondition: the system does not let it be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise FailedPrecondition(f"{path} cannot be removed: {error.strerror}") from None


def read_secret(path: Path) -> str:
    """Read a file that only its owner can.

    Raises:
        InvalidArgument: there is none, others can read it, or it is no text.
    """
    try:
        with path.open(encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO) and not _is_stream(path):
                raise InvalidArgument(f"{path} holds a secret and others can read it; run: chmod 600 {path}")
            return file.read(1_000_000)
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidArgument(f"{path} is not a text file") from None


def read_secret_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object that only its owner can.

    Raises:
        InvalidArgument: as `read_secret`, or it is no JSON object.
    """
    try:
        content = json.loads(read_secret(path))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InvalidArgument(f"{path} is not {what}; it may be damaged or another file; remove it, or make it anew")
    return content


def _is_stream(path: Path) -> bool:
    """True for what a shell's <(command) or a terminal gives: there the mode says nothing."""
    return path.is_fifo() or path.is_char_device()
