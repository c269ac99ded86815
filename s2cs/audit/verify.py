"""Is the log as it was written? Finds the first line that is not, and says what is missing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from s2cs.audit.chain import GENESIS, Head, Line, read
from s2cs.audit.files import CONTINUED, TORN, files_in, first_seq, opened
from scistream.errors import InvalidArgument
from scistream.vocabulary import shown


@dataclass
class Report:
    """What a log is found to be."""

    lines: int = 0
    head: Head = field(default_factory=Head)
    fault: str = ""  # the first one; empty when there is none
    notes: list[str] = field(default_factory=list)


def verify(directory: Path, start: str = "", kept: str = "") -> Report:
    """Read a log and check every line of it.

    Args:
        directory: of the log.
        start: the name of the file to begin with; empty is the oldest.
        kept: a head kept elsewhere, `SEQ:HASH` or only the hash: its line has to be there.

    Raises:
        InvalidArgument: no such file, or that is no head.
    """
    number, _, digest = kept.rpartition(":")
    if kept and (len(digest) != 64 or set(digest) - set("0123456789abcdef") or (number and not number.isdigit())):
        raise InvalidArgument(f"head {shown(kept)} is not SEQ:HASH as s2cs audit head prints it")
    files = files_in(directory) if directory.is_dir() else []
    if start:
        names = [path.name.removesuffix(".gz") for path in files]
        if (name := Path(start).name.removesuffix(".gz")) not in names:
            raise InvalidArgument(f"there is no file {shown(start)} in {directory}; there are {', '.join(names)}")
        files = files[names.index(name) :]
    return _Check(digest).run(files, partial=bool(start), number=int(number or 0))


class _Check:
    def __init__(self, kept: str) -> None:
        self.report = Report()
        self._kept = kept
        self._kept_found = kept in ("", GENESIS)
        self._before: Head | None = None
        self._bad = b""  # what was not whole, and where; a record may tell of it
        self._bad_at = ""
        self._kept_from = 1

    def run(self, files: list[Path], partial: bool, number: int) -> Report:
        report = self.report
        for path in files:
            try:
                with opened(path) as file:
                    for n, text in enumerate(file, 1):
                        self._take(text, path, n)
                        if report.fault:
                            return report
            except (OSError, EOFError) as error:
                report.fault = f"{path.name} cannot be read: {error}"
                return report
        if self._bad.endswith(b"\n"):
            report.fault = self._bad_at
        elif self._bad:
            report.notes.append(f"the last line is unfinished, {len(self._bad)} bytes; the next record will tell of it")
        first = first_seq(files[0]) if files else 1
        if not report.fault and first > 1 and not partial:
            if first <= self._kept_from:
                report.notes.append(f"lines 1 to {first - 1} were removed as the settings have it")
            else:
                report.fault = f"lines {self._kept_from} to {first - 1} are missing, and no record tells of a removal"
        if not report.fault and not self._kept_found:
            report.fault = (
                f"the end is missing: the log ends with line {report.head.seq}, and the kept head is line {number}"
                if number > report.head.seq
                else "no line has the kept head's hash: the log was written anew, or that line was removed"
            )
        return report

    def _take(self, text: bytes, path: Path, number: int) -> None:
        line = read(text) if text.endswith(b"\n") else None
        if line is None:
            self._bad_at = self._bad_at or f"{path.name} line {number}: it is not as it was written"
            self._bad += text
            return
        report, place = self.report, f"{path.name} line {number} (seq {line.head.seq})"
        if self._bad and not self._told(line):
            report.fault = self._bad_at
            return
        if self._bad:
            report.notes.append(f"{place} tells of an unfinished line before it, {len(self._bad) - 1} bytes")
            self._bad, self._bad_at = b"", ""
        report.fault = self._follows(line, path, number, place)
        if report.fault:
            return
        if line.record["event"] == CONTINUED:
            self._kept_from = max(self._kept_from, int(line.record.get("kept_from", 1)))
        self._kept_found = self._kept_found or line.head.hash == self._kept
        self._before = report.head = line.head
        report.lines += 1

    def _told(self, line: Line) -> bool:
        """Tell whether a record accounts for the one unfinished line before it."""
        record, rest = line.record, self._bad.removesuffix(b"\n")
        return (
            record["event"] == TORN and b"\n" not in rest and record.get("sha256") == hashlib.sha256(rest).hexdigest()
        )

    def _follows(self, line: Line, path: Path, number: int, place: str) -> str:
        before = self._before
        if before is None:
            if number == 1 and line.head.seq != first_seq(path):
                return f"{place}: the file was begun with line {first_seq(path)}, and that is missing"
            if line.head.seq == 1 and line.prev != GENESIS:
                return f"{place}: the first line of all names another before it"
            return ""
        if line.head.seq > before.seq + 1:
            return f"{place}: lines {before.seq + 1} to {line.head.seq - 1} are missing before it"
        if line.head.seq <= before.seq:
            return f"{place}: it comes after line {before.seq}: lines were reordered or repeated"
        if line.prev != before.hash:
            return f"{place}: it does not follow from the line before, which is not the one that was written"
        return ""
