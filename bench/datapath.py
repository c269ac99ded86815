"""Throughput and CPU of our tunnels beside the same proxies configured by hand, in turn, in one run."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import s2uc
from bench import byhand
from bench.traffic import cpu_seconds, producer, receive
from scistream.vocabulary import Endpoint
from tests.support.gateways import GatewayProcess, gateway

BACKENDS = ("nginx", "haproxy", "stunnel")
STREAMS = (1, 4, 16)
_GB = 10**9


def user_gateway(running: GatewayProcess) -> s2uc.Gateway:
    """Make a gateway as the library knows it."""
    return s2uc.Gateway(running.directory.name, Endpoint.parse(running.address), running.ca, running.token)


@contextmanager
def two_gateways(directory: Path) -> Iterator[tuple[GatewayProcess, GatewayProcess]]:
    """Run a producer's and a consumer's gateway."""
    with gateway(directory / "producer") as p, gateway(directory / "consumer") as c:
        yield p, c


def measure(rounds: int, gigabytes: float, report: Callable[[str], None]) -> list[dict[str, Any]]:
    """Run each backend with each number of streams, by hand and through gateways in turn.

    Returns:
        A row for each: medians of Gb/s and CPU-seconds per GB (both gateways), and the ratios, ours to by hand,
        of each round's pair.
    """
    rows = []
    total = int(gigabytes * _GB)
    with producer() as port, tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        gateways = stack.enter_context(two_gateways(Path(directory)))
        direct = [total / receive([port], total) for _ in range(rounds)]
        report(f"direct, without proxies: {statistics.median(direct) * 8 / _GB:.1f} Gb/s")
        for backend in BACKENDS:
            for streams in STREAMS:
                row = _compare(backend, streams, rounds, total, port, gateways)
                rows.append(row)
                report(
                    f"{backend:8} x{streams:<3} ours {row['gbps']:5.2f} Gb/s {row['cpu_s_per_gb']:5.2f} CPU-s/GB   "
                    f"by hand {row['by_hand_gbps']:5.2f} Gb/s {row['by_hand_cpu_s_per_gb']:5.2f} CPU-s/GB   "
                    f"ratio {row['throughput_ratio']:.3f} (CPU {row['cpu_ratio']:.3f})"
                )
    return rows


def _compare(
    backend: str, streams: int, rounds: int, total: int, port: int, gateways: tuple[GatewayProcess, GatewayProcess]
) -> dict[str, Any]:
    ours: list[tuple[float, float]] = []
    hand: list[tuple[float, float]] = []
    with (
        tempfile.TemporaryDirectory() as directory,
        byhand.tunnel(backend, Path(directory), port) as (hand_port, hand_pids),
        s2uc.request(
            *map(user_gateway, gateways),
            prod_listeners=[f"127.0.0.1:{port}"],
            num_conn=streams,
            backend=backend,
        ) as session,
    ):
        our_ports = [listener.port for listener in session.listeners]
        our_pids = [process.pid for running in gateways for process in running.proxies()]
        _run(our_ports, our_pids, total // 8)
        _run([hand_port] * streams, hand_pids, total // 8)
        for i in range(rounds):
            pair = [(ours, our_ports, our_pids), (hand, [hand_port] * streams, hand_pids)]
            for results, ports, pids in pair if i % 2 else pair[::-1]:
                results.append(_run(ports, pids, total))
    return {
        "backend": backend,
        "streams": streams,
        "gbps": statistics.median(rate for rate, _ in ours),
        "cpu_s_per_gb": statistics.median(cpu for _, cpu in ours),
        "by_hand_gbps": statistics.median(rate for rate, _ in hand),
        "by_hand_cpu_s_per_gb": statistics.median(cpu for _, cpu in hand),
        "throughput_ratio": statistics.median(a[0] / b[0] for a, b in zip(ours, hand, strict=True)),
        "cpu_ratio": statistics.median(a[1] / b[1] for a, b in zip(ours, hand, strict=True)),
    }


def _run(ports: list[int], pids: list[int], total: int) -> tuple[float, float]:
    before = cpu_seconds(pids)
    seconds = receive(ports, total)
    return total * 8 / seconds / _GB, (cpu_seconds(pids) - before) / (total / _GB)
