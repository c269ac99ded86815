"""The lines of the audit log and the chain through them: pure, with time passed in.

A line is a JSON object that ends with `prev`, the hash of the line before, and `hash`, the SHA-256 of its own
bytes without `hash`. So a line is checked as it stands, without writing it anew. There is no key: it would lie
on the same host, with whoever can write the log. What shows that a whole log was written anew is a copy of its
head kept elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from typing import Any

_LONGEST = 500  # characters of one text
_MOST = 128  # parts of a list
_TAIL = re.compile(rb',"hash":"([0-9a-f]{64})"\}\Z')
_SECRET = re.compile(
    r"(s2t_|s2h_)[\w-]{8,}"  # tokens of this gateway
    r"|(eyJ)[\w-]{8,}(?:\.[\w-]*)+"  # JSON Web Tokens
    r"|(?i:(bearer )\S+)"
    r"|(-----BEGIN )[^-]*PRIVATE KEY-----.*",
    re.DOTALL,
)
GENESIS = "0" * 64
"""What the first line of all names as the one before."""


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain: the number and the hash of its last line."""

    seq: int = 0
    hash: str = GENESIS

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"


def sealed(head: Head, at: float, event: str, facts: Mapping[str, object]) -> tuple[bytes, Head]:
    """Write the line that follows a head.

    Args:
        head: of the line before.
        at: when it happened, in seconds since the epoch.
        event: its name.
        facts: what else is to be said; what is empty is left out.

    Returns:
        The line with its line feed, and the head that it is.
    """
    stamp = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    record = {"seq": head.seq + 1, "at": stamp, "event": event}
    record |= {name: _plain(value) for name, value in facts.items() if value not in ("", None, (), [])}
    record["prev"] = head.hash
    body = json.dumps(record, separators=(",", ":")).encode()
    digest = hashlib.sha256(body).hexdigest()
    return body[:-1] + b',"hash":"' + digest.encode() + b'"}\n', Head(head.seq + 1, digest)


def _plain(value: object) -> object:
    """Give what JSON has, with nothing in it that is a secret or without end."""
    if isinstance(value, (bool, int)) or (isinstance(value, float) and isfinite(value)):
        return value
    if isinstance(value, (list, tuple)):
        more = [f"and {len(value) - _MOST} more"] if len(value) > _MOST else []
        return [*map(_plain, value[:_MOST]), *more]
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    text = _SECRET.sub(lambda found: f"{next(filter(None, found.groups()))}***", str(value))
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


@dataclass(frozen=True, slots=True)
class Line:
    """A line as it was found."""

    record: dict[str, Any]
    head: Head

    @property
    def prev(self) -> str:
        """The hash that it names as that of the line before."""
        return str(self.record["prev"])


def read(line: bytes) -> Line | None:
    """Read a line; None when it is not whole, or not as it was written."""
    line = line.removesuffix(b"\n")
    if not (found := _TAIL.search(line)):
        return None
    body = line[: found.start()] + b"}"
    if hashlib.sha256(body).hexdigest().encode() != found[1]:
        return None
    try:
        record = json.loads(body)
        return Line(record, Head(int(record["seq"]), found[1].decode()))
    except (ValueError, KeyError, TypeError):
        return None
