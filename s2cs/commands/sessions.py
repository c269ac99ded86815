"""`s2cs sessions`: what runs here, and the end of it."""

from __future__ import annotations

import json
import os
import time
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

import click

from s2cs.audit.acts import Recorded, RecordedGroup
from s2cs.commands.common import CONTEXT, config_option, json_option, load, opened, utc
from scistream.errors import DeadlineExceeded, InvalidArgument, NotFound, Unavailable
from scistream.vocabulary import printable, shown

if TYPE_CHECKING:
    from s2cs.settings import Settings
    from s2cs.store import Store
    from scistream.machine import Session

_KILL_S = 40.0  # the gateway looks four times a second, and tries the end of a session again after 30 s
_NODE_S = 2.0  # after that it is asked whether the node is there
_REASON = 200  # characters

_all_option = click.option("--all", "everything", is_flag=True, help="Ended sessions, too.")


@click.group(
    cls=RecordedGroup,
    context_settings=CONTEXT,
    invoke_without_command=True,
    short_help="Show the sessions of this gateway, and end them.",
    epilog="Example: s2cs sessions --all",
)
@config_option
@_all_option
@json_option
@click.pass_context
def sessions(context: click.Context, file: Path | None, everything: bool, as_json: bool) -> None:
    """Show the sessions of this gateway, and end them. Alone it does what `list` does."""
    if context.invoked_subcommand is None:
        _show(file, everything, as_json)
    elif file or everything or as_json:
        raise click.UsageError(f"write the options after {context.invoked_subcommand}")


@sessions.command("list", context_settings=CONTEXT, epilog="Example: s2cs sessions list --json")
@config_option
@_all_option
@json_option
def list_sessions(file: Path | None, everything: bool, as_json: bool) -> None:
    """Show the sessions of this gateway."""
    _show(file, everything, as_json)


def _show(file: Path | None, everything: bool, as_json: bool) -> None:
    from s2cs.clock import Clock  # noqa: PLC0415

    with opened(load(file)) as store:
        found = [s for s in store.sessions() if everything or not s.state.ended]
        clock = Clock.of(store)
    if as_json:
        rows = [
            {
                "uid": s.uid,
                "role": s.role,
                "state": s.state,
                "owner": s.owner.name,
                "backend": s.backend,
                "node": s.node,
                "listeners": [str(x) for x in s.listeners],
                "targets": [str(x) for x in s.targets],
                "created_at": utc(clock.wall(s.created_at)),
                "expires_at": utc(clock.wall(s.expires_at)),
                "reason": s.reason,
            }
            for s in found
        ]
        click.echo(json.dumps(rows))
        return
    for s in found:
        click.echo(
            f"{s.uid:36} {s.role:4} {s.state:10} {s.owner.name:12} {s.backend:8} x{s.request.num_conn:<4} "
            f"until {utc(clock.wall(s.expires_at))} {printable(s.reason)}".rstrip()
        )
    if not found:
        click.echo("no sessions", err=True)


@sessions.command(
    cls=Recorded,
    context_settings=CONTEXT,
    short_help="End a session at once; its streams are cut.",
    epilog="Example: s2cs sessions kill scan-7 --reason 'the beamline is being searched'",
)
@click.argument("uid")
@click.option("--owner", default="", metavar="NAME", help="Whose it is, where several users have one of that uid.")
@click.option("--reason", default="", metavar="TEXT", help="Why; its user is told.")
@config_option
def kill(uid: str, owner: str, reason: str, file: Path | None) -> None:
    """End a session at once, and wait until it has ended: its streams are cut, its ports are given back.

    It is ended at this gateway. Its streams end at the other one, too, since they have nowhere to go.
    """
    from s2cs.lock import running_pid  # noqa: PLC0415

    if len(reason) > _REASON or not reason.isprintable():
        raise InvalidArgument(f"--reason {shown(reason)} is not a printable text of at most {_REASON} characters")
    settings = load(file)
    with opened(settings) as store:
        session = _only(store, uid, owner)
        words = f"killed by {_operator()} at the gateway" + (f": {reason}" if reason else "")
        store.revoke(session.id, words)
        if running_pid(settings) is None and not settings.store.etcd:  # then any of several carries it out
            raise Unavailable(
                f"no gateway runs on these settings, and streams of session {uid} may go on; "
                "it is killed as soon as one runs: s2cs serve"
            )
        ended = _ended(store, settings, session)
    click.echo(f"session {uid} of {session.owner.name} has ended: {printable(ended)}", err=True)


def _only(store: Store, uid: str, owner: str) -> Session:
    running = [s for s in store.sessions() if s.uid == uid and not s.state.ended]
    found = [s for s in running if owner in ("", s.owner.name)]
    if not found:
        whose = f" of {owner}" if owner else ""
        raise NotFound(f"there is no running session {shown(uid)[1:-1]}{whose}; s2cs sessions shows what there is")
    if len(found) > 1:
        names = ", ".join(sorted(s.owner.name for s in found))
        raise InvalidArgument(f"several users have a session {uid} ({names}); name one with --owner")
    return found[0]


def _ended(store: Store, settings: Settings, session: Session) -> str:
    """Wait until a session has ended; the reason that it gives."""
    from s2cs.node_view import lost  # noqa: PLC0415
    from scistream.machine import State  # noqa: PLC0415

    deadline = time.monotonic() + _KILL_S
    ask_node = time.monotonic() + _NODE_S
    while True:
        now = next((s for s in store.sessions() if s.id == session.id), None)
        if now is None or now.state.ended:
            return now.reason if now else "it is forgotten"
        if now.state is State.CLOSING and now.node and time.monotonic() > ask_node:
            ask_node = inf
            if why := lost(settings, now.node):
                raise Unavailable(
                    f"session {session.uid} is ended when its node is back, and its streams may go on until then: {why}"
                )
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                f"session {session.uid} is {now.state} after {_KILL_S:g} s; the order stands, see the gateway's log"
            )
        time.sleep(0.02)


def _operator() -> str:
    """Name who gives the order: the account of this host, and not root where somebody became it by sudo."""
    import pwd  # noqa: PLC0415

    try:
        return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"
