"""A proxy's log: its last words for people, what TLS it negotiated, what its connections moved."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from s2cs.s2ds.backends.base import Backend
from s2cs.s2ds.contract import Printed
from s2cs.s2ds.meter import MOST_MOVED, Ledger, Moved
from scistream.errors import InvalidArgument
from scistream.vocabulary import Endpoint, Role, printable

MOST_BYTES = 8 * 2**20  # of the disk, for one proxy's log
KEPT_LINES, KEPT_WIDTH = 256, 400  # of what a tunnel's proxies printed, in memory
_CHUNK = 64 * 1024
_TAIL = 1024 * 1024
_LINES, _WIDTH = 5, 300


class Book:
    """The last lines that a tunnel's proxies printed, of those that have ended, too."""

    def __init__(self) -> None:
        self.count = 0
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)

    def add(self, lines: bytes) -> list[str]:
        """Take more lines; give those that are kept, as they are kept."""
        found = [line for line in lines.split(b"\n") if line.strip()]
        self.count += len(found)
        texts = (line[:KEPT_WIDTH].decode(errors="replace").strip() for line in found[-KEPT_LINES:])
        kept = [printable(text)[:KEPT_WIDTH] for text in texts]
        self._lines.extend(kept)
        return kept

    def last(self, lines: int) -> Printed:
        """Give the last of them."""
        return Printed(self.count, tuple(self._lines)[-lines:] if lines > 0 else ())


class SessionLog:
    """Follow a proxy's log file without reading anything twice, and enter in the ledger what it tells."""

    def __init__(
        self,
        path: Path,
        backend: Backend,
        role: Role,
        ledger: Ledger,
        book: Book | None = None,
        pass_on: Callable[[list[str]], None] | None = None,
    ) -> None:
        self.path = path
        self._book = book or Book()
        self._pass_on = pass_on
        self._backend = backend
        self._role = role
        self._ledger = ledger
        self._refusers: set[Endpoint] = set()
        self._inside = False  # of a line that is longer than a chunk

    def take_refusers(self) -> frozenset[Endpoint]:
        """Give the applications that refused a datagram since this was asked last."""
        found = frozenset(self._refusers)
        self._refusers.clear()
        return found

    def size(self) -> int:
        """How long the log is now."""
        try:
            return os.lstat(self.path).st_size  # a list asks for that of every session
        except OSError:
            return 0

    def bound(self) -> None:
        """Empty the log when it takes too much room: who knocks at a WAN port writes a line without any right to.

        In place, because the proxy has it open. One that does not append leaves a hole before its next line, which
        takes no room, and which `read` skips.
        """
        try:
            if self.path.lstat().st_blocks * 512 > MOST_BYTES:
                self.read()
                self._ledger.save()
                with open(self.path, "r+b", opener=_itself) as file:
                    file.truncate(0)
                self._ledger.offsets[self.path.name] = 0
                self._inside = False
        except OSError:
            return

    def recall(self) -> None:
        """Take up the end of what an earlier server has read; what follows is read as ever."""
        offset, most = self._ledger.offsets.get(self.path.name, 0), KEPT_LINES * KEPT_WIDTH
        try:
            with open(self.path, "rb", opener=_itself) as file:
                file.seek(max(0, offset - most))
                self._book.add(file.read(min(offset, most)).replace(b"\0", b""))
        except OSError:
            return

    def since(self, offset: int = 0) -> str:
        """What was logged after an offset; only the end of it when it is long."""
        try:
            with open(self.path, "rb", opener=_itself) as file:
                file.seek(max(offset, self.size() - _TAIL))
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    def read(self) -> None:
        """Take note of what was logged since: the TLS of a session, and what its connections moved that have ended."""
        offsets, name = self._ledger.offsets, self.path.name
        size, offset = self.size(), offsets.get(name, 0)
        if size == offset:
            return
        try:
            with open(self.path, "rb", opener=_itself) as file:
                file.seek(offset if size > offset else 0, os.SEEK_DATA)
                while chunk := file.read(_CHUNK):
                    whole, end, _ = chunk.rpartition(b"\n")
                    if not end and len(chunk) < _CHUNK:
                        break  # the line is being written
                    whole = whole + end or chunk
                    # The rest of a long line is not the beginning of another.
                    lines = whole.partition(b"\n")[2] if self._inside else whole
                    self._inside = not whole.endswith((b"\n", b"\0"))  # or in a hole
                    self._note(lines.replace(b"\0", b""))
                    file.seek(len(whole) - len(chunk), os.SEEK_CUR)
                    offsets[name] = file.tell()
        except OSError:
            pass

    def end(self) -> None:
        """Take note of the last that was logged; the file will be removed."""
        self.read()
        if self._ledger.offsets.pop(self.path.name, None) is not None:
            self._ledger.save()

    def _note(self, lines: bytes) -> None:
        kept = self._book.add(lines)
        if self._pass_on is not None:
            self._pass_on(kept)
        if self._backend.refused_line is not None:
            for match in self._backend.refused_line.finditer(lines):
                with suppress(InvalidArgument):
                    self._refusers.add(Endpoint.parse(match["peer"].decode("ascii", "replace")))
        for match in self._backend.session_line.finditer(lines):
            self._ledger.tls = _word(match["version"]), _word(match["cipher"])
        for match in self._backend.closed_line.finditer(lines):
            self._ledger.closed += _moved({name: _count(text) for name, text in match.groupdict().items()}, self._role)


def _itself(path: str, flags: int) -> int:
    """Open a file that proxies write to: no other that it may lead to, and without waiting where it is a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _word(text: bytes) -> str:
    """Read a name that a proxy logged: it may have been taken over, and log what it likes."""
    return printable(text[:KEPT_WIDTH].decode("ascii", "replace"))


def _count(text: bytes) -> int:
    """Read a number that a proxy logged; one that cannot be is as good as the most."""
    return int(text) if len(text) < len(str(MOST_MOVED)) else MOST_MOVED


def _moved(counts: dict[str, int], role: Role) -> Moved:
    """Read the bytes of a closed connection: towards the producer (`up`) and the consumer, or by side."""
    if "up" in counts:
        return Moved(counts["up"], counts["down"], 1)
    plain, tls = counts["to_plain"], counts["to_tls"]
    return Moved(plain, tls, 1) if role is Role.PROD else Moved(tls, plain, 1)


def last_words(log: str) -> str:
    """Quote the end of a log at the end of a message; nothing for an empty log."""
    lines = [ascii(line)[1:-1][:_WIDTH] for line in log.replace("\0", "").splitlines() if line.strip()]
    return ": " + " | ".join(lines[-_LINES:]) if lines else "; its log is empty"
