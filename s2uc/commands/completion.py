"""`s2uc completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from s2uc.commands.common import Command


@click.command(
    "completion", cls=Command, example="s2uc completion bash > ~/.local/share/bash-completion/completions/s2uc"
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "s2uc", "_S2UC_COMPLETE").source())
