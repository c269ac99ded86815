"""`s2uc inbound-request` and `outbound-request`: a session in two halves, joined by a ticket file.

The option names of the field's existing client are understood too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from s2uc.commands.common import (
    ENDPOINT,
    ENDPOINTS,
    FILE,
    UID,
    Command,
    Settings,
    pass_settings,
    perform,
    read_ca,
    read_token,
)
from s2uc.commands.completion import gateways
from s2uc.commands.request import make_terms, with_terms
from s2uc.config import KnownGateway, SessionRecord
from scistream.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from scistream.vocabulary import Endpoint, Role, Uid, shown

if TYPE_CHECKING:
    from s2uc.gateway import Gateway
    from s2uc.saga import OpenSide
    from s2uc.side import StepEvent

_WHERE = [
    click.option(
        "--gateway", metavar="GATEWAY", shell_complete=gateways, help="The gateway of this side, as you know it."
    ),
    click.option("--s2cs", type=ENDPOINT, help="Instead: its address."),
    click.option("--server_cert", "--server-cert", type=FILE, help="With --s2cs: the CA or server certificate."),
    click.option("--token-file", type=click.Path(path_type=Path, allow_dash=True), help="With --s2cs: your token."),
    click.option("--remote_ip", "--remote-ip", metavar="IP", help="Where to forward to: the address,"),
    click.option("--receiver_ports", "--receiver-ports", metavar="P,P", help="... and its ports."),
]


def _with_where(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_WHERE):
        command = option(command)
    return command


def _find_gateway(
    settings: Settings, name: str | None, s2cs: Endpoint | None, server_cert: Path | None, token_file: Path | None
) -> Gateway:
    """Find the gateway by name, or by address: then with what is known of that address, as far as nothing is given."""
    if (name is None) == (s2cs is None):
        raise click.UsageError("give one of --gateway NAME and --s2cs HOST:PORT")
    if name is not None:
        if server_cert or token_file:
            raise click.UsageError(
                "--server_cert and --token-file go with --s2cs; change a known gateway with gateway add"
            )
        return settings.config.gateway(name).live()
    assert s2cs is not None
    known = next((g for g in settings.config.gateways() if g.endpoint == s2cs), KnownGateway("unnamed", s2cs))
    gateway = replace(known, ca_pem=read_ca(server_cert) or known.ca_pem)
    if token := read_token(token_file):
        gateway = replace(gateway, token=token, store="")
    live = gateway.live()
    return live if known.name != "unnamed" else replace(live, name=str(s2cs))


def _remote(ip: str | None, ports: str | None) -> tuple[Endpoint, ...]:
    """Join --remote_ip and --receiver_ports."""
    if (ip is None) != (ports is None):
        raise click.UsageError("--remote_ip and --receiver_ports go together")
    if ip is None or ports is None:
        return ()
    texts = [text.strip(" ") for text in ports.split(",")]
    if not all(text.isascii() and text.isdigit() and len(text) <= 5 for text in texts):
        raise InvalidArgument(f"--receiver_ports {shown(ports)} is not a list of ports, as 5074,5075")
    return tuple(Endpoint(ip, int(text)) for text in texts)


def _keep(settings: Settings, uid: Uid, role: Role, gateway: Gateway, key: str, expires_at: Any) -> None:
    """Add this half to what is on file of the session, when its gateway is on file."""
    known = any(known.name == gateway.name for known in settings.config.gateways())
    if not known:
        settings.say(
            f"gateway {gateway} is not known by a name; s2uc release needs it: s2uc gateway add NAME {gateway}"
        )
        return
    try:
        earlier = settings.config.find_session(uid)
        gateways = {**(earlier.gateways if earlier else {}), role: gateway.name}
        keys = {**(earlier.keys if earlier else {}), role: key}
        settings.config.save_session(SessionRecord(uid, gateways, keys, expires_at))
    except (FailedPrecondition, InvalidArgument) as error:  # it is open all the same
        settings.say(f"s2uc: {error}; s2uc release {uid} asks all gateways that you know")


def _side(side: OpenSide) -> dict[str, Any]:
    return {
        "gateway": side.gateway.name,
        "listeners": [str(listener) for listener in side.listeners],
        "targets": [str(target) for target in side.targets],
    }


@click.command(
    "inbound-request",
    cls=Command,
    example=(
        "s2uc inbound-request --gateway aps --prod-listeners 10.1.0.7:5074 --ticket scan7.ticket\n"
        "s2uc inbound-request --s2cs aps.example.org:5000 --server_cert aps-ca.crt --token-file aps.token"
        " --remote_ip 10.1.0.7 --receiver_ports 5074,5075 --num_conn 2"
    ),
)
@_with_where
@click.option("--prod-listeners", type=ENDPOINTS, default=(), help="Where the producer listens [default: as it says].")
@with_terms()
@click.option("--wan-peers", default="", metavar="IP,IP", help="Of udp: what the consumer's gateway sends from.")
@click.option("--uid", type=UID, help="Use this one.")
@click.option("--ticket", type=FILE, help="Write the ticket there [default: UID.ticket].")
@pass_settings
def inbound_request_command(
    settings: Settings,
    gateway: str | None,
    s2cs: Endpoint | None,
    server_cert: Path | None,
    token_file: Path | None,
    remote_ip: str | None,
    receiver_ports: str | None,
    prod_listeners: tuple[Endpoint, ...],
    wan_peers: str,
    uid: Uid | None,
    ticket: Path | None,
    **terms: Any,
) -> None:
    """Open the producer's half of a session, and write a ticket for who opens the consumer's.

    The ticket is a secret: give it to the consumer's user by a safe way.
    """
    from s2uc.halves import inbound_request  # noqa: PLC0415
    from s2uc.side import Step, new_key, new_uid  # noqa: PLC0415

    found = _find_gateway(settings, gateway, s2cs, server_cert, token_file)
    remote = _remote(remote_ip, receiver_ports)
    if remote and prod_listeners:
        raise click.UsageError("give one of --prod-listeners and --remote_ip with --receiver_ports")
    prod_listeners = prod_listeners or remote
    uid, key = uid or new_uid(), new_key()
    path = ticket or Path(f"{uid}.ticket")
    if path.exists():
        raise InvalidArgument(f"{path} exists already; name another file with --ticket")
    earlier = settings.config.find_session(uid)
    producer = str(prod_listeners[0]) if prod_listeners else (gateway or "")
    agreed = make_terms(uid=uid, producer=producer, **terms)
    if not prod_listeners:
        settings.say(f"session {uid} waits for its producer: s2uc hello --role producer --listeners HOST:PORT {uid}")
        _keep(settings, uid, Role.PROD, found, key, None)
    stuck = False

    def on_step(event: StepEvent) -> None:
        nonlocal stuck
        stuck = stuck or event.step is Step.STUCK
        settings.progress(event)

    opening = inbound_request(
        found,
        agreed,
        key,
        prod_listeners,
        wan_peers=tuple(part.strip() for part in wan_peers.split(",") if part.strip()),
        deliver=lambda ticket: ticket.save(path),
        timeout=settings.call_timeout(),
        hello_timeout=settings.timeout,
        on_step=on_step,
    )
    try:
        side, made = perform(opening)
    except BaseException:
        if stuck:
            raise  # what is on file leads s2uc release to what is left
        if earlier is None:
            settings.config.forget_session(uid)
        else:  # another session of that uid, which this one has not touched
            settings.config.save_session(earlier)
        raise
    _keep(settings, uid, Role.PROD, found, key, made.expires_at)
    settings.emit(
        {
            "uid": uid,
            "state": "ACTIVE",
            "expires_at": made.expires_at.isoformat(),
            "ticket": str(path),
            "producer": _side(side),
        },
        f"session   {uid}\nticket    {path}\nexpires   {made.expires_at:%Y-%m-%d %H:%M:%S} UTC",
    )


@click.command("outbound-request", cls=Command, example="s2uc outbound-request --gateway alcf --ticket scan7.ticket")
@_with_where
@click.option("--ticket", type=FILE, required=True, help="The ticket from the producer's user.")
@with_terms(num_conn="the ticket's", rate="the ticket's", protocol=False)
@pass_settings
def outbound_request_command(
    settings: Settings,
    gateway: str | None,
    s2cs: Endpoint | None,
    server_cert: Path | None,
    token_file: Path | None,
    remote_ip: str | None,
    receiver_ports: str | None,
    ticket: Path,
    num_conn: int,
    rate: Any,
    **terms: Any,
) -> None:
    """Open the consumer's half of a session with the ticket of its producer's half.

    --remote_ip and --receiver_ports stand in for the ticket's addresses where the producer's gateway is reached
    by others (a forwarded port).
    """
    from s2uc.halves import outbound_request  # noqa: PLC0415
    from s2uc.side import new_key  # noqa: PLC0415
    from s2uc.ticket import Ticket  # noqa: PLC0415

    made = Ticket.load(ticket)
    found = _find_gateway(settings, gateway, s2cs, server_cert, token_file)
    ctx = click.get_current_context()
    agreed = make_terms(
        num_conn=num_conn if _given(ctx, "num_conn") else made.num_conn,
        rate=rate if _given(ctx, "rate") else made.rate,
        uid=made.uid,
        producer=made.producer,
        consumer=gateway or "",
        protocol=made.protocol,
        **terms,
    )
    key = new_key()
    opening = outbound_request(
        found,
        made,
        agreed,
        key,
        _remote(remote_ip, receiver_ports),
        timeout=settings.call_timeout(),
        on_step=settings.progress,
    )
    try:
        side, expires_at = perform(opening)
    except AlreadyExists:
        raise AlreadyExists(
            f"gateway {found}: a consumer's half of session {made.uid} is open there, perhaps with this ticket; "
            f"see s2uc status {made.uid}, or end it first: s2uc release {made.uid}"
        ) from None
    _keep(settings, made.uid, Role.CONS, found, key, expires_at)
    settings.emit(
        {"uid": made.uid, "state": "ACTIVE", "expires_at": expires_at.isoformat(), "consumer": _side(side)},
        f"session   {made.uid}\nexpires   {expires_at:%Y-%m-%d %H:%M:%S} UTC\n"
        f"consumer  connects to {', '.join(map(str, side.listeners))}",
    )


def _given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
