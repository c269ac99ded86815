"""The files of the audit log: appended to by several processes, one at a time, and rotated.

A file is named for its first line, `audit-000000000001.jsonl`; the next one goes on with the chain. Every
record is added to the end (O_APPEND) under a lock. What a killed process or a full disk left of a line stays
where it is: it is closed with a line feed, and a record after it tells of it.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

from s2cs.audit.chain import Head, read, sealed

_NAME = re.compile(r"audit-(\d{12})\.jsonl(\.gz)?")
_BLOCK = 256 * 1024
_LONGEST_S = 30 * 86400.0  # a file is not added to for longer, so that what is too old can go
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
CONTINUED, TORN, DAMAGED = "log.continued", "log.torn", "log.damaged"  # what the log tells of itself


@dataclass(frozen=True, slots=True)
class Record:
    """What is to be written down: when it happened (seconds since the epoch), what, and its facts."""

    at: float
    event: str
    facts: dict[str, object]


@dataclass(frozen=True, slots=True)
class Keeping:
    """How much of the log is kept."""

    max_bytes: int  # of a file, before the next one begins
    files: int  # the present one among them
    age_s: float


def files_in(directory: Path) -> list[Path]:
    """Find the files of a log, the oldest first. Where one is there plain and compressed, the plain one counts."""
    found: dict[int, Path] = {}
    for path in sorted(directory.iterdir(), reverse=True):  # compressed ones first
        if name := _NAME.fullmatch(path.name):
            found[int(name[1])] = path
    return [found[first] for first in sorted(found)]


def first_seq(path: Path) -> int:
    """Tell the number of a file's first line, from its name."""
    name = _NAME.fullmatch(path.name)
    return int(name[1]) if name else 0


def opened(path: Path) -> IO[bytes]:
    """Open a file of a log for reading, compressed or not."""
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


class Files:
    """Append to the log in a directory."""

    def __init__(self, directory: Path, keeping: Keeping) -> None:
        self.directory = directory
        self._keeping = keeping
        self._path: Path | None = None  # the file that this process wrote last, its size then, its end
        self._size = 0
        self._head = Head()
        self._begun = 0.0

    def append(self, records: Sequence[Record]) -> Head:
        """Write records down; return when the disk has them.

        Raises:
            OSError: the disk does not take them, and none of them is in the log.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self.directory):
            now = records[-1].at if records else time.time()
            found, old = self._look(now), self._path
            rotates = old is not None and self._full(now)
            kept: list[Path] = self._kept(now) if rotates else []
            if rotates:
                oldest = first_seq(kept[0]) if kept else self._head.seq + 1
                facts: dict[str, object] = {"file": old and old.name, "head": str(self._head), "kept_from": oldest}
                found.append(Record(now, CONTINUED, facts))
            if rotates or self._path is None:
                self._path, self._size = self.directory / f"audit-{self._head.seq + 1:012}.jsonl", 0
                self._begun = now
            self._write([*found, *records])
            if rotates:
                self._clear_away(kept)
        if rotates and old in kept:
            _compress(old)
        return self._head

    def head(self) -> Head:
        """Tell the present end of the chain."""
        if not self.directory.is_dir():
            return Head()
        with locked(self.directory):
            self._look(0)
            return self._head

    def _look(self, now: float) -> list[Record]:
        """Find the end of the chain, where another process has written since; and what there is beside whole lines."""
        files = files_in(self.directory)
        if not files:
            self._path, self._size, self._head = None, 0, Head()
            return []
        path = files[-1]
        if path == self._path and path.stat().st_size == self._size:
            return []
        self._path, self._size, self._head = path, path.stat().st_size, Head()
        if path.suffix == ".gz":  # the plain one was taken away
            self._path, self._size = None, 0
        last, rest = end_of(path)
        for earlier in reversed(files[:-1]):
            if last is not None:
                break
            last, _ = end_of(earlier)
        self._head = last or Head(max(0, first_seq(path) - 1))
        self._begun = _begun(path) or now
        if not rest:
            return []
        event = DAMAGED if b"\n" in rest else TORN
        return [Record(now, event, {"bytes": len(rest), "sha256": hashlib.sha256(rest).hexdigest()})]

    def _full(self, now: float) -> bool:
        return self._size >= self._keeping.max_bytes or now - self._begun > _LONGEST_S

    def _write(self, records: Sequence[Record]) -> None:
        """Add lines to the file, or nothing."""
        assert self._path is not None
        head, lines = self._head, []
        for record in records:
            line, head = sealed(head, record.at, record.event, record.facts)
            lines.append(line)
        fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(fd).st_size
            _same_owner(fd, self.directory)
            unfinished = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
            data = b"\n" * unfinished + b"".join(lines)
            try:
                if (written := os.write(fd, data)) < len(data):
                    raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes found room", str(self._path))
                os.fdatasync(fd)
            except OSError:
                self._path = None  # to be looked at again
                with suppress(OSError):  # where the file system forbids it, the next record tells of what is there
                    os.ftruncate(fd, size)
                raise
        finally:
            os.close(fd)
        self._head, self._size = head, size + len(data)

    def _kept(self, now: float) -> list[Path]:
        """Say which files stay when the next one begins."""
        kept: list[Path] = []
        for path in reversed(files_in(self.directory)):
            if len(kept) + 1 >= self._keeping.files or now - path.stat().st_mtime > self._keeping.age_s:
                break
            kept.append(path)
        return kept[::-1]

    def _clear_away(self, kept: Sequence[Path]) -> None:
        for path in files_in(self.directory):
            if path not in kept and path != self._path:
                path.unlink(missing_ok=True)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other processes from writing to the log in a directory."""
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _same_owner(fd, directory)
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def end_of(path: Path) -> tuple[Head | None, bytes]:
    """Find the last whole line of a file, and what follows it; None when there is no whole line."""
    with opened(path) as file:
        size = file.seek(0, os.SEEK_END) if path.suffix != ".gz" else 0
        block = _BLOCK
        while True:
            file.seek(max(0, size - block))
            data = file.read()
            lines = data.splitlines(keepends=True)
            rest = b""
            while lines:
                if lines[-1].endswith(b"\n") and (line := read(lines[-1])):
                    return line.head, rest
                rest = lines.pop() + rest
            if block >= size:
                return None, rest
            block *= 4


def _begun(path: Path) -> float:
    """Tell when a file was begun, by its first line; 0 when that is not whole."""
    with opened(path) as file:
        line = read(file.readline())
    return datetime.fromisoformat(line.record["at"]).timestamp() if line else 0.0


def _compress(path: Path) -> None:
    """Put a compressed file in place of a plain one."""
    made = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with path.open("rb") as source, open(os.open(made, _NEW, 0o600), "wb") as sink:  # noqa: PTH123
            _same_owner(sink.fileno(), path.parent)
            with gzip.GzipFile(path.name, "wb", fileobj=sink) as packed:
                shutil.copyfileobj(source, packed)
            sink.flush()
            os.fsync(sink.fileno())
        stat = path.stat()
        os.utime(made, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        made.replace(path.with_name(path.name + ".gz"))
        path.unlink(missing_ok=True)
    except OSError:  # it stays as it is
        made.unlink(missing_ok=True)


def _same_owner(fd: int, directory: Path) -> None:
    """Give a file to whom the log belongs: root's command must not lock the gateway out."""
    if os.geteuid() == 0:
        owner = directory.stat()
        if (os.fstat(fd).st_uid, os.fstat(fd).st_gid) != (owner.st_uid, owner.st_gid):
            os.fchown(fd, owner.st_uid, owner.st_gid)
