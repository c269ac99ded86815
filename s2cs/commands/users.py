"""`s2cs user`: who may use the gateway."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from s2cs.audit.acts import RecordedGroup
from s2cs.commands.common import CONTEXT, config_option, load, opened, utc
from scistream.errors import FailedPrecondition, InvalidArgument, NotFound
from scistream.vocabulary import parse_duration

if TYPE_CHECKING:
    from s2cs.users import Token, User, Users

_expires_option = click.option(
    "--expires", default="", metavar="TIME", help="How long the token is good, as 30d [default: for ever]."
)
_scope_option = click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["sessions", "read", "admin"]),
    help="What the token is for; repeat [default: everything that the user may].",
)
_file_option = click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the token into this new file, mode 0600 [default: print it].",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON array on stdout.")


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
@_scope_option
@_expires_option
@_file_option
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
    secret, token = _made(scopes, expires)
    with opened(load(file)) as store:
        store.users.add(added, token)
        try:
            _hand_over(secret, token_file)
        except OSError:
            store.users.remove(name)  # with a token that nobody has
            raise
    click.echo(f"added {rank} {name}; the token is not kept, so hand it over now", err=True)


def _made(scopes: tuple[str, ...], expires: str) -> tuple[str, Token]:
    from s2cs.auth import digest, new_token  # noqa: PLC0415
    from s2cs.users import SCOPES, Token  # noqa: PLC0415

    secret = new_token()
    return secret, Token.new(
        digest(secret), scopes or SCOPES, time.time() + parse_duration(expires) if expires else inf
    )


def _hand_over(secret: str, file: Path | None) -> None:
    if file:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:  # noqa: PTH123
            out.write(f"{secret}\n")
    else:
        click.echo(secret)


def _insider(users: Users, name: str) -> User:
    found = users.by_name(name)
    if found.outsider:
        raise FailedPrecondition(f"{name} comes from outside, with tokens of others; s2cs user disable keeps it out")
    return found


@user.command("list", context_settings=CONTEXT, epilog="Example: s2cs user list --config gateway/s2cs.toml")
@config_option
@_json_option
def list_users(file: Path | None, as_json: bool) -> None:
    """Show who may use this gateway, and who from outside was here."""
    with opened(load(file)) as store:
        users = store.users.all()
        tokens = {found.id: len(store.users.tokens(found.id)) for found in users}
    if as_json:
        click.echo(json.dumps([_user_row(found, tokens[found.id]) for found in users]))
        return
    for found in users:
        words = [f"{found.name:24} {found.rank!s:8} since {utc(found.created_at)}", f"last here {_when(found.used_at)}"]
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


def _when(seconds: float) -> str:
    return "never" if not seconds or seconds == inf else utc(seconds)


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


@user.command(context_settings=CONTEXT, epilog="Example: s2cs user disable globus:alice@example.org")
@click.argument("name")
@config_option
def disable(name: str, file: Path | None) -> None:
    """Keep a user out, from here or from outside, whatever credentials it has."""
    with opened(load(file)) as store:
        store.users.change(replace(store.users.by_name(name), disabled=True))
    click.echo(f"user {name} is kept out", err=True)


@user.command(context_settings=CONTEXT, epilog="Example: s2cs user enable globus:alice@example.org")
@click.argument("name")
@config_option
def enable(name: str, file: Path | None) -> None:
    """Let a user in again."""
    with opened(load(file)) as store:
        store.users.change(replace(store.users.by_name(name), disabled=False))
    click.echo(f"user {name} is let in again", err=True)


@user.command(context_settings=CONTEXT)
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
        found = _insider(store.users, name)
        rank = Rank[role.upper()] if role else found.rank
        kept = frozenset() if no_groups or groups else found.groups
        store.users.change(replace(found, rank=rank, groups=kept | {check_name(each, "group") for each in groups}))
    click.echo(f"changed user {name}", err=True)


@user.command(context_settings=CONTEXT)
@click.argument("name")
@click.option("--token", "token_id", default="", metavar="ID", help="Which token is to end [default: the only one].")
@click.option(
    "--overlap", default="1h", show_default=True, metavar="TIME", help="How long the old one is good beside it."
)
@_expires_option
@_file_option
@config_option
def rotate(name: str, token_id: str, overlap: str, expires: str, token_file: Path | None, file: Path | None) -> None:
    """Print a new token in place of one that ends after a while. It is for the same, and good for as long.

    Example: s2cs user rotate alice --overlap 1d --token-file alice.token
    """
    ends_at = time.time() + parse_duration(overlap)
    with opened(load(file)) as store:
        old = _one(store.users, _insider(store.users, name), token_id)
        secret, token = _made(tuple(old.scopes), expires)
        if not expires:
            token = replace(token, expires_at=token.created_at + (old.expires_at - old.created_at))
        store.users.add_token(store.users.by_name(name).id, token)
        try:
            _hand_over(secret, token_file)
        except OSError:
            store.users.end_token(token.id)
            raise
        store.users.end_token(old.id, ends_at)
    click.echo(f"token {token.id} is in place of {old.id}, which ends {utc(min(ends_at, old.expires_at))}", err=True)


def _one(users: Users, found: User, token_id: str) -> Token:
    tokens = [token for token in users.tokens(found.id) if token.id == token_id or not token_id]
    good = [token for token in tokens if token_id or token.expires_at > time.time()]
    if len(good) > 1:
        raise InvalidArgument(
            f"user {found.name} has {len(good)} tokens; name one with --token ID, of s2cs user token list"
        )
    if not good:
        raise NotFound(f"user {found.name} has no such token; s2cs user token list shows what there is")
    return good[0]


@user.group(context_settings=CONTEXT, epilog="Example: s2cs user token list alice")
def token() -> None:
    """Tokens of a user."""


@token.command("add", context_settings=CONTEXT)
@click.argument("name")
@_scope_option
@_expires_option
@_file_option
@config_option
def add_token(name: str, scopes: tuple[str, ...], expires: str, token_file: Path | None, file: Path | None) -> None:
    """Print another token of a user, which is shown only this once.

    Example: s2cs user token add alice --scope read --expires 30d
    """
    secret, made = _made(scopes, expires)
    with opened(load(file)) as store:
        store.users.add_token(_insider(store.users, name).id, made)
        try:
            _hand_over(secret, token_file)
        except OSError:
            store.users.end_token(made.id)
            raise
    click.echo(f"added token {made.id} of user {name}; it is not kept, so hand it over now", err=True)


@token.command("list", context_settings=CONTEXT, epilog="Example: s2cs user token list alice")
@click.argument("name")
@_json_option
@config_option
def list_tokens(name: str, as_json: bool, file: Path | None) -> None:
    """Show a user's tokens; the secrets are known to nobody here."""
    with opened(load(file)) as store:
        found = store.users.tokens(store.users.by_name(name).id)
    if as_json:
        rows = [
            {
                "id": each.id,
                "scopes": sorted(each.scopes),
                "created_at": utc(each.created_at),
                "expires_at": None if each.expires_at == inf else utc(each.expires_at),
                "used_at": utc(each.used_at) if each.used_at else None,
            }
            for each in found
        ]
        click.echo(json.dumps(rows))
        return
    for each in found:
        ends = "expired" if each.expires_at <= time.time() else "expires"
        click.echo(
            f"{each.id}  {' '.join(sorted(each.scopes)):20}  since {utc(each.created_at)}, "
            f"{ends} {_when(each.expires_at)}, last used {_when(each.used_at)}"
        )
    if not found:
        click.echo("no tokens", err=True)


@token.command(context_settings=CONTEXT, epilog="Example: s2cs user token revoke alice 1f2e3d4c")
@click.argument("name")
@click.argument("token_id", metavar="ID")
@config_option
def revoke(name: str, token_id: str, file: Path | None) -> None:
    """End a token now."""
    with opened(load(file)) as store:
        store.users.end_token(_one(store.users, _insider(store.users, name), token_id).id)
    click.echo(f"token {token_id} of user {name} is refused from now on", err=True)
