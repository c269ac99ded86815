"""The gateway's log: one line an event, as text for people or as JSON for programs.

What an event is about goes with it as fields, the session's uid above all; the sentence alone is enough for people.
Levels: DEBUG is what a developer follows; INFO is what was asked for and done; WARNING is what the gateway mended
by itself or gave up for one session; ERROR is what its operator has to mend.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from scistream.machine import Session
from scistream.vocabulary import printable

Format = Literal["auto", "text", "json"]
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def about(session: Session, **fields: object) -> dict[str, object]:
    """Give the fields of an event about a session, for the `extra` of a call that logs."""
    return {"session": str(session.uid), "role": str(session.role), "owner": session.owner.name, **fields}


def configure(form: Format, verbose: bool, stream: TextIO | None = None) -> None:
    """Log to a stream.

    Args:
        form: `auto` is text on a terminal and JSON everywhere else.
        verbose: DEBUG too.
        stream: standard error if None, which systemd leads to the journal.
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    as_json = form == "json" or (form == "auto" and not stream.isatty())
    handler.setFormatter(JsonLines() if as_json else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    for chatty in ("uvicorn", "httpx", "httpcore", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_no_metadata)


def _no_metadata(record: logging.LogRecord) -> bool:
    """Drop what gRPC says of metadata that are not UTF-8: it quotes them, tokens too, at whatever length and rate."""
    return not str(record.msg).startswith("Invalid encoding on")


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, then the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the line of a record."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """Time, level, logger and message; an exception follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the line of a record."""
        line = f"{_time(record)} {record.levelname} {record.name}: {printable(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _OWN}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
