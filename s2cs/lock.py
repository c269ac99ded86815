"""One server for one state directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from s2cs.settings import Settings
from scistream.errors import FailedPrecondition

_LOCK = "lock"  # in the state directory; holds the process id


def locked(directory: Path) -> IO[str]:
    """Make the state directory and hold it against a second server."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (directory / _LOCK).open("a+")
    except OSError as error:
        raise FailedPrecondition(
            f"state directory {directory} cannot be used: {error.strerror}; mend it or change [server] state_dir"
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise FailedPrecondition(f"another s2cs runs on state directory {directory}; stop it first") from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def running_pid(settings: Settings) -> int | None:
    """Tell which process serves these settings' state directory, by its lock; None when none does."""
    try:
        with (settings.server.state_dir / _LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int((settings.server.state_dir / _LOCK).read_text())
    except OSError:
        pass
    return None
