"""What an operator does at the command line, recorded in the same log while the gateway runs."""

from __future__ import annotations

import os
import pwd
import time
from typing import TYPE_CHECKING

import click

from scistream.errors import ScistreamError

if TYPE_CHECKING:
    from s2cs.settings import Settings

_TELLING = ("list", "show", "test")  # commands that change nothing
_ASIDE = {"file", "as_json"}  # parameters that say nothing of what was done


class Recorded(click.Command):
    """A command that changes something: it is recorded with its arguments, done or refused."""

    @property
    def tells(self) -> bool:
        """True when it only shows something, after all."""
        return self.name in _TELLING

    def invoke(self, context: click.Context) -> object:
        """Run it, and record that."""
        try:
            done = super().invoke(context)
        except ScistreamError as error:
            self._note(context, {"decision": "refused", "reason": str(error)})
            raise
        self._note(context, {"decision": "allowed"})
        return done

    def _note(self, context: click.Context, outcome: dict[str, object]) -> None:
        if not self.tells:
            _note(context, outcome)


class RecordedGroup(click.Group):
    """A group whose commands are recorded, but for those that only show something."""

    command_class = Recorded


def _note(context: click.Context, outcome: dict[str, object]) -> None:
    from s2cs.settings_file import load  # noqa: PLC0415 - pydantic, which help needs not

    words, parent = [str(context.info_name)], context.parent
    while parent is not None and parent.parent is not None:  # but for the program itself
        words, parent = [str(parent.info_name), *words], parent.parent
    given = {
        name: value for name, value in context.params.items() if value not in (None, False, ()) and name not in _ASIDE
    }
    try:
        settings = load(context.params.get("file"))
        note(
            settings,
            "admin." + ".".join(words),
            arguments={name: _text(value) for name, value in given.items()},
            **outcome,
        )
    except ScistreamError:
        return  # without settings there is no gateway to which anything was done
    except OSError as error:
        click.echo(f"s2cs: the audit log cannot be written, so this is not recorded: {error.strerror}", err=True)


def _text(value: object) -> object:
    return value if isinstance(value, (bool, int, float, str, tuple, list)) else str(value)


def note(settings: Settings, event: str, **facts: object) -> None:
    """Record an act of whoever runs this process, and return when the disk has it.

    Raises:
        OSError: the log cannot be written.
    """
    from s2cs.audit.files import Record  # noqa: PLC0415
    from s2cs.audit.log import files_of  # noqa: PLC0415

    if settings.audit.enabled:
        by = {"account": account(), "peer": "local"}
        files_of(settings).append([Record(time.time(), event, {**by, **facts})])


def account() -> str:
    """Name the system account that acts, and through sudo the one behind it."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    behind = os.environ.get("SUDO_USER", "")
    return f"{name} (sudo from {behind})" if behind else name
