"""Real applications through a tunnel, beside the direct way: rates and latencies, in turn."""

from __future__ import annotations

import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gateways import User, gateway
from bench.place import Missing, Place, cpu_seconds
from bench.programs import broker, epics, http, iperf, zeromq
from bench.traffic import Address

Report = Callable[[str], None]
Addresses = list[Address]
Samples = dict[tuple[str, str, str], dict[str, list[float]]]
Figures = dict[tuple[str, str, str], float]  # by what, unit, and whether more or less is better


@dataclass(frozen=True)
class Application:
    """A program with a server at the producer, and what is measured from the consumer."""

    name: str
    serve: Callable[[Place], AbstractContextManager[Addresses]]
    measure: Callable[[Addresses, float], Figures]


APPLICATIONS = (
    Application("iperf3", iperf.serve, iperf.measure),
    Application("ZeroMQ", zeromq.serve, zeromq.measure),
    Application("HTTP", http.serve, http.measure),
    Application("NATS", broker.serve, broker.measure),
    Application("EPICS pvAccess", epics.serve, epics.measure),
)


def measure(quick: bool, report: Report) -> dict[str, Any]:
    """Run each application directly and through a tunnel of the default backend, in turn.

    Returns:
        `rows`: an application and a figure each, direct and through the tunnel; `missing`: what was left out, and why.
    """
    rounds, seconds = (1, 0.2) if quick else (3, 0.8)
    rows: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    for application in APPLICATIONS:
        try:
            figures = _in_turn(application, rounds, seconds)
        except Exception as error:
            missing[application.name] = f"{type(error).__name__}: {error}"
            report(f"{application.name}: left out: {missing[application.name]}")
            continue
        for (what, unit, better), values in figures.items():
            row = {"application": application.name, "what": what, "unit": unit, "better": better}
            row |= {way: statistics.median(found) for way, found in values.items()}
            rows.append(row)
            report(f"{application.name:15} {what:32} direct {row['direct']:10.4g}  tunnel {row['tunnel']:10.4g} {unit}")
    return {"rows": rows, "missing": missing, "rounds": rounds}


def _in_turn(
    application: Application, rounds: int, seconds: float
) -> dict[tuple[str, str, str], dict[str, list[float]]]:
    found: dict[tuple[str, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, ExitStack() as stack:
        place = Place(Path(directory))
        targets = stack.enter_context(application.serve(place))
        listeners, proxies = stack.enter_context(_tunnel(place, targets))
        before = cpu_seconds(proxies)
        for i in range(rounds):
            for way in ("direct", "tunnel")[:: -1 if i % 2 else 1]:
                figures = application.measure(targets if way == "direct" else listeners, seconds)
                for what, value in figures.items():
                    found[what][way].append(value)
        if cpu_seconds(proxies) - before < 0.01:
            raise Missing("the application went around the tunnel")
    return found


@contextmanager
def _tunnel(place: Place, targets: Addresses) -> Iterator[tuple[Addresses, list[int]]]:
    """Open a session with a listener for each port of a server.

    Where there is only one, the listener has the server's own port, on another address of this host: pvAccess needs
    it, because its server tells clients which port to connect to.
    """
    settings = {}
    if len(targets) == 1:
        settings = {"NETWORK__LAN": "127.0.0.2", "NETWORK__PORTS": f"{targets[0][1]}-{targets[0][1]}"}
    directory = place.directory / "gateways"
    with (
        gateway(directory / "producer", place.producer) as producer,
        gateway(directory / "consumer", place.consumer, **settings) as consumer,
    ):
        user = User(place.directory / "user", producer, consumer)
        with user.session(targets, len(targets)) as listeners:
            yield listeners, sorted(producer.proxies() | consumer.proxies())
