"""Real gateways on a node, and sessions over two of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

import s2uc
from bench.place import Node, Place, running, wait_for_ports
from bench.traffic import Address
from scistream.vocabulary import Endpoint
from tests.support.ports import BLOCK, port_block

_TIDY = {"SCISTREAM_SERVER__ON_SHUTDOWN": "release"}


@dataclass(frozen=True)
class RunningGateway:
    """An `s2cs serve` that runs on a node."""

    directory: Path
    node: Node
    endpoint: Endpoint
    pid: int

    @property
    def library(self) -> s2uc.Gateway:
        """The gateway as the client library knows it."""
        token = (self.directory / "token").read_text().strip()
        ca = (self.directory / "certs" / "ca.crt").read_bytes()
        return s2uc.Gateway(self.directory.name, self.endpoint, ca, token)

    @property
    def metrics(self) -> str:
        """Where it serves its metrics."""
        return f"http://127.0.0.1:{self.endpoint.port + 1}/metrics"

    def proxies(self) -> set[int]:
        """Processes that run in one of its tunnels' directories."""
        tunnels = str((self.directory / "state" / "tunnels").resolve())  # a link to where the secrets are
        found = set()
        for process in psutil.process_iter():
            try:
                if process.cwd().startswith(tunnels):
                    found.add(process.pid)
            except psutil.Error:
                continue
        return found


@contextmanager
def gateway(
    directory: Path, node: Node, *options: str, blocks: int = 1, module: str = "s2cs", **settings: str
) -> Iterator[RunningGateway]:
    """Run a gateway on a node.

    Args:
        directory: for its files.
        node: where.
        options: more ones of `s2cs init`.
        blocks: of 100 ports for its sessions.
        module: what serves; `s2cs`, or something that stands for it.
        settings: over those of the file, as `LIMITS__SESSIONS`.
    """
    first = port_block(blocks)
    last = first + blocks * BLOCK - 1
    ports = ["--port", str(first), "--metrics-port", str(first + 1), "--port-range", f"{first + 2}-{last}"]
    where = ["--lan", node.address, "--wan", node.address]
    init = [sys.executable, "-m", "s2cs", "init", str(directory), *ports, *where, *options]
    with node.inside():
        subprocess.run(init, check=True, capture_output=True)
    if not node.address.startswith("127."):  # the application is on the gateway itself, which has to be named alone
        settings = {"POLICY__TARGETS": f'["{node.address}/32"]', **settings}
    environ = {f"SCISTREAM_{name}": value for name, value in settings.items()}
    log = directory / "serve.log"
    command = [sys.executable, "-m", module, "serve", "--config", str(directory / "s2cs.toml")]
    with running(node, command, log, 60, **_TIDY, **environ) as process:
        wait_for_ports(node, [first], process, log, 60)
        yield RunningGateway(directory, node, Endpoint(node.address, first), process.pid)


@contextmanager
def two_gateways(place: Place, blocks: int = 1, **settings: str) -> Iterator[tuple[RunningGateway, RunningGateway]]:
    """Run a producer's and a consumer's gateway, each on its node."""
    with (
        gateway(place.directory / "producer", place.producer, blocks=blocks, **settings) as p,
        gateway(place.directory / "consumer", place.consumer, blocks=blocks, **settings) as c,
    ):
        yield p, c


class User:
    """Somebody at the command line on the consumer's node."""

    def __init__(self, directory: Path, *gateways: RunningGateway) -> None:
        """Know the gateways as `a`, `b`, ..."""
        self.node = gateways[-1].node
        self._environ = os.environ | {"SCISTREAM_CONFIG_DIR": str(directory)}
        for name, each in zip("ab", gateways, strict=True):
            files = ["--ca", str(each.directory / "certs/ca.crt"), "--token-file", str(each.directory / "token")]
            self.run("gateway", "add", name, str(each.endpoint), *files)

    def run(self, *arguments: str) -> str:
        """Run `s2uc` to its end; what it prints."""
        program = str(Path(sys.executable).with_name("s2uc"))
        with self.node.inside():
            done = subprocess.run([program, *arguments], env=self._environ, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"s2uc {arguments[0]} failed: {done.stderr.strip()}")
        return done.stdout

    def request(self, targets: Sequence[Address], streams: int, backend: str = "") -> dict[str, Any]:
        """Open a session; what `request --json` prints."""
        more = ["--backend", backend] if backend else []
        listener = ["--prod-listeners", ",".join(f"{host}:{port}" for host, port in targets)]
        wanted = ["--producer", "a", "--consumer", "b", "--num-conn", str(streams)]
        found = json.loads(self.run("request", "--json", *wanted, *listener, *more))
        assert isinstance(found, dict)
        return found

    @contextmanager
    def session(self, targets: Sequence[Address], streams: int, backend: str = "") -> Iterator[list[Address]]:
        """Open a session for a block; where its listeners are, one a connection."""
        found = self.request(targets, streams, backend)
        try:
            listeners = [Endpoint.parse(text) for text in found["consumer"]["listeners"]]
            yield [(listener.host, listener.port) for listener in listeners]
        finally:
            self.run("release", found["uid"])
