"""Write what the .proto file says of methods and messages as tables for the documentation.

The comments before a method or message, and before or behind a field, are its description.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).parent / "proto/scistream.proto"
_COMMENT = re.compile(r"\s*//\s?(.*)")
_METHOD = re.compile(r"\s*rpc (\w+)\((stream )?(\w+)\) returns \((stream )?(\w+)\)")
_BLOCK = re.compile(r"\s*(message|enum) (\w+) \{\s*(\})?")
_FIELD = re.compile(r"\s*(?:([\w.<>, ]+?) )?(\w+) = (\d+);\s*(?://\s?(.*))?")


@dataclass
class Entry:
    """A method, message, enumeration or field, with what is said of it."""

    name: str
    said: str = ""
    kind: str = ""  # of a field its type, of a method what it takes and gives
    number: int = 0
    entries: list[Entry] = field(default_factory=list)


def read(text: str) -> tuple[list[Entry], list[Entry]]:
    """Give the methods, and the messages and enumerations with their fields, in the order of the file.

    Raises:
        ValueError: a line of a message is neither a field nor anything else that is known here.
    """
    methods: list[Entry] = []
    blocks: list[Entry] = []
    inside: list[Entry] = []
    comment: list[str] = []
    for line in text.splitlines():
        said = " ".join(comment)
        if found := _COMMENT.fullmatch(line):
            comment.append(found[1])
            continue
        comment = []
        if found := _METHOD.match(line):
            kind = f"`{found[3]}` | {'stream of ' if found[4] else ''}`{found[5]}`"
            methods.append(Entry(found[1], said, kind))
        elif found := _BLOCK.match(line):
            outer = f"{inside[-1].name}." if inside else ""
            blocks.append(Entry(outer + found[2], said, found[1]))
            if not found[3]:
                inside.append(blocks[-1])
        elif inside and (found := _FIELD.fullmatch(line)):
            behind = " ".join(filter(None, [said, found[4]]))
            inside[-1].entries.append(Entry(found[2], behind, found[1] or "", int(found[3])))
        elif inside and line.strip() == "}":
            inside.pop()
        elif inside and line.strip() and not line.strip().startswith("reserved "):
            raise ValueError(f"{SOURCE.name}: this line is not understood: {line.strip()}")
    return methods, blocks


def methods(text: str) -> str:
    """Write the table of the methods."""
    rows = ["| method | takes | gives | what |", "|---|---|---|---|"]
    return "\n".join([*rows, *(f"| `{m.name}` | {m.kind} | {_cell(m.said)} |" for m in read(text)[0])])


def messages(text: str) -> str:
    """Write a heading and a table for each message that has fields."""
    parts = []
    for block in read(text)[1]:
        if not block.entries:
            continue
        parts.append(f"### {block.name}")
        if block.said:
            parts.append(block.said)
        typed = block.kind == "message"
        head = (
            ["| field | number | type | what |", "|---|---|---|---|"]
            if typed
            else ["| value | number | what |", "|---|---|---|"]
        )
        rows = [
            f"| `{e.name}` | {e.number} | {f'`{e.kind}` | ' if typed else ''}{_cell(e.said)} |".replace("  |", " |")
            for e in block.entries
        ]
        parts.append("\n".join([*head, *rows]))
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
