"""The user's command line without a gateway: help, options, exit statuses, what it imports."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import s2uc
from s2uc import cli as command_line
from s2uc.cli import _COMMANDS, cli
from s2uc.commands.common import Settings
from tests.support.user import User

_PACKAGE = Path(s2uc.__file__).parent


def _walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _walk(found, (*path, name))


_ALL = list(_walk(cli))


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path / "config")


@pytest.mark.parametrize(("path", "command"), _ALL, ids=[" ".join(path) or "s2uc" for path, _ in _ALL])
def test_help_of_each_command(path: tuple[str, ...], command: click.Command) -> None:
    for option in ("--help", "-h"):
        result = CliRunner().invoke(cli, [*path, option])
        assert result.exit_code == 0
    assert f"Example{'s' if 'Examples:' in result.output else ''}:\n  s2uc " in result.output
    for name in ("--config", "--timeout", "--json", "--quiet", "--verbose"):
        assert name in result.output
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or parameter.help, f"{parameter.name} has no help"
    assert "\b" not in result.output


def test_the_table_says_what_the_commands_say() -> None:
    for name, (_, line) in _COMMANDS.items():
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.name == name
        assert line.endswith(".")


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['s2uc', '--help']\n"
        "from s2uc.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'grpc', 'cryptography', 'jinja2', 'asyncio', 'pydantic', 's2cs', 'google'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stderr.strip() == "[]"
    assert "Usage: s2uc" in process.stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = "import sys, s2uc; print({'grpc', 'cryptography', 'click', 'asyncio'} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "set()"


def test_the_public_names_are_there() -> None:
    for name in s2uc.__all__:
        assert getattr(s2uc, name) is not None
    with pytest.raises(AttributeError, match="no_such_thing"):
        s2uc.no_such_thing  # noqa: B018


def test_global_options_before_and_after(tmp_path: Path) -> None:
    seen: list[Settings] = []

    for arguments in (
        ["--config", str(tmp_path), "--json", "gateway", "list"],
        ["gateway", "--json", "list", "--config", str(tmp_path)],
        ["gateway", "list", "--config", str(tmp_path), "--json"],
    ):
        settings = Settings()
        seen.append(settings)
        result = CliRunner().invoke(cli, arguments, obj=settings)
        assert json.loads(result.stdout) == {"gateways": []}
        assert settings.config_dir == str(tmp_path)
    assert all(settings.json for settings in seen)


def test_a_later_option_wins() -> None:
    settings = Settings()
    CliRunner().invoke(
        cli, ["--timeout", "5s", "gateway", "list", "--timeout", "2m", "--config", "/nowhere"], obj=settings
    )
    assert settings.timeout == 120


def test_usage_faults(user: User) -> None:
    assert "see: s2uc --help" in user.complaint("no-such-command", expect=2)
    assert "No such command 'stauts', did you mean 'status'?; see: s2uc --help" in user.complaint(
        "stauts", "x", expect=2
    )
    assert "see: s2uc request --help" in user.complaint("request", expect=2)
    assert "soon" in user.complaint("--timeout", "soon", "list", expect=2)
    assert "give one of" in user.complaint("inbound-request", expect=2)
    assert "go together" in user.complaint(
        *("inbound-request", "--s2cs", "127.0.0.1:1", "--remote_ip", "127.0.0.1"), expect=2
    )
    assert "not a list of ports" in user.complaint(
        *("inbound-request", "--s2cs", "127.0.0.1:1", "--remote_ip", "127.0.0.1", "--receiver_ports", "5x"), expect=2
    )
    assert "no gateway is known yet" in user.complaint("list", expect=2)
    assert "give one of --seconds" in user.complaint("demo", "--seconds", "1", "--frames", "1", expect=2)
    assert "pigeon" in user.complaint("demo", "--backend", "pigeon", expect=2)
    assert user.s2uc("--version").stdout.startswith("s2uc")


def test_an_unforeseen_fault_is_one_line_unless_verbose(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def break_down(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr(cli, "main", break_down)
    assert command_line._run(Settings()) == 1
    assert capsys.readouterr().err.startswith("s2uc: internal fault: ZeroDivisionError: surprise")
    assert command_line._run(Settings(verbose=True)) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(user: User, shell: str) -> None:
    script = user.s2uc("completion", shell).stdout
    assert "_S2UC_COMPLETE" in script
    words = (
        {"COMP_WORDS": "s2uc re", "COMP_CWORD": "1"}
        if shell != "fish"
        else {"COMP_WORDS": "s2uc re", "COMP_CWORD": "re"}
    )
    found = user.s2uc(_S2UC_COMPLETE=f"{shell}_complete", **words).stdout
    assert "request" in found
    assert "release" in found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("request --producer ", ["plain,alcf", "plain,aps"]),
        ("outbound-request --gateway al", ["plain,alcf"]),
        ("login a", ["plain,alcf", "plain,aps"]),
        ("gateway remove ap", ["plain,aps"]),
        ("status scan", ["plain,scan-7"]),
        ("logs scan", ["plain,scan-7"]),
        ("logs scan-7 --gateway al", ["plain,alcf"]),
        ("verify ", ["plain,scan-7"]),
        ("watch other sc", ["plain,scan-7"]),
        ("run --role c", ["plain,consumer"]),
        ("request --backend ", ["plain,auto", "plain,nginx", "plain,haproxy", "plain,stunnel"]),
    ],
)
def test_completion_of_values(user: User, line: str, found: list[str]) -> None:
    for name in ("aps", "alcf"):
        user.s2uc("gateway", "add", name, f"{name}.example:5000", "--no-check")
    (user.config / "sessions").mkdir()
    (user.config / "sessions/scan-7.json").write_text("{}")
    count = str(len(line.split(" ")))
    out = user.s2uc(_S2UC_COMPLETE="bash_complete", COMP_WORDS=f"s2uc {line}", COMP_CWORD=count).stdout
    assert out.split() == found


def test_a_gateway_whose_name_is_written_wrong_may_have_been_meant(user: User) -> None:
    user.s2uc("gateway", "add", "beamline", "aps.example:5000", "--no-check")
    assert "did you mean 'beamline'? (known: beamline)" in user.complaint("ping", "baemline", expect=2)
    assert "did you mean" not in user.complaint("ping", "\x1b[2J" * 1000, expect=2)


def test_a_gateway_that_is_added_again_says_that_its_token_is_forgotten(user: User, tmp_path: Path) -> None:
    (token := tmp_path / "token").write_text("s2t_one")
    add = ("gateway", "add", "aps", "aps.example:5000", "--no-check")
    assert "is not known yet" in user.s2uc(*add).stderr
    assert not user.s2uc(*add, "--token-file", str(token)).stderr
    assert "your token there is forgotten; run: s2uc login aps" in user.s2uc(*add).stderr


def test_a_command_alone_shows_its_help(user: User) -> None:
    for words in ((), ("gateway",)):
        process = user.s2uc(*words, expect=2)
        assert process.stderr == user.s2uc(*words, "--help").stdout


def test_the_ticket_has_the_defaults_of_its_other_half() -> None:
    out = CliRunner().invoke(cli, ["outbound-request", "--help"]).output
    assert "[default: 1]" not in out
    assert "default: the ticket's" in " ".join(out.split())


def test_output_has_no_colour(user: User) -> None:
    assert "\x1b" not in user.s2uc("--help", FORCE_COLOR="1").stdout


_FOREIGN = {"pwd", "fcntl", "select", "resource", "ctypes", "pyroute2", "psutil", "s2cs"}
_LINUX_ONLY = {
    *("pidfd_open", "pidfd_send_signal", "memfd_create", "eventfd", "sched_getaffinity", "prctl", "accept4", "splice"),
    *("SOCK_CLOEXEC", "SOCK_NONBLOCK", "AF_NETLINK", "AF_PACKET", "SO_BINDTODEVICE", "TCP_INFO", "TCP_KEEPIDLE"),
    *("inotify", "signalfd", "timerfd_create", "EPOLLIN", "epoll", "unshare", "setns", "P_PIDFD"),
}


@pytest.mark.parametrize("path", sorted(_PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(_PACKAGE)))
def test_nothing_linux_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import():
                assert not {alias.name.split(".")[0] for alias in node.names} & _FOREIGN
            case ast.ImportFrom():
                assert (node.module or "").split(".")[0] not in _FOREIGN
            case ast.Attribute():
                assert node.attr not in _LINUX_ONLY
            case ast.Constant(value=str(text)):
                assert "/proc" not in text
                assert "/sys/" not in text
