"""Ports for tests, disjoint between all the test processes of this machine."""

from __future__ import annotations

import fcntl
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from scistream.vocabulary import PortRange

BLOCK = 100  # ports that are held together
_FIRST, _LAST = 10_000, 32_000  # below the ephemeral ports, so that nothing else takes them
_REST = 10  # holders whose ports rest
_held: list[IO[str]] = []
_resting: deque[list[IO[str]]] = deque()
_next = _FIRST


@contextmanager
def ports(count: int = BLOCK) -> Iterator[PortRange]:
    """Hold a range of up to 100 ports that no other test uses."""
    with port_blocks() as first:
        yield PortRange(first, first + count - 1)


@contextmanager
def port_blocks(blocks: int = 1) -> Iterator[int]:
    """Hold `blocks` x 100 ports that no other test of this machine uses; the first of them.

    They stay nobody's for a while afterwards, as a test may see that nobody answers there any more.
    """
    first, files = _hold(blocks)
    try:
        yield first
    finally:
        _resting.append(files)
        if len(_resting) > _REST:
            _let_go(_resting.popleft())


def port_block(blocks: int = 1) -> int:
    """Give the first of `blocks` x 100 ports that no other test of this machine uses, until this process ends."""
    first, files = _hold(blocks)
    _held.extend(files)
    return first


def _hold(blocks: int) -> tuple[int, list[IO[str]]]:
    """Lock the files that stand for so many blocks in a row, long after those that this process had last."""
    global _next  # noqa: PLW0603
    directory = Path(tempfile.gettempdir()) / "scistream-test-ports"
    directory.mkdir(exist_ok=True)
    taken: list[IO[str]] = []
    for first in (*range(_next, _LAST, BLOCK), *range(_FIRST, _LAST, BLOCK)):
        if first == _FIRST:
            _let_go(taken)  # they are in no row with this one
            taken = []
        file = (directory / str(first)).open("w")
        if not _lock(file) or _used(first):
            _let_go([file, *taken])
            taken = []
            continue
        taken.append(file)
        if len(taken) == blocks:
            _next = first + BLOCK
            return first - (blocks - 1) * BLOCK, taken
    _let_go(taken)
    raise RuntimeError("all port blocks are taken")


def _let_go(files: list[IO[str]]) -> None:
    for file in files:
        file.close()


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _used(first: int) -> bool:
    """Tell whether somebody is there without having asked."""
    tables = [Path(name).read_text().splitlines()[1:] for name in ("/proc/net/tcp", "/proc/net/tcp6")]
    local = (line.split()[1] for table in tables for line in table)
    return any(first <= int(address.rpartition(":")[2], 16) < first + BLOCK for address in local)
