"""`s2cs user`: who may use the gateway."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from s2cs.audit.acts import RecordedGroup
from s2cs.commands.common import CONTEXT, config_option, json_option, load, opened, utc, when
from s2cs.commands.tokens import (
    expires_option,
    file_option,
    hand_over,
    insider,
    kept_nowhere,
    made,
    rotate,
    scope_option,
    token,
)
from scistream.errors import InvalidArgument

if TYPE_CHECKING:
    from s2cs.users import User


@click.group(
    cls=RecordedGroup, context_settings=CONTEXT, epilog="Example: s2cs user add alice --token-file alice.token"
)
def user() -> None:
    """Users and their tokens."""


@user.command(short_help="Add a user and print the token.", context_settings=CONTEXT)
@click.argument("name")
@click.option("--operator", is_flag=True, help="May see and release everybody's sessions.")
@click.option("--admin", is_flag=True, help="May do everything.")
@click.option("--group", "groups", multiple=True, metavar="GROUP", help="A group the user is in; repeat.")
@scope_option
@expires_option
@file_option
@config_option
def add(
    name: str,
    operator: bool,
    admin: bool,
    groups: tuple[str, ...],
    scopes: tuple[str, ...],
    expires: str,
    token_file: Path | None,
    file: Path | None,
) -> None:
    """Add a user and print the new token, which is shown only this once.

    Example: s2cs user add alice --token-file alice.token
    """
    from s2cs.auth import check_name  # noqa: PLC0415
    from s2cs.users import Rank, User  # noqa: PLC0415

    if operator and admin:
        raise InvalidArgument("--operator and --admin exclude each other; an admin may what an operator may")
    rank = Rank.ADMIN if admin else Rank.OPERATOR if operator else Rank.USER
    added = User.new(check_name(name), rank, [check_name(group, "group") for group in groups])
    secret, token = made(scopes, expires)
    with opened(load(file)) as store:
        store.users.add(added, token)
        try:
            hand_over(secret, token_file)
        except OSError:
            store.users.remove(name)  # with a token that nobody has
            raise
    click.echo(f"added {rank} {name}; {kept_nowhere(token_file)}", err=True)


@user.command(
    "list",
    short_help="Show who may use this gateway.",
    context_settings=CONTEXT,
    epilog="Example: s2cs user list --config gateway/s2cs.toml",
)
@config_option
@json_option
def list_users(file: Path | None, as_json: bool) -> None:
    """Show who may use this gateway, and who from outside was here."""
    with opened(load(file)) as store:
        users = store.users.all()
        tokens = {found.id: len(store.users.tokens(found.id)) for found in users}
    if as_json:
        click.echo(json.dumps([_user_row(found, tokens[found.id]) for found in users]))
        return
    for found in users:
        words = [f"{found.name:24} {found.rank!s:8} since {utc(found.created_at)}", f"last here {when(found.used_at)}"]
        words += [f"in {', '.join(sorted(found.groups))}"] if found.groups else []
        words += [] if found.outsider else [f"{tokens[found.id]} token{'' if tokens[found.id] == 1 else 's'}"]
        words += ["disabled"] if found.disabled else []
        click.echo(", ".join(words))


def _user_row(found: User, tokens: int) -> dict[str, Any]:
    return {
        "name": found.name,
        "id": found.id,
        "role": str(found.rank),
        "groups": sorted(found.groups),
        "disabled": found.disabled,
        "created_at": utc(found.created_at),
        "used_at": utc(found.used_at) if found.used_at else None,
        "tokens": tokens,
    }


@user.command(
    context_settings=CONTEXT, short_help="Remove a user and its tokens.", epilog="Example: s2cs user remove alice"
)
@click.argument("name")
@config_option
def remove(name: str, file: Path | None) -> None:
    """Remove a user: its tokens are refused from now on, and its sessions are nobody's who is added later."""
    with opened(load(file)) as store:
        outsider = store.users.by_name(name).outsider
        store.users.remove(name)
    click.echo(f"removed user {name}", err=True)
    if outsider:
        click.echo("it comes back with its next token; s2cs user disable keeps it out", err=True)


@user.command(
    short_help="Keep a user out.",
    context_settings=CONTEXT,
    epilog="Example: s2cs user disable globus:alice@example.org",
)
@click.argument("name")
@config_option
def disable(name: str, file: Path | None) -> None:
    """Keep a user out, from here or from outside, whatever credentials it has."""
    with opened(load(file)) as store:
        store.users.change(replace(store.users.by_name(name), disabled=True))
    click.echo(f"user {name} is kept out", err=True)


@user.command(
    short_help="Let a user in again.",
    context_settings=CONTEXT,
    epilog="Example: s2cs user enable globus:alice@example.org",
)
@click.argument("name")
@config_option
def enable(name: str, file: Path | None) -> None:
    """Let a user in again."""
    with opened(load(file)) as store:
        store.users.change(replace(store.users.by_name(name), disabled=False))
    click.echo(f"user {name} is let in again", err=True)


@user.command(short_help="Give a user another role or groups.", context_settings=CONTEXT)
@click.argument("name")
@click.option("--role", type=click.Choice(["user", "operator", "admin"]), help="What it may do to others' sessions.")
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="GROUP",
    help="A group the user is in, instead of all it was in; repeat.",
)
@click.option("--no-groups", is_flag=True, help="It is in no group any more.")
@config_option
def change(name: str, role: str | None, groups: tuple[str, ...], no_groups: bool, file: Path | None) -> None:
    """Give a user of this gateway another role or other groups.

    Example: s2cs user change alice --role operator --group beamline-7
    """
    from s2cs.auth import check_name  # noqa: PLC0415
    from s2cs.users import Rank  # noqa: PLC0415

    if not (role or groups or no_groups):
        raise InvalidArgument("nothing is to be changed; give --role, --group or --no-groups")
    with opened(load(file)) as store:
        found = insider(store.users, name)
        rank = Rank[role.upper()] if role else found.rank
        kept = frozenset() if no_groups or groups else found.groups
        store.users.change(replace(found, rank=rank, groups=kept | {check_name(each, "group") for each in groups}))
    click.echo(f"changed user {name}", err=True)


user.add_command(rotate)
user.add_command(token)
