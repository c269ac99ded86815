"""What several commands need."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

import click

from scistream.errors import ScistreamError

if TYPE_CHECKING:
    from s2cs.settings import Settings
    from s2cs.store import Store

CONTEXT = {"help_option_names": ["-h", "--help"]}

config_option = click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The settings [default: s2cs.toml here, else /etc/scistream/s2cs.toml].",
)

verbose_option = click.option("--verbose", "-v", is_flag=True, help="Log more.")

log_format_option = click.option(
    "--log-format",
    "form",
    type=click.Choice(["auto", "text", "json"]),
    default="auto",
    show_default=True,
    help="How the log on standard error looks; auto is text on a terminal, else one JSON object a line.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON array on stdout.")


def load(file: Path | None) -> Settings:
    """Read the settings."""
    from s2cs.settings_file import load as read  # noqa: PLC0415 - pydantic, which help needs not

    return read(file)


@contextmanager
def opened(settings: Settings) -> Iterator[Store]:
    """Open the store of a gateway, which may run meanwhile."""
    from s2cs.store import SqliteStore  # noqa: PLC0415

    if settings.store.etcd:
        from s2cs.replicas.store import EtcdStore  # noqa: PLC0415 - an extra that few have

        shared = EtcdStore(settings.store)
        try:
            yield shared
        finally:
            shared.close()
        return
    file = settings.server.state_dir / "s2cs.db"
    if not file.parent.is_dir():
        raise ScistreamError(f"state directory {file.parent} is not there; make a gateway first: s2cs init DIR")
    store = SqliteStore(file)
    try:
        yield store
    finally:
        store.close()


def utc(seconds: float) -> str:
    """Show a time of the wall clock."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def when(seconds: float) -> str:
    """Show a time of the wall clock; 0 and infinity are never."""
    return "never" if not seconds or seconds == inf else utc(seconds)
