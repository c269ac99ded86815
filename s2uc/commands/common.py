"""What all commands share: global options anywhere on the line, values parsed at the door, output."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from s2uc.config import KnownGateway, UserConfig
from scistream.errors import InvalidArgument, ScistreamError
from scistream.vocabulary import Endpoint, Rate, Role, Uid, parse_duration, shown

if TYPE_CHECKING:
    from s2uc.side import StepEvent

    _ParamType = click.ParamType[Any]
else:  # no generic before click 8.4
    _ParamType = click.ParamType

_T = TypeVar("_T")
_LONGEST_S = 366 * 86400
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CONTEXT = {"help_option_names": ["-h", "--help"]}


class Stopped(Exception):
    """A signal came that ends; what was under way has been undone."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass
class Settings:
    """The global options, as given before or after the sub-command."""

    config_dir: str | None = None
    timeout: int | None = None
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def config(self) -> UserConfig:
        """The user's directory."""
        return UserConfig.locate(self.config_dir)

    def call_timeout(self, default: float = 30.0) -> float:
        """Seconds for one call to a gateway."""
        return float(self.timeout or default)

    def emit(self, content: dict[str, Any], text: str) -> None:
        """Print the result: one JSON object for programs, text for people."""
        if self.json:
            put(json.dumps(content))
        elif text:
            put(text)

    def say(self, message: str) -> None:
        """Print a message for people, beside the result."""
        if not self.quiet:
            remark(message)

    def progress(self, event: StepEvent) -> None:
        """Show a step, where somebody looks."""
        if self.verbose or (sys.stderr.isatty() and not self.quiet):
            remark(str(event))


def put(line: str) -> None:
    """Print a line of the result.

    Raises:
        ScistreamError: it cannot be written.
    """
    try:
        click.echo(line)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ScistreamError(f"the output cannot be written: {error.strerror}") from None


def remark(line: str) -> None:
    """Print a line for people; where that cannot be done, nothing else suffers."""
    with suppress(OSError):
        click.echo(line, err=True)


def pass_settings(command: Callable[..., _T]) -> Callable[..., _T]:
    """Give a command the settings as its first argument."""
    return click.make_pass_decorator(Settings, ensure=True)(command)


def _remember(ctx: click.Context, option: click.Parameter, value: Any) -> None:
    settings = ctx.ensure_object(Settings)
    if value is not None and value is not False:
        assert option.name is not None
        setattr(settings, option.name, value)


def _global_options() -> list[click.Parameter]:
    shared: dict[str, Any] = {"expose_value": False, "callback": _remember, "is_eager": True}
    return [
        click.Option(["--config", "config_dir"], metavar="DIR", help="Gateways and tokens are kept there.", **shared),
        click.Option(["--timeout"], type=TIMEOUT, help="Wait at most so long, as 30s or 2m.", **shared),
        click.Option(["--json"], is_flag=True, help="Print one JSON object on stdout.", **shared),
        click.Option(["--quiet", "-q"], is_flag=True, help="Print no progress and no remarks.", **shared),
        click.Option(
            ["--verbose", "-v"], is_flag=True, help="Print each step, and more of an unexpected fault.", **shared
        ),
    ]


class _Common(click.Command):
    """The global options, and examples at the end of the help."""

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **{"context_settings": CONTEXT, **kwargs})
        self.params.extend(_global_options())
        self.example = example

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print the examples as they are, to be copied."""
        lines = self.example.splitlines()
        formatter.write(f"\nExample{'s' if len(lines) > 1 else ''}:\n" + "".join(f"  {line}\n" for line in lines))


class Command(_Common):
    """A command of s2uc."""


class Group(_Common, click.Group):
    """A group of such commands."""

    command_class = Command


class Parsed(_ParamType):
    """A value of the vocabulary: what it cannot be is a usage error in its own words."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a text; what has been parsed stays."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ScistreamError as error:
            self.fail(str(error), param, ctx)


def _role(text: str) -> Role:
    found = {"producer": Role.PROD, "consumer": Role.CONS, "prod": Role.PROD, "cons": Role.CONS}.get(text.lower())
    if found is None:
        raise InvalidArgument(f"role {shown(text)} is unknown; use producer or consumer")
    return found


def _endpoints(text: str) -> tuple[Endpoint, ...]:
    return tuple(Endpoint.parse(part.strip(" ")) for part in text.split(","))


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InvalidArgument(f"label {shown(text)} is not of the form KEY=VALUE")
    return key, value


def _timeout(text: str) -> int:
    seconds = parse_duration(text)
    if seconds > _LONGEST_S:
        raise InvalidArgument(f"timeout {shown(text)} is longer than a year")
    return seconds


DURATION = Parsed("time", parse_duration)
TIMEOUT = Parsed("time", _timeout)
ROLE = Parsed("producer|consumer", _role)
ENDPOINT = Parsed("host:port", Endpoint.parse)
ENDPOINTS = Parsed("host:port,...", _endpoints)
UID = Parsed("uid", Uid)
RATE = Parsed("rate", Rate.parse)
LABEL = Parsed("key=value", _label)
FILE = click.Path(path_type=Path, dir_okay=False)


def perform(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a command's work; Ctrl-C, SIGTERM and SIGHUP cancel it, and it undoes what it did before they count.

    That takes seconds at most. It is not cut short by the same signal a second time, but by a third.
    """
    import asyncio  # noqa: PLC0415 - help needs none

    came: list[signal.Signals] = []

    async def main() -> _T:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()

        def end(number: signal.Signals) -> None:
            came.append(number)
            if len(came) == 1:
                task.cancel()
            else:
                remark("s2uc: one moment, what was begun is being given back")
                loop.remove_signal_handler(number)

        for number in _ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                loop.add_signal_handler(number, end, number)
        return await work

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        if came:
            raise Stopped(came[0]) from None
        raise


def _why(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or "") if isinstance(error, OSError) else "it is no text"


def read_token(file: Path | None) -> str:
    """Read a token from a file, `-` for stdin; None gives the empty one."""
    if file is None:
        return ""
    if str(file) == "-":
        text = sys.stdin.read(8192)
    else:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"token file {file} cannot be read: {_why(error)}") from None
    if not text.strip():
        raise InvalidArgument(f"token file {file} is empty")
    return text.strip()


def read_ca(file: Path | None) -> str:
    """Read CA certificates; None gives the empty text, which stands for this computer's own."""
    if file is None:
        return ""
    try:
        text = file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"CA file {file} cannot be read: {_why(error)}") from None
    if "-----BEGIN CERTIFICATE-----" not in text:
        raise InvalidArgument(f"CA file {file} holds no certificate in PEM")
    return text


def chosen(settings: Settings, names: tuple[str, ...]) -> list[KnownGateway]:
    """Give the named gateways, or all that are known.

    Raises:
        InvalidArgument: none are known.
    """
    config = settings.config
    found = [config.gateway(name) for name in names] or config.gateways()
    if not found:
        raise InvalidArgument(
            "no gateway is known yet; run: s2uc gateway add NAME HOST:PORT --ca FILE --token-file FILE"
        )
    return found
