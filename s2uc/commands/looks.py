"""How results look to people: tables that fit the terminal, colour where it is welcome, numbers with units.

By hand: what a library for this takes to load is more than the whole of `s2uc --help` does.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import click

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_GAP = "  "
_NARROWEST = 20
_COLOURS = {"ACTIVE": "green", "RECOVERING": "yellow", "FAILED": "red", "RELEASED": "bright_black"}
_BARS, _PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-:=+*#"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    title: str
    worth: int  # where there is no room, those that are worth least go first
    right: bool = False


def colourful() -> bool:
    """Tell whether the result goes to a terminal that takes colours from somebody who wants them."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def width() -> int:
    """Say how many columns there are: the terminal's, or COLUMNS; 0 is any number, as in a file."""
    if not sys.stdout.isatty() and not os.environ.get("COLUMNS", "").isdigit():
        return 0
    return max(_NARROWEST, shutil.get_terminal_size().columns)


def painted(text: str, state: str = "", bold: bool = False) -> str:
    """Give a text the colour of a session's state, or make it bold, where that is welcome."""
    return click.style(text, fg=_COLOURS.get(state), bold=bold or None) if colourful() else text


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], room: int) -> list[str]:
    """Lay rows out under their titles, in so many columns of text at most; 0 is any number.

    What is empty in all rows is left out, then what is worth least until the rest fits.
    """
    kept = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    widths = {i: max(len(columns[i].title), *(len(row[i]) for row in rows)) for i in kept}
    while room and len(kept) > 1 and sum(widths[i] + len(_GAP) for i in kept) - len(_GAP) > room:
        kept.remove(min(kept, key=lambda i: columns[i].worth))

    def line(cells: Sequence[str]) -> str:
        text = _GAP.join(f"{cells[i]:>{widths[i]}}" if columns[i].right else f"{cells[i]:<{widths[i]}}" for i in kept)
        return text.rstrip()[: room or None]

    return [painted(line([column.title for column in columns]), bold=True), *(line(row) for row in rows)]


def facts(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], room: int) -> list[str]:
    """Lay facts out side by side, a column for each head; what is too long goes on in the next line."""
    rows = [row for row in rows if any(row[1])]
    first = max((len(name) for name, _ in rows), default=0)
    widest = max((len(cell) for _, cells in rows for cell in cells), default=0)
    most = (room - first) // max(1, len(heads)) - len(_GAP) if room else widest
    each = max(_NARROWEST, min(widest, most))
    lines = []
    for name, cells in [("", heads), *rows]:
        parts = [textwrap.wrap(cell, each, break_on_hyphens=False) for cell in cells]
        for i in range(max(1, *map(len, parts))):
            texts = [part[i] if i < len(part) else "" for part in parts]
            text = _GAP.join([f"{name if not i else '':<{first}}", *(f"{text:<{each}}" for text in texts)]).rstrip()
            lines.append(painted(text, bold=True) if not name else text)
    return lines


def fitted(text: str, room: int, indent: str = "") -> list[str]:
    """Break a sentence into lines that fit."""
    return textwrap.wrap(text, room, initial_indent=indent, subsequent_indent=indent) if room else [indent + text]


def size(count: int) -> str:
    """Show a count of bytes, in steps of a thousand."""
    amount, unit = float(count), 0
    while amount >= 999.5 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{count} B" if unit == 0 else f"{amount:.3g} {_UNITS[unit]}"


def span(us: int) -> str:
    """Show a time of some microseconds."""
    return "" if not us else f"{us / 1000:.3g} ms"


def lasting(seconds: float) -> str:
    """Show a longer time by its two greatest parts."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for name, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= length or (name == "s" and not parts):
            parts.append(f"{left // length} {name}")
            left %= length
    return " ".join(parts[:2])


def clock(at: datetime, now: datetime | None = None) -> str:
    """Show a time (UTC); with its day where that is not within half a day from now."""
    near = abs(at - (now or datetime.now(UTC))) < timedelta(hours=12)
    return f"{at:%H:%M:%S}" if near else f"{at:%Y-%m-%d %H:%M}"


def sparkline(values: Sequence[int], most: int) -> str:
    """Draw values as bars; `most` is the full height."""
    try:
        _BARS.encode(sys.stdout.encoding or "ascii")
        bars = _BARS
    except (UnicodeEncodeError, LookupError):
        bars = _PLAIN_BARS
    top = len(bars) - 1
    return "".join(" " if value < 0 else bars[min(top, round(top * value / most)) if most else 0] for value in values)
