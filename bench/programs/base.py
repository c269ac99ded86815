"""What servers and clients of applications share."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.place import Missing, Place, running, wait_for_ports
from bench.stats import quantile
from bench.traffic import Address
from tests.support.ports import port_block

SIZES = {512: "512 B", 65_536: "64 KiB", 1 << 20: "1 MiB", 4 << 20: "4 MiB"}
"""Sizes of detectors' frames."""


@contextmanager
def served(place: Place, name: str, command: Callable[[int], list[str]], ports: int = 1) -> Iterator[list[Address]]:
    """Run a server on the producer's node; the ports that it listens on."""
    first = port_block()
    log = place.directory / f"{name}.log"
    with running(place.producer, command(first), log) as process:
        wait_for_ports(place.producer, range(first, first + ports), process, log)
        yield [(place.producer.address, first + i) for i in range(ports)]


def module(name: str, *arguments: object) -> list[str]:
    """Say how to run a module of this package as a server."""
    return [sys.executable, "-m", f"bench.programs.{name}", *map(str, arguments)]


def needs(package: str) -> None:
    """See that a package is here.

    Raises:
        Missing: it is not.
    """
    try:
        __import__(package)
    except ImportError as error:
        raise Missing(f"the package {package} is not installed; pip install '.[bench]': {error}") from None


def pings(once: Callable[[], object], seconds: float) -> dict[tuple[str, str, str], float]:
    """Do something again and again; its p50 and p99 in microseconds."""
    for _ in range(10):
        once()
    times = []
    end = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        once()
        times.append(time.perf_counter() - begin)
    parts = (("p50", 0.5), ("p99", 0.99))
    return {(f"there and back, {name}", "us", "less"): quantile(times, q) * 1e6 for name, q in parts}


def rate_of(receive: Callable[[], int], seconds: float, warm_up: int = 5) -> tuple[float, float]:
    """Receive messages for some seconds; messages and bytes per second.

    Args:
        receive: gets one message and gives its size.
        seconds: how long.
        warm_up: messages that are not counted.
    """
    for _ in range(warm_up):
        receive()
    begin = time.perf_counter()
    count = size = 0
    while (now := time.perf_counter()) < begin + seconds:
        size += receive()
        count += 1
    elapsed = max(now - begin, 1e-9)
    return count / elapsed, size / elapsed


def rates(label: str, messages: float, size: float) -> dict[tuple[str, str, str], float]:
    """Name a rate of messages by what people look at: small ones by number, large ones by bits."""
    if size / max(messages, 1e-9) < 4096:
        return {(label, "messages/s", "more"): messages}
    return {(label, "Gb/s", "more"): size * 8 / 1e9}
