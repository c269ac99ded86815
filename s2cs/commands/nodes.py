"""`s2cs nodes`: further gateway nodes, and `s2cs s2ds`, which serves on one of them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Literal

import click

from s2cs.audit.acts import Recorded, RecordedGroup
from s2cs.commands.common import (
    CONTEXT,
    config_option,
    json_option,
    load,
    log_format_option,
    opened,
    verbose_option,
)
from scistream.errors import FailedPrecondition, NotFound
from scistream.vocabulary import shown


@click.group(
    cls=RecordedGroup,
    context_settings=CONTEXT,
    invoke_without_command=True,
    short_help="Show the nodes of this gateway, add some, drain one.",
    epilog="Example: s2cs nodes add gw2 10.1.0.6:5010 --wan 192.0.2.6",
)
@config_option
@json_option
@click.pass_context
def nodes(context: click.Context, file: Path | None, as_json: bool) -> None:
    """Show the nodes of this gateway, add some, drain one. Alone it does what `list` does."""
    if context.invoked_subcommand is None:
        _show(file, as_json)
    elif file or as_json:
        raise click.UsageError(f"write the options after {context.invoked_subcommand}")


@nodes.command("list", context_settings=CONTEXT, epilog="Example: s2cs nodes list --json")
@config_option
@json_option
def list_nodes(file: Path | None, as_json: bool) -> None:
    """Show the nodes of this gateway, as they answer now: state, sessions, and what is free."""
    _show(file, as_json)


def _show(file: Path | None, as_json: bool) -> None:
    from s2cs.node_view import look  # noqa: PLC0415

    settings = load(file)
    with opened(settings) as store:
        views = asyncio.run(look(settings, store))
    if as_json:
        click.echo(json.dumps([view.facts for view in views]))
        return
    for view in views:
        free = f"{view.free_ports['wan']} wan {view.free_ports['lan']} lan" if view.free_ports else "-"
        rate = f"{view.rate_reserved} of {view.rate or 'any'}"
        line = (
            f"{view.name:16} {view.state:8} sessions {view.sessions:<5} free ports {free:18} rate {rate} {view.reason}"
        )
        click.echo(line.rstrip())


@nodes.command(
    cls=Recorded,
    context_settings=CONTEXT,
    short_help="Let a node take no new sessions.",
    epilog="Example: s2cs nodes drain gw2",
)
@click.argument("name")
@click.option("--off", is_flag=True, help="Let it take new sessions again.")
@config_option
def drain(name: str, off: bool, file: Path | None) -> None:
    """Let a node take no new sessions; those it has go on to their end. Outlives a restart."""
    from s2cs.data_server import drained_fact  # noqa: PLC0415
    from s2cs.settings import LOCAL  # noqa: PLC0415

    settings = load(file)
    names = [LOCAL, *(node.name for node in settings.s2ds.nodes)]
    if name not in names:
        raise NotFound(f"there is no node {shown(name)}; use {', '.join(names)}")
    with opened(settings) as store:
        store.note(drained_fact(name), "no" if off else "yes")
        left = sum(not s.state.ended and (s.node or LOCAL) == name for s in store.sessions())
    what = "takes new sessions again" if off else "takes no new sessions"
    click.echo(f"node {name} {what}; it has {left} now", err=True)


@nodes.command(
    cls=Recorded,
    context_settings=CONTEXT,
    short_help="Make a node's settings and certificate.",
    epilog="Example: s2cs nodes add gw2 10.1.0.6:5010 --lan 10.1.0.6 --wan 192.0.2.6 --rate 40Gb/s",
)
@click.argument("name")
@click.argument("address", metavar="HOST:PORT")
@click.option("--lan", default="", metavar="ADDR", help="The node's address in the LAN [default: HOST].")
@click.option("--wan", default="", metavar="ADDR", help="The node's address in the WAN [default: that in the LAN].")
@click.option("--port-range", default="", metavar="A-B", help="Ports for sessions [default: this gateway's].")
@click.option("--rate", default="", metavar="RATE", help="What its sessions may reserve together [default: no limit].")
@click.option("--bundle", type=click.Path(path_type=Path, dir_okay=False), help="File to write [default: NAME.toml].")
@config_option
def add(
    name: str, address: str, lan: str, wan: str, port_range: str, rate: str, bundle: Path | None, file: Path | None
) -> None:
    """Make a gateway node's settings, with its certificate, and name it in the settings of this gateway.

    The file is all that the node needs: bring it there, and keep it secret.
    """
    from s2cs.data_server import drained_fact  # noqa: PLC0415
    from s2cs.node_setup import add as make  # noqa: PLC0415
    from s2cs.settings_file import located  # noqa: PLC0415

    bundle = bundle or Path(f"{name}.toml")
    file = located(file)
    make(file, name, address, lan, wan, port_range, rate, bundle)
    with opened(load(file)) as store:
        store.note(drained_fact(name), "no")
    click.echo(f"settings of the node  {bundle}: bring it there, and keep it secret")
    click.echo(f"\nOn the node:  s2cs s2ds --config {bundle.name}")
    click.echo("Then here:    s2cs reload; for the first node restart s2cs serve, streams go on meanwhile")


@nodes.command(
    cls=Recorded,
    context_settings=CONTEXT,
    short_help="Take a node out of this gateway.",
    epilog="Example: s2cs nodes remove gw2",
)
@click.argument("name")
@click.option("--end-sessions", is_flag=True, help="Though it has sessions: they end at the reload.")
@config_option
def remove(name: str, end_sessions: bool, file: Path | None) -> None:
    """Take a node out of the settings of this gateway: one that is drained, or that will not come back."""
    from s2cs.data_server import drained_fact  # noqa: PLC0415
    from s2cs.node_setup import node_of  # noqa: PLC0415
    from s2cs.node_setup import remove as take_out  # noqa: PLC0415
    from s2cs.settings_file import located  # noqa: PLC0415

    settings = load(file)
    node_of(settings, name)
    with opened(settings) as store:
        left = sum(not s.state.ended and s.node == name for s in store.sessions())
        if left and not end_sessions:
            raise FailedPrecondition(
                f"node {name} has {left} sessions; drain it and wait for their end, or end them with --end-sessions"
            )
        take_out(located(file), name)
        store.note(drained_fact(name), "yes")  # until the reload, too, and until a node of that name is added
    click.echo(f"node {name} is out of the settings", err=True)
    ended = f", which ends its {left} sessions" if left else ""
    click.echo(f"Then here:    s2cs reload{ended}")


@click.command(
    context_settings=CONTEXT,
    short_help="Serve on a further gateway node.",
    epilog="Example: s2cs s2ds --config gw2.toml",
)
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The file that s2cs nodes add has made.",
)
@verbose_option
@log_format_option
def s2ds(file: Path, verbose: bool, form: Literal["auto", "text", "json"]) -> None:
    """Serve on a further gateway node, until told to stop; its streams go on then."""
    from s2cs import logs  # noqa: PLC0415
    from s2cs.node import serve  # noqa: PLC0415

    logs.configure(form, verbose)
    asyncio.run(serve(file))
