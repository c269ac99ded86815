"""A proxy's log: its last words for people, and what TLS it negotiated."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

MOST_BYTES = 8 * 2**20  # of the disk, for one proxy's log
_CHUNK = 64 * 1024
_TAIL = 1024 * 1024
_LINES, _WIDTH = 5, 300


@dataclass(frozen=True, slots=True)
class Negotiated:
    """The TLS of a session, as its proxy logged it; empty before there was one."""

    version: str = ""
    cipher: str = ""


class SessionLog:
    """Follow a proxy's log file without reading anything twice."""

    def __init__(self, path: Path, session_line: re.Pattern[bytes]) -> None:
        self.path = path
        self._session_line = session_line
        self._offset = 0
        self._last = Negotiated()

    def size(self) -> int:
        """How long the log is now."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def bound(self) -> None:
        """Empty the log when it takes too much room: who knocks at a WAN port writes a line without any right to.

        In place, because the proxy has it open. One that does not append leaves a hole before its next line, which
        takes no room.
        """
        try:
            if self.path.stat().st_blocks * 512 > MOST_BYTES:
                self.last()
                os.truncate(self.path, 0)
        except OSError:
            return

    def since(self, offset: int = 0) -> str:
        """What was logged after an offset; only the end of it when it is long."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(offset, self.size() - _TAIL))
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    def last(self) -> Negotiated:
        """The TLS of the last session that the log tells of."""
        if self.size() < self._offset:
            self._offset = 0
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                while chunk := file.read(_CHUNK):
                    whole = chunk.rpartition(b"\n")[0] or chunk
                    for match in self._session_line.finditer(whole):
                        self._last = Negotiated(match["version"].decode(), match["cipher"].decode())
                    self._offset += len(whole)
                    if len(chunk) < _CHUNK:
                        break
                    file.seek(self._offset)
        except OSError:
            pass
        return self._last


def last_words(log: str) -> str:
    """Quote the end of a log at the end of a message; nothing for an empty log."""
    lines = [ascii(line)[1:-1][:_WIDTH] for line in log.replace("\0", "").splitlines() if line.strip()]
    return ": " + " | ".join(lines[-_LINES:]) if lines else "; its log is empty"
