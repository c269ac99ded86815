"""`s2cs user`: who may use the gateway."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from s2cs.audit.acts import RecordedGroup
from s2cs.commands.common import CONTEXT, config_option, load, opened, utc
from scistream.errors import InvalidArgument


@click.group(
    cls=RecordedGroup, context_settings=CONTEXT, epilog="Example: s2cs user add alice --token-file alice.token"
)
def user() -> None:
    """Users and their tokens."""


@user.command(context_settings=CONTEXT)
@click.argument("name")
@click.option("--operator", is_flag=True, help="May see and release everybody's sessions.")
@click.option("--admin", is_flag=True, help="May do everything.")
@click.option("--group", "groups", multiple=True, metavar="GROUP", help="A group the user is in; repeat.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the token into this new file, mode 0600 [default: print it].",
)
@config_option
def add(
    name: str, operator: bool, admin: bool, groups: tuple[str, ...], token_file: Path | None, file: Path | None
) -> None:
    """Add a user and print the new token, which is shown only this once.

    Example: s2cs user add alice --token-file alice.token
    """
    from s2cs.auth import check_name, digest, new_token  # noqa: PLC0415
    from s2cs.users import Rank, Token, User  # noqa: PLC0415

    if operator and admin:
        raise InvalidArgument("--operator and --admin exclude each other; an admin may what an operator may")
    rank = Rank.ADMIN if admin else Rank.OPERATOR if operator else Rank.USER
    token = new_token()
    with opened(load(file)) as store:
        added = User.new(check_name(name), rank, [check_name(group, "group") for group in groups])
        store.users.add(added, Token.new(digest(token)))
        try:
            _hand_over(token, token_file)
        except OSError:
            store.users.remove(name)  # with a token that nobody has
            raise
    click.echo(f"added {rank} {name}; the token is not kept, so hand it over now", err=True)


def _hand_over(token: str, file: Path | None) -> None:
    if file:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:  # noqa: PTH123
            out.write(f"{token}\n")
    else:
        click.echo(token)


@user.command("list", context_settings=CONTEXT, epilog="Example: s2cs user list --config gateway/s2cs.toml")
@config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON array on stdout.")
def list_users(file: Path | None, as_json: bool) -> None:
    """Show who may use this gateway."""
    with opened(load(file)) as store:
        users = store.users.all()
    if as_json:
        rows = [
            {
                "name": found.name,
                "id": found.id,
                "role": str(found.rank),
                "groups": sorted(found.groups),
                "disabled": found.disabled,
                "created_at": utc(found.created_at),
            }
            for found in users
        ]
        click.echo(json.dumps(rows))
        return
    for found in users:
        state = " disabled" if found.disabled else ""
        groups = f" in {', '.join(sorted(found.groups))}" if found.groups else ""
        click.echo(f"{found.name:24} {found.rank!s:8} since {utc(found.created_at)}{groups}{state}")


@user.command(
    context_settings=CONTEXT,
    short_help="Remove a user and its tokens.",
    epilog="Example: s2cs user remove alice",
)
@click.argument("name")
@config_option
def remove(name: str, file: Path | None) -> None:
    """Remove a user: its tokens are refused from now on, and its sessions are nobody's who is added later."""
    with opened(load(file)) as store:
        store.users.remove(name)
    click.echo(f"removed user {name}", err=True)
