"""`s2cs user token` and `s2cs user rotate`: the tokens of this gateway's own users."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

import click

from s2cs.audit.acts import Recorded, RecordedGroup
from s2cs.commands.common import CONTEXT, config_option, json_option, load, opened, utc, when
from scistream.errors import FailedPrecondition, InvalidArgument, NotFound
from scistream.vocabulary import parse_duration

if TYPE_CHECKING:
    from s2cs.users import Token, User, Users

expires_option = click.option(
    "--expires", default="", metavar="TIME", help="How long the token is good, as 30d [default: for ever]."
)
scope_option = click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["sessions", "read", "admin"]),
    help="What the token is for; repeat [default: everything that the user may].",
)
file_option = click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the token into this new file, mode 0600 [default: print it].",
)


def made(scopes: tuple[str, ...], expires: str) -> tuple[str, Token]:
    """Make a token, and the record of it."""
    from s2cs.auth import digest, new_token  # noqa: PLC0415
    from s2cs.users import SCOPES, Token  # noqa: PLC0415

    secret = new_token()
    return secret, Token.new(
        digest(secret), scopes or SCOPES, time.time() + parse_duration(expires) if expires else inf
    )


def hand_over(secret: str, file: Path | None) -> None:
    """Write a new token into a file of its own, or print it.

    Raises:
        FileExistsError, OSError: it cannot be written; a file that is there is left alone.
    """
    if file:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:  # noqa: PTH123
            out.write(f"{secret}\n")
    else:
        click.echo(secret)


def kept_nowhere(file: Path | None) -> str:
    """Say where a new token is, and that it is nowhere else."""
    where = f"the token is in {file}" if file else "that is the token"
    return f"{where} and is not kept here, so hand it over now"


def insider(users: Users, name: str) -> User:
    """Find a user that has tokens of this gateway."""
    found = users.by_name(name)
    if found.outsider:
        raise FailedPrecondition(f"{name} comes from outside, with tokens of others; s2cs user disable keeps it out")
    return found


@click.command(cls=Recorded, short_help="Print a new token in place of one.", context_settings=CONTEXT)
@click.argument("name")
@click.option("--token", "token_id", default="", metavar="ID", help="Which token is to end [default: the only one].")
@click.option(
    "--overlap", default="1h", show_default=True, metavar="TIME", help="How long the old one is good beside it."
)
@expires_option
@file_option
@config_option
def rotate(name: str, token_id: str, overlap: str, expires: str, token_file: Path | None, file: Path | None) -> None:
    """Print a new token in place of one that ends after a while. It is for the same, and good for as long.

    Example: s2cs user rotate alice --overlap 1d --token-file alice.token
    """
    ends_at = time.time() + parse_duration(overlap)
    with opened(load(file)) as store:
        old = _one(store.users, insider(store.users, name), token_id)
        secret, token = made(tuple(old.scopes), expires)
        if not expires:
            token = replace(token, expires_at=token.created_at + (old.expires_at - old.created_at))
        store.users.add_token(store.users.by_name(name).id, token)
        try:
            hand_over(secret, token_file)
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


@click.group(cls=RecordedGroup, context_settings=CONTEXT, epilog="Example: s2cs user token list alice")
def token() -> None:
    """Tokens of a user."""


@token.command("add", short_help="Print another token of a user.", context_settings=CONTEXT)
@click.argument("name")
@scope_option
@expires_option
@file_option
@config_option
def add_token(name: str, scopes: tuple[str, ...], expires: str, token_file: Path | None, file: Path | None) -> None:
    """Print another token of a user, which is shown only this once.

    Example: s2cs user token add alice --scope read --expires 30d
    """
    secret, record = made(scopes, expires)
    with opened(load(file)) as store:
        store.users.add_token(insider(store.users, name).id, record)
        try:
            hand_over(secret, token_file)
        except OSError:
            store.users.end_token(record.id)
            raise
    click.echo(f"added token {record.id} of user {name}; {kept_nowhere(token_file)}", err=True)


@token.command(
    "list", short_help="Show a user's tokens.", context_settings=CONTEXT, epilog="Example: s2cs user token list alice"
)
@click.argument("name")
@json_option
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
            f"{ends} {when(each.expires_at)}, last used {when(each.used_at)}"
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
        store.users.end_token(_one(store.users, insider(store.users, name), token_id).id)
    click.echo(f"token {token_id} of user {name} is refused from now on", err=True)
