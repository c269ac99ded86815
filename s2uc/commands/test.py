"""`s2uc test`: a short tunnel between two facilities, measured."""

from __future__ import annotations

import click

from s2uc.commands.common import RATE, Command, Settings, pass_settings, perform
from s2uc.commands.completion import backends, gateways
from scistream.vocabulary import Rate


@click.command("test", cls=Command, example="s2uc test --producer aps --consumer alcf --num-conn 4 --seconds 10")
@click.option("--producer", required=True, shell_complete=gateways, help="The producer's gateway.")
@click.option("--consumer", required=True, shell_complete=gateways, help="The consumer's gateway.")
@click.option("--host", default="", help="This computer's address for the producer's gateway [default: found out].")
@click.option("--num-conn", type=click.IntRange(1, 64), default=1, show_default=True, help="Connections.")
@click.option(
    "--seconds", type=click.FloatRange(0, 3600, min_open=True), default=5.0, show_default=True, help="Stream so long."
)
@click.option("--rate", type=RATE, default=Rate(), help="For the session, as 10Gb/s [default: no limit].")
@click.option("--backend", default="", shell_complete=backends, help="stunnel, haproxy, nginx or auto.")
@pass_settings
def test_command(
    settings: Settings,
    producer: str,
    consumer: str,
    host: str,
    num_conn: int,
    seconds: float,
    rate: Rate,
    backend: str,
) -> None:
    """Open a real session, stream checked data from this computer to this computer through it, and release it.

    The producer's gateway has to be allowed to forward to this computer, and this computer has to reach the consumer's
    gateway as an application does.
    """
    from s2uc.trial import trial  # noqa: PLC0415 - gRPC, which help needs not

    config = settings.config
    outcome = perform(
        trial(
            config.gateway(producer).live(),
            config.gateway(consumer).live(),
            host=host,
            num_conn=num_conn,
            seconds=seconds,
            rate=rate,
            backend=backend,
            timeout=settings.call_timeout(),
            on_step=settings.progress,
        )
    )
    settings.emit(outcome.as_dict(), str(outcome))
