"""Where keys of sessions are: on a memory file system where there is one, so that none outlives the machine's power.

`tunnels` in the state directory is a link to it, which the next server follows: proxies outlive a server.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from s2cs.node_settings import NodeSettings
from s2cs.settings import Settings
from scistream.errors import FailedPrecondition

_LINK = "tunnels"
_SYSTEM_USERS = 1000  # below; systemd-logind removes what others leave in shared memory when they log out (RemoveIPC)


def tunnels(settings: Settings | NodeSettings) -> Path:
    """Find the data server's directory, and make it where there is none.

    Raises:
        FailedPrecondition: it cannot be made.
    """
    link = settings.server.state_dir / _LINK
    if settings.server.runtime_dir != "auto":
        return _made(settings.server.runtime_dir)
    if link.is_symlink():
        found = Path(os.readlink(link))  # noqa: PTH115 - the place, whether it is there or not
        if _is_ours(found):
            return found
        link.unlink()
    elif link.is_dir() and any(path.is_dir() for path in link.iterdir()):
        return link.resolve()  # tunnels that live are where they were begun
    for place in _places():
        directory = place / f"scistream-{secrets.token_hex(8)}"
        try:
            directory.mkdir(mode=0o700)
            if link.is_dir():
                shutil.rmtree(link)
            link.symlink_to(directory)
        except OSError:
            shutil.rmtree(directory, ignore_errors=True)
            continue
        return directory
    return _made(link).resolve()


def in_memory(path: Path) -> bool:
    """Tell whether a path, or the part of it that exists, is on a file system that ends with the power."""
    path = path.resolve()
    while not path.exists():
        path = path.parent
    mounts = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind = line.split()[:3]
        mounts[Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), place))] = kind
    return next((mounts[each] for each in (path, *path.parents) if each in mounts), "") in ("tmpfs", "ramfs")


def forget(settings: Settings | NodeSettings) -> None:
    """Remove the directory, and the link to it, when no session is left in it."""
    link = settings.server.state_dir / _LINK
    if settings.server.runtime_dir == "auto" and link.is_symlink():
        directory = link.resolve()
        with suppress(OSError):
            if not any(path.is_dir() for path in directory.iterdir()):
                link.unlink()
                shutil.rmtree(directory)


def place(settings: Settings | NodeSettings) -> Path:
    """Say where keys are, or would be."""
    if settings.server.runtime_dir != "auto":
        return settings.server.runtime_dir
    link = settings.server.state_dir / _LINK
    return link.resolve() if link.exists() else next(_places(), link)


def _places() -> Iterator[Path]:
    if given := os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]:  # by systemd; the unit's alone, and kept
        path = Path(given)
        if path.is_dir() and in_memory(path) and os.access(path, os.W_OK | os.X_OK):
            yield path
    for path in (Path("/run"), Path("/dev", "shm")):
        if os.geteuid() < _SYSTEM_USERS and path.is_dir() and in_memory(path) and os.access(path, os.W_OK | os.X_OK):
            yield path


def _is_ours(directory: Path) -> bool:
    """Tell whether a directory is there and this user's alone: in a place for all, somebody else could have made it."""
    try:
        status = directory.lstat()
    except OSError:
        return False
    return directory.is_dir() and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _made(directory: Path) -> Path:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise FailedPrecondition(
            f"runtime directory {directory} cannot be made: {error.strerror}; mend it or change [server] runtime_dir"
        ) from None
    return directory
