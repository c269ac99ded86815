"""What a login shows to the person who has to act."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """A page to open, and a code to type there if there is one.

    Args:
        page: its address.
        code: what to type there; empty where nothing is.
        complete: an address that has the code in it already; may be empty.
        seconds: how long the person has.
        opened: whether a browser has been started on it.
    """

    page: str
    code: str = ""
    complete: str = ""
    seconds: float = 0.0
    opened: bool = False

    def __str__(self) -> str:
        if self.code:
            lines = [f"open {self.page} on any device and type the code {self.code}"]
            if self.complete:
                lines.append(f"or open {self.complete} and compare the code")
            return "\n".join(lines)
        return f"a browser opens; if not, open {self.page}" if self.opened else f"open {self.page}"


Show = Callable[[Prompt], None]


def has_browser(environ: Mapping[str, str] = os.environ) -> bool:
    """Guess whether a browser started here would be seen by the person at the terminal."""
    if environ.get("BROWSER"):
        return True
    if environ.get("SSH_CONNECTION") or environ.get("SSH_TTY"):
        return False
    return sys.platform in ("darwin", "win32") or bool(environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY"))
