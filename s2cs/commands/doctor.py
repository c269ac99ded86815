"""`s2cs doctor`: how this host is made for what its gateway is to carry."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from s2cs.commands.common import CONTEXT, config_option, load
from scistream.vocabulary import Rate, parse_round_trip

if TYPE_CHECKING:
    from s2cs.doctor.readings import Proxy
    from s2cs.settings import Settings

_ASSUMED = Rate.parse("10Gb/s")


@click.command(
    context_settings=CONTEXT,
    short_help="Look at this host as a network engineer would.",
    epilog="Example: s2cs doctor --bandwidth 100Gb/s --rtt 50ms",
)
@config_option
@click.option("--bandwidth", help="What one connection is to reach [default: [network] bandwidth, else the WAN's].")
@click.option("--rtt", help="Round trip to the other facility, as 50ms [default: [network] rtt].")
@click.option("--all", "everything", is_flag=True, help="What is well, too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def doctor(file: Path | None, bandwidth: str | None, rtt: str | None, everything: bool, as_json: bool) -> None:
    """Look at this host as a network engineer would: each finding with its reason and the command that mends it.

    Nothing is changed. Exit 1 where there is a fault: what was asked for cannot be reached, or will fail.
    """
    from s2cs.doctor import Level, Need, judge, read  # noqa: PLC0415
    from s2cs.runtime import place  # noqa: PLC0415

    settings = _settings(file)
    network, limits = settings.network, settings.limits
    lacking, proxies = _proxies(settings)
    readings = read(network.lan, network.wan, place(settings), proxies, lacking)
    wanted = _bandwidth(bandwidth) if bandwidth else network.bandwidth
    speeds = [link.speed for link in readings.links if "wan" in link.network and link.speed]
    need = Need(
        bandwidth=wanted if wanted.bytes_per_s else Rate(min(speeds)) if speeds else _ASSUMED,
        rtt_s=parse_round_trip(rtt) if rtt else network.rtt,
        stated=bool(wanted.bytes_per_s),
        connections=limits.connections,
        sessions=limits.sessions,
        ports=network.ports,
    )
    findings = judge(readings, need)
    faults = sum(each.level is Level.FAULT for each in findings)
    advice = sum(each.level is Level.ADVICE for each in findings)
    if as_json:
        answer = {
            "bandwidth_bytes_per_s": need.bandwidth.bytes_per_s,
            "rtt_ms": need.rtt_s * 1000,
            "faults": faults,
            "advice": advice,
            "findings": [asdict(each) for each in findings],
        }
        click.echo(json.dumps(answer))
        sys.exit(1 if faults else 0)
    for each in findings:
        if each.level is not Level.OK or everything:
            click.echo(f"{each.level.upper() if each.level is Level.FAULT else each.level:6} {each.name}: {each.value}")
            for word, text in (("wanted", each.target), ("why", each.why), ("mend", each.mend)):
                if text and (each.mend or word != "wanted"):
                    click.echo(f"       {word + ':':8}{text}")
    click.echo(
        f"for {need.bandwidth} over {need.rtt_s * 1000:g} ms: {faults or 'no'} fault{'' if faults == 1 else 's'}, "
        f"{advice or 'no'} piece{'' if advice == 1 else 's'} of advice, {len(findings) - faults - advice} well. "
        "What sysctl sets is kept over a restart in /etc/sysctl.d/60-scistream.conf",
        err=True,
    )
    sys.exit(1 if faults else 0)


def _proxies(settings: Settings) -> tuple[str, tuple[Proxy, ...]]:
    """What keeps proxies from being run, if something does, and which there are: on this host or in the image."""
    from s2cs.doctor.readings import Proxy, openssl_of  # noqa: PLC0415
    from s2cs.s2ds.backends import BACKENDS  # noqa: PLC0415
    from s2cs.s2ds.config import Containers  # noqa: PLC0415
    from s2cs.s2ds.launchers import LAUNCHERS  # noqa: PLC0415

    s2ds = settings.s2ds
    launcher = LAUNCHERS[s2ds.launcher].using(Containers(s2ds.engine, s2ds.image))
    if lacking := launcher.lacks():
        return f"{s2ds.launcher}: {lacking}", ()
    contained, programs, proxies = s2ds.launcher == "docker", dict[str, Path](s2ds.programs.items()), []
    for backend in BACKENDS.values():
        found = launcher.find(backend, programs.get(backend.name), None)
        if not found.reason:
            where = f"{found.program} of image {s2ds.image}" if contained else str(found.program)
            openssl = "" if contained else openssl_of(found.program)  # an image does not tell
            proxies.append(Proxy(backend.name, found.version, where, openssl, found.caution))
    return found.reason if contained and not proxies else "", tuple(proxies)


def _bandwidth(text: str) -> Rate:
    """Read a rate; interfaces are spoken of as 100Gbit, without the second."""
    return Rate.parse(f"{text}/s" if text.endswith("bit") else text)


def _settings(file: Path | None) -> Settings:
    """Read the settings; a host without a gateway yet is looked at with the defaults."""
    from s2cs.settings import Settings  # noqa: PLC0415
    from s2cs.settings_file import SEARCHED  # noqa: PLC0415

    if file is None and not any(path.exists() for path in SEARCHED):
        return Settings()
    return load(file)
