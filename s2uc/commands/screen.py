"""A part of the terminal that is drawn again and again, and given back as it was."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # the other screen, without a cursor; and back
_HOME, _TO_END_OF_LINE, _TO_END = "\x1b[H", "\x1b[K", "\x1b[J"


def redrawable() -> bool:
    """Tell whether the result goes to a terminal on which one can go back."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "")


@contextmanager
def screen() -> Iterator[Callable[[Sequence[str]], None]]:
    """Take the terminal, give what draws lines on it, and give it back whatever happens; also during Ctrl-Z."""
    before = signal.getsignal(signal.SIGTSTP)

    def pause(number: int, frame: object) -> None:
        _write(_LEAVE)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # stops here, until it is continued
        signal.signal(number, pause)
        _write(_ENTER)

    _write(_ENTER)
    try:
        signal.signal(signal.SIGTSTP, pause)
        yield _draw
    finally:
        signal.signal(signal.SIGTSTP, before)
        _write(_LEAVE)


def _draw(lines: Sequence[str]) -> None:
    height = max(1, shutil.get_terminal_size().lines)
    shown = list(lines) if len(lines) <= height else [*lines[: height - 1], f"... {len(lines) - height + 1} lines more"]
    _write(_HOME + f"{_TO_END_OF_LINE}\n".join(shown) + _TO_END_OF_LINE + _TO_END)


def _write(text: str) -> None:
    with suppress(OSError, ValueError):  # a terminal that has gone is found out by what reads from it, or by SIGHUP
        sys.stdout.write(text)
        sys.stdout.flush()
