"""`s2uc completion`, and what the shell is offered for values: from the user's files, without asking a gateway."""

from __future__ import annotations

import click

from s2uc.commands.common import Command, Settings
from scistream.errors import ScistreamError


def gateways(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Offer the gateways that are known."""
    try:
        known = ctx.ensure_object(Settings).config.gateways()
    except ScistreamError:
        return []
    return [gateway.name for gateway in known if gateway.name.startswith(incomplete)]


def uids(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Offer the sessions on file."""
    try:
        known = ctx.ensure_object(Settings).config.session_uids()
    except ScistreamError:
        return []
    return [uid for uid in known if uid.startswith(incomplete)]


def roles(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Offer an application's sides."""
    return [role for role in ("producer", "consumer") if role.startswith(incomplete.lower())]


def backends(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Offer the proxies that a gateway may have."""
    return [name for name in ("auto", "nginx", "haproxy", "stunnel") if name.startswith(incomplete.lower())]


@click.command(
    "completion", cls=Command, example="s2uc completion bash > ~/.local/share/bash-completion/completions/s2uc"
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell."""
    from click.shell_completion import get_completion_class  # noqa: PLC0415

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "s2uc", "_S2UC_COMPLETE").source())
