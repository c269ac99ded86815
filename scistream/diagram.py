"""Write into the documentation what the session machine's table and the .proto file say.

`python -m scistream.diagram` writes the generated parts of `docs/protocol.md`; `--check` says whether that page is
stale, and `--print` gives these parts alone.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import get_args

from scistream import protodoc
from scistream.machine import TABLE, Effect, Event, State, Stopped

PAGE = Path("docs/protocol.md")
_BEGIN, _END = "<!-- {}: begin, made by scistream.diagram -->", "<!-- {}: end -->"


def _cell(state: State, event: type[Event]) -> str:
    if event not in TABLE[state]:
        return ""
    target, effects = TABLE[state][event]
    after = "stays" if target is state else str(target)
    if state is State.CLOSING and event is Stopped:
        after = "*as it ends*"
    return ", ".join([after, *(effect.value for effect in effects)])


def mermaid() -> str:
    """Draw what moves a session from one state to another; what keeps it where it is is in the table."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.REQUESTED}: REQ / {Effect.RESERVE.value}"]
    for state, row in TABLE.items():
        moves: dict[tuple[State, str], list[str]] = {}
        for event, (target, effects) in row.items():
            if target is not state:
                done = "".join(f" / {effect.value}" for effect in effects)
                moves.setdefault((target, done), []).append(event.__name__)
        lines += [f"    {state} --> {target}: {', '.join(names)}{done}" for (target, done), names in moves.items()]
    ended = [state for state in State if state.ended]
    lines += [f"    {State.CLOSING} --> {state}: {Stopped.__name__}" for state in ended]
    lines += [f"    {state} --> [*]" for state in ended]
    return "\n".join(lines)


def table() -> str:
    """Write every cell: what follows a state and an event, and what the gateway then does; empty is refused."""
    events = get_args(Event)
    rows = [["state", *(event.__name__ for event in events)], ["---"] * (len(events) + 1)]
    rows += [[state, *(_cell(state, event) for event in events)] for state in TABLE]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def sections() -> dict[str, str]:
    """Give the generated parts of the page by their names."""
    proto = protodoc.SOURCE.read_text()
    return {
        "methods": protodoc.methods(proto),
        "messages": protodoc.messages(proto),
        "state diagram": f"```mermaid\n{mermaid()}\n```\n\n{table()}",
    }


def renewed(page: str) -> str:
    """Put the present parts between their markers of a page.

    Raises:
        ValueError: the page has no markers.
    """
    for name, text in sections().items():
        begin, end = _BEGIN.format(name), _END.format(name)
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        whole = f"{begin}\n\n{text}\n\n{end}"
        page, count = pattern.subn(lambda _, whole=whole: whole, page)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"the page needs one pair of markers: {begin} and {end}")
    return page


def main(arguments: list[str] | None = None) -> int:
    """Run the command; give its exit status."""
    parser = argparse.ArgumentParser(prog="python -m scistream.diagram", description=__doc__)
    parser.add_argument("page", nargs="?", type=Path, default=PAGE, help=f"the page to write (default: {PAGE})")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="write nothing; exit with 1 when the page is stale")
    what.add_argument("--print", action="store_true", help="print the generated parts")
    options = parser.parse_args(arguments)
    if options.print:
        sys.stdout.write("\n\n".join(sections().values()) + "\n")
        return 0
    old = options.page.read_text()
    new = renewed(old)
    if options.check:
        if new != old:
            sys.stderr.write(f"{options.page} is stale; run: make docs\n")
        return int(new != old)
    if new != old:
        options.page.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
