"""Real gateway nodes: `s2cs s2ds` as a process, and S2CS's end of the connection to it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from s2cs.node_settings import load_node
from s2cs.node_setup import add
from s2cs.s2ds.remote.link import Link
from s2cs.settings_file import load
from scistream.vocabulary import Endpoint, PortRange
from tests.support.tunnels import Flavour, processes_in

# `s2cs s2ds`, with what of the data server's configuration is no setting.
_S2DS = """
import json, sys
from dataclasses import replace
import s2cs.node
made, changes = s2cs.node.local_config, json.loads(sys.argv.pop(1))
s2cs.node.local_config = lambda *given: replace(made(*given), **changes)
from s2cs.cli import main
main()
"""


@dataclass
class NodeProcess:
    """An `s2cs s2ds` that runs, or has run."""

    link: Link
    bundle: Path
    ports: PortRange
    changes: dict[str, object] = field(default_factory=dict)
    wrapper: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def tunnels(self) -> Path:
        """Where its tunnels' directories are."""
        return self.bundle.parent / "run"

    @property
    def pid(self) -> int:
        """Its process, which runs."""
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        """What it has logged."""
        return self.bundle.with_suffix(".log").read_text()

    def start(self) -> None:
        """Start it, and wait until it serves."""
        command = [*self.wrapper, sys.executable, "-c", _S2DS, json.dumps(self.changes)]
        log = self.bundle.with_suffix(".log")
        with log.open("ab") as out:
            begin = out.tell()
            self.process = subprocess.Popen([*command, "s2ds", "--config", str(self.bundle)], stderr=out)
        deadline = time.monotonic() + 30
        while "serves on" not in log.read_text()[begin:]:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the node does not serve:\n{self.log}")
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it; its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(30)

    def clear(self) -> None:
        """End what is left of it, and of its proxies."""
        self.stop(signal.SIGKILL)
        for pid in processes_in(self.tunnels):
            with suppress(psutil.Error):
                psutil.Process(pid).kill()
        shutil.rmtree(self.tunnels, ignore_errors=True)


def gateway_settings(directory: Path) -> Path:
    """Write the settings of a gateway that nodes can be added to; no gateway runs with them."""
    file = directory / "s2cs.toml"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "certs").mkdir(mode=0o700, exist_ok=True)
    if not file.exists():
        file.write_text("[network]\nports = '20000-20099'\n")
    return file


def made(settings: Path, name: str, address: Endpoint, ports: PortRange, home: Path, **options: str) -> NodeProcess:
    """Add a node to a gateway's settings; home is the node's own directory."""
    home.mkdir(parents=True, exist_ok=True)
    for parent in (home, *home.parents):  # proxies can pass
        if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    bundle = home / f"{name}.toml"
    given = {"lan": "", "wan": "", "rate": "", **options}
    add(settings, name, str(address), ports=str(ports), bundle=bundle, **given)
    bundle.write_text(bundle.read_text().replace('state_dir = "state"', 'state_dir = "state"\nruntime_dir = "run"'))
    return NodeProcess(link_to(settings, name), bundle, ports)


def link_to(settings: Path, name: str) -> Link:
    """Say how S2CS reaches a node."""
    s2ds = load(settings).s2ds
    (node,) = (each for each in s2ds.nodes if each.name == name)
    keys = node.certificate.read_bytes(), s2ds.certificate.read_bytes(), s2ds.key.read_bytes()
    return Link(name, node.address, *keys)


@contextmanager
def node(
    directory: Path, ports: PortRange, kind: Flavour, name: str = "n1", port: int = 0, **changes: object
) -> Iterator[NodeProcess]:
    """Run a node on loopback; its control port is the one after its sessions' and its WAN port, if it is not said."""
    wan_port = kind.wan_port(ports)
    address = Endpoint("127.0.0.1", port or ports.last + (2 if wan_port else 1))
    running = made(gateway_settings(directory / "gateway"), name, address, ports, directory / name)
    programs = {name: str(path) for name, path in kind.programs.items()}
    text = running.bundle.read_text().replace('backend = "auto"', f'backend = "{kind.backend}"')
    text = text.replace("wan_port = 0", f"wan_port = {wan_port}")
    running.bundle.write_text(text + "".join(f'programs.{name} = "{path}"\n' for name, path in programs.items()))
    assert load_node(running.bundle).s2ds.backend == kind.backend
    running.changes = {"grace_s": 0.5, "backoff_s": 0.2, **changes}
    try:
        running.start()
        yield running
    finally:
        running.stop()
        running.clear()
