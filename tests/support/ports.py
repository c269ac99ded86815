"""Ports for tests, disjoint between all the test processes of this machine."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scistream.vocabulary import PortRange

_BLOCK, _FIRST, _LAST = 100, 10_000, 32_000  # below the ephemeral ports, so that nothing else takes them


@contextmanager
def ports(count: int = _BLOCK) -> Iterator[PortRange]:
    """Hold a range of up to 100 ports that no other test uses."""
    directory = Path(tempfile.gettempdir()) / "scistream-test-ports"
    directory.mkdir(exist_ok=True)
    for first in range(_FIRST, _LAST, _BLOCK):
        with (directory / str(first)).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield PortRange(first, first + count - 1)
            return
    raise RuntimeError("all port blocks are taken")
