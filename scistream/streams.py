"""The standard streams of a program, where whoever started it has closed them."""

from __future__ import annotations

import os
import sys


def open_streams() -> None:
    """Put nothing in the place of closed standard streams: what is opened next would become them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            reading = number == 0
            assert os.open(os.devnull, os.O_RDONLY if reading else os.O_WRONLY) == number
            setattr(sys, name, open(number, "r" if reading else "w", encoding="utf-8"))  # noqa: PTH123, SIM115


def settle() -> bool:
    """Drop what standard output and error cannot take any more: Python would complain once more at its end.

    Returns:
        True when there was nothing to drop.
    """
    settled = True
    for stream in (sys.stdout, sys.stderr):
        if stream is None or stream.closed:
            continue
        try:
            stream.flush()
        except OSError:
            settled = False
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return settled
