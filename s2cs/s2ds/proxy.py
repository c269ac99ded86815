"""A proxy of a tunnel as its process and its own files, and how to see what it is doing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from s2cs.s2ds import procfs
from s2cs.s2ds.backends.base import Backend, View
from s2cs.s2ds.launchers.base import Running
from s2cs.s2ds.logs import SessionLog, last_words
from scistream.errors import Unavailable

_POLL_S = 0.001, 0.02  # between looks at a starting proxy: first, and most


@dataclass(frozen=True, slots=True)
class Proxy:
    """A process of the tunnel with the files that are its own.

    Each writes a log of its own: HAProxy clears O_APPEND, so two in one file would write over each other.
    """

    process: Running
    log: SessionLog
    handle: Path

    def forget(self) -> None:
        """Remove its files when it has ended."""
        self.log.end()
        clear(self.handle)


def handles(directory: Path) -> list[tuple[int, Path]]:
    """Find the handle files of a tunnel's proxies, the oldest first."""
    found = ((path.stem.removeprefix("proxy-"), path) for path in directory.glob("proxy-*.handle"))
    return sorted((int(number), path) for number, path in found if number.isdigit())


def log_of(handle: Path) -> Path:
    """Say where the process of a handle logs."""
    return handle.with_suffix(".log")


def clear(handle: Path) -> None:
    """Remove the files of a process that has ended."""
    log_of(handle).unlink(missing_ok=True)
    handle.unlink(missing_ok=True)


async def until_serving(
    proxy: Proxy,
    backend: Backend,
    inodes: frozenset[int],
    timeout_s: float,
    offset: int = 0,
    before: frozenset[int] | None = None,
) -> None:
    """Wait until a proxy serves all listeners.

    Args:
        proxy: which.
        backend: what it is.
        inodes: of the listening sockets.
        timeout_s: how long it may take.
        offset: how much it had logged before a reload.
        before: the children it had before a reload; None at a start.

    Raises:
        Unavailable: it died, refused its new configuration, or took too long.
    """
    process, log = proxy.process, proxy.log
    deadline = time.monotonic() + timeout_s
    pause, longest = _POLL_S
    fault = f"did not serve within {timeout_s:g} s"
    while time.monotonic() < deadline:
        if process.ended:
            fault = process.ended
            break
        said = log.since(offset) if before is not None else ""
        if before is not None and backend.refusal.search(said):
            fault = "refused its new configuration"
            break
        if backend.serves(View(process.pid, proxy.handle.parent, inodes, before, said)):
            return
        await process.wait(pause)
        pause = min(pause * 1.2, longest)
    raise Unavailable(f"{backend.name} {fault}{last_words(log.since(offset))}")


async def until_released(proxy: Proxy, inodes: frozenset[int], timeout_s: float) -> None:
    """Wait until a proxy that drains has closed the listeners: before, it may take a connection yet."""
    process = proxy.process
    deadline = time.monotonic() + timeout_s
    while inodes & procfs.sockets(process.pid) and time.monotonic() < deadline:
        await process.wait(_POLL_S[0])
