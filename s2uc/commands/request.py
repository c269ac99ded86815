"""`s2uc request`: a whole session, and the options it shares with the two halves."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from s2uc.commands.common import (
    DURATION,
    ENDPOINTS,
    LABEL,
    RATE,
    UID,
    Command,
    Settings,
    pass_settings,
    perform,
)
from s2uc.commands.completion import backends, gateways
from s2uc.config import SessionRecord
from s2uc.files import remove
from scistream.errors import FailedPrecondition
from scistream.vocabulary import Endpoint, Rate, Role, Transport, Uid

if TYPE_CHECKING:
    from s2uc.saga import Plan
    from s2uc.side import StepEvent, Terms

_TERMS = [
    click.option("--lease", type=DURATION, default=0, help="Its life, as 2h [default: the gateway's choice]."),
    click.option(
        "--backend",
        default="",
        shell_complete=backends,
        help="stunnel, haproxy, nginx or auto [default: the gateway's choice].",
    ),
    click.option("--unencrypted", is_flag=True, help="Say that you know that udp is not encrypted."),
    click.option("--label", "labels", type=LABEL, multiple=True, metavar="K=V", help="A note, shown in lists; repeat."),
]


_PROTOCOL = click.option(
    "--protocol", type=click.Choice(list(map(str, Transport))), default="tcp", help="tcp [default], or udp in plain."
)


def with_terms(
    num_conn: str = "1", rate: str = "no limit", protocol: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options that say what is asked of a gateway; the help names these two defaults."""
    size = [
        click.option("--num-conn", "--num_conn", type=int, default=1, help=f"Connections [default: {num_conn}]."),
        click.option("--rate", type=RATE, default=Rate(), help=f"For the session, as 10Gb/s [default: {rate}]."),
    ]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(size + ([_PROTOCOL] if protocol else []) + _TERMS):
            command = option(command)
        return command

    return decorate


def make_terms(
    num_conn: int,
    rate: Rate,
    lease: int,
    backend: str,
    labels: tuple[tuple[str, str], ...],
    protocol: str,
    unencrypted: bool,
    **more: Any,
) -> Terms:
    """Make what those options stand for."""
    from s2uc.side import Terms  # noqa: PLC0415

    return Terms(
        num_conn=num_conn,
        rate=rate,
        lease_s=lease,
        backend=backend,
        labels=dict(labels),
        protocol=Transport.parse(protocol),
        unencrypted=unencrypted,
        **more,
    )


@click.command(
    "request",
    cls=Command,
    example="s2uc request --producer aps --consumer alcf --prod-listeners 10.1.0.7:5074 --num-conn 4 --rate 10Gb/s",
)
@click.option("--producer", required=True, metavar="GATEWAY", shell_complete=gateways, help="The producer's gateway.")
@click.option("--consumer", required=True, metavar="GATEWAY", shell_complete=gateways, help="The consumer's gateway.")
@click.option("--prod-listeners", type=ENDPOINTS, default=(), help="Where the producer listens [default: as it says].")
@with_terms()
@click.option("--uid", type=UID, help="Use this one; the same request again gives the same session.")
@click.option("--key-dir", type=click.Path(path_type=Path, file_okay=False), help="Write the applications' keys there.")
@pass_settings
def request_command(
    settings: Settings,
    producer: str,
    consumer: str,
    prod_listeners: tuple[Endpoint, ...],
    uid: Uid | None,
    key_dir: Path | None,
    **terms: Any,
) -> None:
    """Open a session between two facilities, and return when the way is open.

    Without --prod-listeners it waits until the producer application has said Hello (s2uc run, s2uc hello).
    An application on another machine, or of a batch job, does so with its key file: --key-dir writes
    UID.producer.key and UID.consumer.key. When a step fails, nothing is left at either gateway.
    """
    from s2uc.saga import Plan  # noqa: PLC0415
    from s2uc.session import carry_out  # noqa: PLC0415
    from s2uc.side import new_uid  # noqa: PLC0415

    config = settings.config
    gateways = {Role.PROD: config.gateway(producer).live(), Role.CONS: config.gateway(consumer).live()}
    uid = uid or new_uid()
    earlier = config.find_session(uid)
    address = str(prod_listeners[0]) if prod_listeners else producer
    plan = Plan(
        gateways[Role.PROD],
        gateways[Role.CONS],
        make_terms(uid=uid, producer=address, consumer=consumer, **terms),
        prod_listeners,
        **({"keys": earlier.keys} if earlier and set(earlier.keys) == set(Role) else {}),
    )
    keeper = Keeper(settings, plan, key_dir)
    if not prod_listeners:
        settings.say(
            f"session {uid} waits for its producer: s2uc run --role producer --listeners HOST:PORT {uid} -- CMD"
        )
    with keeper:
        session = perform(
            carry_out(plan, timeout=settings.call_timeout(), hello_timeout=settings.timeout, on_step=keeper.on_step)
        )
        try:
            keeper.keep(session.expires_at)
        except FailedPrecondition as error:  # it is open all the same, and on file from before
            settings.say(f"s2uc: {error}")
    listeners = ", ".join(map(str, session.listeners))
    settings.emit(
        session.as_dict(),
        f"session   {session.uid}\nstate     {session.state}\nexpires   {session.expires_at:%Y-%m-%d %H:%M:%S} UTC\n"
        f"consumer  connects to {listeners}",
    )


class Keeper:
    """Keep what is known of a session on file from before anything is sent, so that nothing can be lost.

    After a failure only what could not be undone stays on file, for `s2uc release`.
    """

    def __init__(self, settings: Settings, plan: Plan, key_dir: Path | None = None) -> None:
        self._settings = settings
        self._plan = plan
        self._key_dir = key_dir
        self._reserved: set[str] = set()
        self._stuck = False
        self._earlier = settings.config.find_session(plan.terms.uid)

    def __enter__(self) -> None:
        self.keep(None)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        uid = self._plan.terms.uid
        if self._stuck:
            self._settings.say(f"s2uc: something may be left of it; run: s2uc release {uid}")
        elif self._earlier is None:
            self._settings.config.forget_session(uid)
        else:
            self._settings.config.save_session(self._earlier)
        if self._key_dir and not self._earlier:
            for role in Role:
                with suppress(FailedPrecondition):
                    remove(self._key_file(role))

    def keep(self, expires_at: Any) -> None:
        """Write the session's record."""
        names = {Role.PROD: self._plan.producer.name, Role.CONS: self._plan.consumer.name}
        self._settings.config.save_session(SessionRecord(self._plan.terms.uid, names, self._plan.keys, expires_at))

    def on_step(self, event: StepEvent) -> None:
        """Show a step; hand out the keys once both gateways know them."""
        from s2uc.side import Step  # noqa: PLC0415

        self._settings.progress(event)
        self._stuck = self._stuck or event.step is Step.STUCK
        if event.step is Step.RESP:
            self._reserved.add(event.role)
            if self._key_dir and len(self._reserved) == len(Role):
                self._write_keys()

    def _write_keys(self) -> None:
        from s2uc.keys import AppKey  # noqa: PLC0415

        assert self._key_dir is not None
        plan = self._plan
        for role, gateway in ((Role.PROD, plan.producer), (Role.CONS, plan.consumer)):
            AppKey(plan.terms.uid, role, gateway.for_application(plan.keys[role])).save(self._key_file(role))

    def _key_file(self, role: Role) -> Path:
        assert self._key_dir is not None
        side = "producer" if role is Role.PROD else "consumer"
        return self._key_dir / f"{self._plan.terms.uid}.{side}.key"
