"""The data server's directory: its own and nobody else's, since what is no tunnel in it is cleared away."""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import suppress
from pathlib import Path

from s2cs.s2ds.backends import BACKENDS
from s2cs.s2ds.confinement import Confinement
from s2cs.s2ds.router import FILES
from scistream.errors import FailedPrecondition

_CONFIGS = "|".join(map(re.escape, (*(backend.config for backend in BACKENDS.values()), *FILES)))
_OF_A_TUNNEL = re.compile(
    rf"\d+|run|next|key\.pem|tunnel\.json|traffic\.(json|new)|(proxy|check)-\d+\.(log|handle|sock)|{_CONFIGS}"
)


def hold(directory: Path, confinement: Confinement) -> int:
    """Make the directory, and hold it against a second server, which would end this one's proxies; a descriptor.

    Raises:
        FailedPrecondition: it cannot be made, is not S2DS's alone, is held by another server, or proxies cannot pass.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_own(directory)
        directory.chmod(0o711 if confinement.switches else 0o700)  # a proxy has to pass to its own
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FailedPrecondition(
            f"directory {directory} cannot be used ({error.strerror}); make it writable for this user"
        ) from None
    if (closed := confinement.closed(directory / "lock")) is not None:
        os.close(lock)
        raise FailedPrecondition(
            f"proxies run as {confinement.user} and cannot pass {closed} on the way to {directory}; "
            "name another [server] runtime_dir, or another [s2ds] user"
        )
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise FailedPrecondition(
            f"directory {directory} is used by another data server; stop that one, or use another directory"
        ) from None
    return lock


def _check_own(directory: Path) -> None:
    """Refuse a directory that others use, too, as /run and /dev/shm: theirs would be cleared away."""
    status = directory.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise FailedPrecondition(
            f"directory {directory} is not this user's alone; name one below it, which is made, as [server] runtime_dir"
        )
    for path in directory.iterdir():
        names: list[str] = []
        with suppress(FileNotFoundError, NotADirectoryError):
            names = os.listdir(path)  # noqa: PTH208 - names
        if "tunnel.json" not in names and not all(map(_OF_A_TUNNEL.fullmatch, names)):
            raise FailedPrecondition(
                f"directory {directory} holds {path.name}, which is no tunnel of S2DS; "
                "name a directory of its own as [server] runtime_dir"
            )
