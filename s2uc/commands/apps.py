"""`s2uc hello` and `s2uc run`: the app controller."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from s2uc.commands.common import ENDPOINTS, FILE, ROLE, UID, Command, Settings, pass_settings, perform
from s2uc.commands.completion import gateways, roles, uids
from scistream.errors import InvalidArgument
from scistream.vocabulary import Endpoint, Role, Uid

if TYPE_CHECKING:
    from s2uc.gateway import Gateway

_OPTIONS = [
    click.option("--role", type=ROLE, required=True, shell_complete=roles, help="The application's side."),
    click.option("--listeners", type=ENDPOINTS, default=(), help="Where the producer listens."),
    click.option(
        "--gateway",
        metavar="GATEWAY",
        shell_complete=gateways,
        help="The gateway of that side [default: as the key file or s2uc request says].",
    ),
    click.option("--key-file", type=FILE, help="The application's key [default: yours of the session, or your token]."),
]


def _with_app_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _gateway_of(settings: Settings, uid: Uid, role: Role, name: str | None, key_file: Path | None) -> Gateway:
    """Find the gateway to speak to, with what proves the application there."""
    from s2uc.keys import AppKey, read_key  # noqa: PLC0415

    config = settings.config
    key: AppKey | str = read_key(key_file, uid, role) if key_file else ""
    if isinstance(key, AppKey):
        return config.gateway(name).live().with_token(key.gateway.token) if name else key.gateway
    record = config.find_session(uid)
    if record is None and name is None:
        raise InvalidArgument(f"session {uid} was not asked for from here; name its gateway: --gateway NAME")
    if record is not None:
        if name is None and role not in record.gateways:
            raise InvalidArgument(f"the {role} side of session {uid} was not asked for from here; use --gateway NAME")
        name = name or record.gateways[role]
        key = key or record.keys.get(role, "")
    assert name is not None
    gateway = config.gateway(name).live()
    return gateway.with_token(key) if key else gateway


@click.command(
    "hello",
    cls=Command,
    example="s2uc hello 2f1c... --role producer --listeners 10.1.0.7:5074 --key-file 2f1c....producer.key",
)
@click.argument("uid", type=UID, shell_complete=uids)
@_with_app_options
@pass_settings
def hello_command(
    settings: Settings,
    uid: Uid,
    role: Role,
    listeners: tuple[Endpoint, ...],
    gateway: str | None,
    key_file: Path | None,
) -> None:
    """Say Hello for an application: a producer says where it listens, a consumer learns where to connect."""
    from s2uc.app import hello  # noqa: PLC0415

    found = _gateway_of(settings, uid, role, gateway, key_file)
    answer = perform(hello(found, uid, role, listeners, settings.call_timeout()))
    settings.emit(
        {"uid": uid, "role": role, "state": answer.state, "listeners": list(answer.listeners)},
        "\n".join(answer.listeners),
    )
    settings.say(answer.message)


@click.command(
    "run", cls=Command, example="s2uc run --role consumer --key-file 2f1c....consumer.key 2f1c... -- nc {listener}"
)
@click.argument("uid", type=UID, shell_complete=uids)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD [ARGS]...")
@_with_app_options
@pass_settings
@click.pass_context
def run_command(
    ctx: click.Context,
    settings: Settings,
    uid: Uid,
    command: tuple[str, ...],
    role: Role,
    listeners: tuple[Endpoint, ...],
    gateway: str | None,
    key_file: Path | None,
) -> None:
    """Say Hello, wait until the way is open, and run an application to its end.

    CMD finds SCISTREAM_UID, SCISTREAM_ROLE and SCISTREAM_LISTENERS (separated by commas) in its environment,
    and {listener}, {listener0}, {listener1}, ... in its arguments are filled in. A producer listens there,
    a consumer connects there. Exit status: that of CMD; 128 + n after signal n; 127 when there is no CMD.
    """
    from s2uc import app  # noqa: PLC0415

    found = _gateway_of(settings, uid, role, gateway, key_file)
    way = perform(app.open_way(found, uid, role, listeners, settings.timeout))
    settings.say(f"the way is open: {', '.join(map(str, way.listeners))}")
    ctx.exit(app.run(command, way))
