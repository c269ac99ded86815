"""The data path over a wide-area network: two namespaces, and a wire between them with delay, loss and a rate."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import ways
from bench.gateways import User, two_gateways
from bench.host import program
from bench.place import Missing, Node, Place, running
from bench.traffic import first_bytes, producer, round_trips, timed, transfer
from bench.ways import Road, Way

Report = Callable[[str], None]
RATE_MBIT = 1000.0
TUNED = "4096 262144 67108864"
_TUNED_S = "4096 131072 67108864"
_DEFAULT = {"tcp_rmem": "4096 131072 6291456", "tcp_wmem": "4096 16384 4194304"}  # the kernel's own


@dataclass(frozen=True)
class Wire:
    """What lies between the two facilities."""

    rtt_ms: float
    loss: float = 0.0  # of packets, each way
    buffers: str = "default"  # or tuned
    rate_mbit: float = RATE_MBIT

    @property
    def label(self) -> str:
        """Name it in tables."""
        return f"{self.rtt_ms:g} ms, loss {self.loss:.2%}, {self.buffers} buffers"


@contextmanager
def two_sites(wire: Wire, directory: Path) -> Iterator[Place]:
    """Make two namespaces with a wire between them, and remove them at the end.

    Raises:
        Missing: this user or this kernel cannot.
    """
    if os.geteuid() != 0 or not program("ip") or not Path("/dev/net/tun").exists():
        raise Missing("an emulated WAN needs root, iproute2 and /dev/net/tun")
    mark = f"{os.getpid() % 100_000}"
    names = [f"bench-{mark}{end}" for end in "ab"]
    nodes = [Node(f"10.213.77.{i}", name) for i, name in enumerate(names, 1)]
    with ExitStack() as stack:
        for name in names:
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "delete", name)
        devices = [f"dl{mark}{end}" for end in "ab"]
        arguments = [*devices, str(wire.rtt_ms / 2), str(wire.loss), str(wire.rate_mbit)]
        log = directory / "delayline.log"
        command = [sys.executable, "-m", "bench.delayline", *arguments]
        stack.enter_context(running(Node(), command, log))
        deadline = time.monotonic() + 10
        while "ready" not in log.read_text():
            if time.monotonic() > deadline:
                raise Missing(f"the wire does not come up: {log.read_text()[-200:]}")
            time.sleep(0.02)
        for device, node in zip(devices, nodes, strict=True):
            _ip("link", "set", device, "netns", node.namespace)
            inside = ["-n", node.namespace]
            _ip(*inside, "link", "set", "lo", "up")
            _ip(*inside, "addr", "add", f"{node.address}/24", "dev", device)
            _ip(*inside, "link", "set", device, "mtu", "1500", "txqueuelen", "2000", "up")
            _set_buffers(node, wire.buffers)
        yield Place(directory, *nodes)


def _ip(*arguments: str) -> None:
    run = subprocess.run([program("ip") or "ip", *arguments], capture_output=True, text=True, check=False)
    if run.returncode and "delete" not in arguments:
        raise Missing(f"ip {' '.join(arguments)}: {run.stderr.strip()}")


def _set_buffers(node: Node, kind: str) -> None:
    values = _DEFAULT if kind == "default" else {"tcp_rmem": TUNED, "tcp_wmem": _TUNED_S}
    with node.inside():
        for name, value in values.items():
            Path(f"/proc/sys/net/ipv4/{name}").write_text(value)


def measure(quick: bool, report: Report) -> dict[str, Any]:
    """Stream over direct TCP, tunnels and `ssh -L` on each kind of wire.

    Returns:
        `rows`: a wire, a way and a number of connections each; `setup`: seconds of `s2uc request` on each wire.
    """
    wires = (
        [Wire(25)]
        if quick
        else [Wire(rtt, loss, kind) for rtt in (25, 100) for loss in (0.0, 0.0001) for kind in ("default", "tuned")]
    )
    rows: list[dict[str, Any]] = []
    setups = []
    missing: dict[str, str] = {}
    for wire in wires:
        with tempfile.TemporaryDirectory(prefix="bench-") as directory, ExitStack() as stack:
            try:
                place = stack.enter_context(two_sites(wire, Path(directory)))
            except Missing as error:
                return {"rows": [], "setup": [], "missing": {"wan": str(error)}}
            found = _on(wire, place, quick, missing, report)
            rows += found["rows"]
            setups.append(found["setup"])
    return {"rows": rows, "setup": setups, "missing": missing, "rate_mbit": RATE_MBIT, "tuned": [TUNED, _TUNED_S]}


def _on(wire: Wire, place: Place, quick: bool, missing: dict[str, str], report: Report) -> dict[str, Any]:
    rows = []
    seconds, warm_up = (0.8, 0.8) if quick else (1.2, 0.8 + 6 * wire.rtt_ms / 1000)
    with ExitStack() as stack:
        target = place.producer.address, stack.enter_context(producer(place.producer, place.directory))
        gateways = stack.enter_context(two_gateways(place))
        user = User(place.directory / "user", *gateways)
        setup = asdict(wire) | {"label": wire.label, "request_s": _requests(user, target, 2 if quick else 3)}
        report(f"{wire.label}: s2uc request {setup['request_s']:.2f} s")
        found = [ways.direct(), *ways.tunnels(user, gateways)[:2], ways.rivals()[0]]
        for streams in (4,) if quick else (1, 4):
            for i, way in enumerate(found):
                try:
                    row = _one(wire, way, place.sub(f"x{streams}-{i}"), target, streams, seconds, warm_up)
                except (Missing, OSError, RuntimeError) as error:
                    missing[f"{way.label} at {wire.label}"] = str(error)
                    report(f"  {way.label}: left out: {error}")
                    continue
                rows.append(row)
                report(f"  {way.label:18} x{streams:<2} {row['gbps']:.3f} Gb/s {row.get('first_byte_ms', 0):6.0f} ms")
    return {"rows": rows, "setup": setup}


def _one(
    wire: Wire, way: Way, place: Place, target: tuple[str, int], streams: int, seconds: float, warm_up: float
) -> dict[str, Any]:
    with way.open(place, target, streams) as road, place.consumer.inside():
        row: dict[str, Any] = asdict(wire) | {"wire": wire.label, "way": way.label, "kind": way.kind}
        row |= {"streams": streams}
        if streams == 1:
            row["first_byte_ms"] = statistics.median(first_bytes(road.addresses[0], 3)) * 1e3
            row["round_trip_ms"] = statistics.median(round_trips(road.addresses[0], 10, most_s=1.0, warm_up=2)) * 1e3
        row["gbps"] = _gbps(road, seconds, warm_up)
        return row


def _gbps(road: Road, seconds: float, warm_up: float) -> float:
    return transfer(road.addresses, tuple, seconds, warm_up).gbps


def _requests(user: User, target: tuple[str, int], runs: int) -> float:
    times = []
    for _ in range(runs):
        found: dict[str, Any] = {}
        times.append(timed(lambda found=found: found.update(user.request([target], 1))))
        user.run("release", found["uid"])
    return statistics.median(times)
