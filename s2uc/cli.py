"""The user's command line. Each command is in its own module, which is loaded when it is called."""

from __future__ import annotations

import signal
import sys
import traceback
from importlib import import_module
from typing import cast

import click

import scistream
from s2uc.commands.common import Group, Settings, Stopped, remark
from scistream.errors import ScistreamError
from scistream.streams import open_streams, settle
from scistream.vocabulary import meant, printable, shown

INTERRUPTED = 130

_COMMANDS = {
    "gateway": ("gateways", "The facilities you know: add, list, remove."),
    "login": ("tokens", "Keep your token for a gateway."),
    "logout": ("tokens", "Forget your token for a gateway."),
    "check-auth": ("tokens", "Say who you are to each gateway."),
    "ping": ("ping", "Measure the way to gateways, and say how they are."),
    "test": ("test", "Stream through two gateways for some seconds, and measure."),
    "request": ("request", "Open a session between two facilities."),
    "inbound-request": ("halves", "Open the producer's half of a session and write a ticket for the other."),
    "outbound-request": ("halves", "Open the consumer's half of a session with a ticket."),
    "list": ("sessions", "Show your sessions."),
    "status": ("sessions", "Show one session."),
    "watch": ("watch", "Follow sessions, or all of yours, to the end."),
    "logs": ("logs", "Show what became of a session, and what its proxies printed."),
    "verify": ("verify", "Try each leg of a session: reachable, and TLS as promised."),
    "renew": ("sessions", "Make a session live longer, under its running streams."),
    "release": ("sessions", "End a session and give everything back."),
    "hello": ("apps", "Say Hello for an application."),
    "run": ("apps", "Say Hello, wait until the way is open, and run an application."),
    "demo": ("demo", "Two gateways, a producer and a consumer on this machine, with real data."),
    "completion": ("completion", "Print the completion script of a shell."),
}
"""Each command with its module in `s2uc.commands` and its line in the help, which needs no import so."""


class LazyGroup(Group):
    """The commands above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name them in the table's order."""
        return list(_COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the one that was called, or say which may have been meant."""
        if not ctx.resilient_parsing and args[0] not in _COMMANDS and (hint := meant(args[0], _COMMANDS)):
            ctx.fail(f"No such command {shown(args[0])}{hint}")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one."""
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"s2uc.commands.{_COMMANDS[cmd_name][0]}")
        return cast(click.Command, getattr(module, cmd_name.replace("-", "_") + "_command"))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List them without loading any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    example=(
        "s2uc gateway add aps aps.example.org:5000 --ca aps-ca.crt --token-file aps.token\n"
        "s2uc gateway add alcf alcf.example.org:5000 --ca alcf-ca.crt --token-file alcf.token\n"
        "s2uc request --producer aps --consumer alcf --prod-listeners 10.1.0.7:5074 --num-conn 4"
    ),
)
@click.version_option(scistream.__version__, prog_name="s2uc")
def cli() -> None:
    """Stream from a program at one facility to a program at another, through their SciStream gateways.

    To see it work on this machine: s2uc demo
    """


def main() -> None:
    """Run the command line; every fault becomes one sentence on stderr and an exit status."""
    open_streams()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored nobody hears how a child ended
    settings = Settings()
    status = _run(settings)
    sys.exit(status if settle() else status or 1)


def _run(settings: Settings) -> int:
    try:
        return cli.main(prog_name="s2uc", standalone_mode=False, obj=settings) or 0
    except click.exceptions.NoArgsIsHelpError as error:  # its message is the help
        remark(error.format_message())
        return error.exit_code
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "s2uc"
        _complain(f"{error.format_message().rstrip('.')}; see: {where} --help")
        return error.exit_code
    except click.ClickException as error:
        _complain(error.format_message())
        return error.exit_code
    except ScistreamError as error:
        _complain(str(error))
        return error.exit_status
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted")
        return INTERRUPTED
    except Stopped as error:
        _complain("interrupted" if error.number == signal.SIGINT else "terminated")
        return 128 + error.number
    except BrokenPipeError:
        sys.stderr.close()  # so does its reader; nothing more can be said
        return 1
    except Exception as error:
        if settings.verbose:
            traceback.print_exc()
        _complain(f"internal fault: {type(error).__name__}: {error}; please report it, with the output of --verbose")
        return 1


def _complain(message: str) -> None:
    remark(f"s2uc: {printable(' '.join(message.split()))}")
