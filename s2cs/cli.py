"""The operator's command line. What it does is in the modules it calls."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Literal

import click

import scistream
from s2cs import notify
from s2cs.audit.acts import Recorded
from s2cs.commands.audit import audit
from s2cs.commands.common import CONTEXT, config_option, load, log_format_option, opened, verbose_option
from s2cs.commands.doctor import doctor
from s2cs.commands.nodes import nodes, s2ds
from s2cs.commands.policy import policy
from s2cs.commands.sessions import sessions
from s2cs.commands.users import user
from scistream.errors import DeadlineExceeded, ScistreamError, Unavailable
from scistream.streams import open_streams, settle

_RELOAD_S = 10.0
_DIR = click.Path(path_type=Path, file_okay=False)


@click.group(context_settings=CONTEXT, epilog="Try it: s2cs init DIR && s2cs serve --config DIR/s2cs.toml")
@click.version_option(scistream.__version__, prog_name="s2cs")
def cli() -> None:
    """Control server of a SciStream gateway: opens and closes ways between two facilities."""


@cli.command(context_settings=CONTEXT, short_help="Write settings, development certificates and a first user.")
@click.argument("directory", type=_DIR)
@click.option("--name", default="", help="This gateway's name [default: the host's].")
@click.option("--host", "hosts", multiple=True, metavar="HOST", help="A name or address for the certificate; repeat.")
@click.option("--port", default=5000, show_default=True, help="Control port, on the LAN and the WAN address.")
@click.option("--lan", default="127.0.0.1", show_default=True, metavar="ADDR", help="This host's address in the LAN.")
@click.option("--wan", default="127.0.0.1", show_default=True, metavar="ADDR", help="This host's address in the WAN.")
@click.option("--port-range", default="30000-30999", show_default=True, metavar="A-B", help="Ports for sessions.")
@click.option(
    "--backend",
    type=click.Choice(["auto", "stunnel", "haproxy", "nginx"]),
    default="auto",
    show_default=True,
    help="The proxy that carries the data.",
)
@click.option(
    "--metrics-port", type=int, help="Port of metrics and health on loopback; 0 for none [default: control port + 1]."
)
@click.option("--state-dir", type=_DIR, default="state", show_default=True, help="Where the store is, from DIRECTORY.")
@click.option("--audit-dir", type=_DIR, help="Where the audit log is [default: in the state directory].")
def init(
    directory: Path,
    name: str,
    hosts: tuple[str, ...],
    port: int,
    lan: str,
    wan: str,
    port_range: str,
    backend: str,
    metrics_port: int | None,
    state_dir: Path,
    audit_dir: Path | None,
) -> None:
    """Write settings, development certificates and a first user into DIRECTORY.

    Example: s2cs init /srv/s2cs --name aps --lan 10.1.0.5 --wan 192.0.2.5 --host gateway.example.org
    """
    from s2cs.setup import initialise  # noqa: PLC0415

    metrics_port = port + 1 if metrics_port is None else metrics_port
    names = initialise(directory, name, hosts, port, lan, wan, port_range, backend, metrics_port, state_dir, audit_dir)
    click.echo(f"settings     {directory / 's2cs.toml'}")
    click.echo(f"certificate  {directory / 'certs' / 'server.crt'} for {', '.join(names)}")
    click.echo(f"CA           {directory / 'certs' / 'ca.crt'}: give it to your users")
    click.echo(f"token        {directory / 'token'} of user admin: keep it secret")
    click.echo(f"\nCheck it:    s2cs check --config {directory / 's2cs.toml'}")
    click.echo(f"Start it:    s2cs serve --config {directory / 's2cs.toml'}")


@cli.command(
    context_settings=CONTEXT,
    short_help="Look for everything that would keep the gateway from working.",
    epilog="Example: s2cs check --config gateway/s2cs.toml",
)
@config_option
def check(file: Path | None) -> None:
    """Look for everything that would keep the gateway from working; exit 0 or 1."""
    from s2cs.check import check as look  # noqa: PLC0415

    findings = look(load(file))
    for finding in findings:
        word = "FAULT" if not finding.ok else "warn " if finding.warning else "ok   "
        click.echo(f"{word} {finding.text}")
    faults = sum(not finding.ok for finding in findings)
    click.echo(f"{faults or 'no'} fault{'' if faults == 1 else 's'}", err=True)
    sys.exit(1 if faults else 0)


@cli.command(
    context_settings=CONTEXT,
    short_help="Run the gateway until SIGTERM.",
    epilog="Example: s2cs serve --config gateway/s2cs.toml",
)
@config_option
@verbose_option
@log_format_option
def serve(file: Path | None, verbose: bool, form: Literal["auto", "text", "json"]) -> None:
    """Run the gateway until SIGTERM; SIGHUP reads settings and certificate again."""
    from s2cs import logs  # noqa: PLC0415
    from s2cs.server import serve as run  # noqa: PLC0415

    logs.configure(form, verbose)
    if asyncio.run(run(file)):
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - itself, with nothing in memory


@cli.command(
    context_settings=CONTEXT,
    short_help="Make the running gateway read settings and certificate again.",
    epilog="Example: s2cs reload --config gateway/s2cs.toml",
)
@config_option
def reload(file: Path | None) -> None:
    """Make the running gateway read its settings and certificate again.

    What cannot be used is refused, here and there, and the old stays in force.
    """
    from s2cs.credentials import read_certificate  # noqa: PLC0415
    from s2cs.lock import running_pid  # noqa: PLC0415
    from s2cs.server import RELOADED  # noqa: PLC0415

    settings = load(file)
    read_certificate(settings)
    pid = running_pid(settings)
    if pid is None:
        raise Unavailable("no gateway runs on these settings; start it with: s2cs serve")
    with opened(settings) as store:
        before = store.fact(RELOADED)
        os.kill(pid, signal.SIGHUP)
        deadline = time.monotonic() + _RELOAD_S
        while (after := store.fact(RELOADED)) == before:
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"gateway process {pid} did not answer within {_RELOAD_S:g} s; see its log")
            time.sleep(0.02)
    outcome = json.loads(after)
    if outcome["fault"]:
        raise ScistreamError(outcome["fault"])
    click.echo("reloaded", err=True)
    if outcome["restart"]:
        click.echo(f"these wait for a restart: {', '.join(outcome['restart'])}", err=True)
    for session in outcome.get("forbidden", ()):
        click.echo(f"no longer allowed, and kept until its lease ends: session {session}", err=True)
    if outcome.get("forbidden"):
        click.echo("end one at once with: s2cs sessions kill UID", err=True)


@cli.command(cls=Recorded, context_settings=CONTEXT, epilog="Example: s2cs drain --config gateway/s2cs.toml")
@config_option
@click.option("--off", is_flag=True, help="Take new sessions again.")
def drain(file: Path | None, off: bool) -> None:
    """Take no new sessions; those there are go on to their end. Outlives a restart."""
    from s2cs.orders import DRAINING  # noqa: PLC0415

    with opened(load(file)) as store:
        store.note(DRAINING, "no" if off else "yes")
        left = sum(not session.state.ended for session in store.sessions())
    what = "new sessions are taken again" if off else "no new sessions are taken"
    click.echo(f"{what}; {left} {'is' if left == 1 else 'are'} there now", err=True)


cli.add_command(audit)
cli.add_command(nodes)
cli.add_command(s2ds)
cli.add_command(sessions)
cli.add_command(policy)
cli.add_command(user)
cli.add_command(doctor)


def main() -> None:
    """Run the command line; a fault is one sentence and an exit status."""
    open_streams()
    try:
        cli()
    except ScistreamError as error:
        for line in str(error).splitlines():
            click.echo(f"s2cs: {line}", err=True)
        if "NOTIFY_SOCKET" in os.environ:  # a service that does not come up: its status line says why
            notify.tell(f"STATUS=s2cs: {'; '.join(str(error).splitlines())}")
        sys.exit(error.exit_status)
    except FileExistsError as error:
        click.echo(f"s2cs: {error.filename} is there already; name another file, or move it away", err=True)
        sys.exit(1)
    except OSError as error:
        click.echo(f"s2cs: {error.filename or 'the output'} cannot be used: {error.strerror}", err=True)
        sys.exit(1)
    finally:
        settle()
