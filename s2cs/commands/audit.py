"""`s2cs audit`: is the log as it was written, and what does it say."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from s2cs.commands.common import CONTEXT, config_option, load
from scistream.errors import InvalidArgument
from scistream.vocabulary import parse_duration, printable, shown

if TYPE_CHECKING:
    from s2cs.settings import Settings

_SHOWN_FIRST = ("at", "event", "decision", "user", "account", "peer", "uid", "role", "reason")
_ASIDE = {*_SHOWN_FIRST, "seq", "prev", "hash", "session", "user_id", "owner_id", "auth", "rank"}


@click.group(
    context_settings=CONTEXT,
    short_help="Who asked what; is the log whole.",
    epilog="Example: s2cs audit show --user alice --since 1d",
)
def audit() -> None:
    """The audit log: who asked what, when, from where, and what came of it."""


def _directory(settings: Settings) -> Path:
    from s2cs.audit.log import directory_of  # noqa: PLC0415

    return directory_of(settings)


@audit.command(context_settings=CONTEXT, short_help="See that the log is as it was written; exit 0 or 1.")
@config_option
@click.option("--from", "start", default="", metavar="FILE", help="Begin with this file [default: the oldest].")
@click.option("--head", "kept", default="", metavar="HEAD", help="A head kept elsewhere, which has to be in the log.")
def verify(file: Path | None, start: str, kept: str) -> None:
    """Check every line of the log and the chain through them; name the first line that is not right.

    Example: s2cs audit verify --head "$(cat /mnt/elsewhere/head)"
    """
    from s2cs.audit.verify import verify as look  # noqa: PLC0415

    directory = _directory(load(file))
    report = look(directory, start, kept)
    for note in report.notes:
        click.echo(f"note  {note}")
    if report.fault:
        click.echo(f"FAULT {report.fault}")
        sys.exit(1)
    click.echo(f"ok    {report.lines} lines in {directory}, the last is {report.head}")


@audit.command(context_settings=CONTEXT, epilog="Example: s2cs audit head > /mnt/elsewhere/head")
@config_option
def head(file: Path | None) -> None:
    """Print number and hash of the last line: a copy elsewhere shows later if the log was cut or written anew."""
    from s2cs.audit.log import files_of  # noqa: PLC0415

    click.echo(files_of(load(file)).head())


@audit.command(context_settings=CONTEXT, epilog="Example: s2cs audit show --since 2h --event refused")
@config_option
@click.option("--user", default="", metavar="NAME", help="Only what this user asked, or the sessions of this user.")
@click.option("--uid", default="", help="Only this session.")
@click.option("--since", default="", metavar="TIME", help="2h, 1d, or 2026-05-01T12:00:00Z.")
@click.option("--event", default="", metavar="E", help="Only this event or decision; call stands for call.req...")
@click.option("--json", "as_json", is_flag=True, help="The lines as they are, JSON.")
def show(file: Path | None, user: str, uid: str, since: str, event: str, as_json: bool) -> None:
    """Show what is in the log, oldest first."""
    after, found = _time(since), False
    for text, record in _records(_directory(load(file))):
        named = (record.get("event", ""), record.get("decision", ""))
        if (
            (not user or user in (record.get("user"), record.get("owner")))
            and (not uid or record.get("uid") == uid)
            and (not after or record.get("at", "") >= after)
            and (not event or event in named or str(named[0]).startswith(f"{event}."))
        ):
            found = True
            click.echo(text if as_json else _line(record))
    if not found:
        click.echo("no such records", err=True)


def _records(directory: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    from s2cs.audit.files import files_in, opened  # noqa: PLC0415

    for path in files_in(directory) if directory.is_dir() else []:
        with opened(path) as lines:
            for line in lines:
                text = line.decode(errors="replace").rstrip("\n")
                try:
                    record = json.loads(text)
                except ValueError:
                    continue  # verify tells of it
                if isinstance(record, dict):
                    yield text, record


def _line(record: dict[str, Any]) -> str:
    first = [str(record[name]) for name in _SHOWN_FIRST if record.get(name)]
    rest = [f"{name}={_value(value)}" for name, value in record.items() if name not in _ASIDE]
    return printable("  ".join([*first, *rest]))


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _time(text: str) -> str:
    """Read a time, or how long ago, as the log writes times."""
    if not text:
        return ""
    try:
        found = datetime.fromisoformat(text)
        found = found if found.tzinfo else found.replace(tzinfo=UTC)
    except ValueError:
        try:
            found = datetime.now(UTC) - timedelta(seconds=parse_duration(text))
        except InvalidArgument:
            raise InvalidArgument(f"time {shown(text)} is none; write 2h, 1d, or 2026-05-01T12:00:00Z") from None
    return found.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
