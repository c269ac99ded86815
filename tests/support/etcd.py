"""A real etcd of several nodes, each of which can be killed, stopped and started again."""

from __future__ import annotations

import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from s2cs.settings import StoreSettings
from scistream.vocabulary import Endpoint
from tests.support.ports import port_block

WHY_NOT = "" if shutil.which("etcd") else "there is no etcd here; apt-get install etcd-server"
_ELECTION = ["--heartbeat-interval", "50", "--election-timeout", "500"]  # ms


@dataclass
class EtcdNode:
    """One node; `wrapper` is a command that runs another one, as at another host."""

    name: str
    client: Endpoint
    peer: Endpoint
    directory: Path
    wrapper: tuple[str, ...] = ()
    tls: Path | None = None  # a directory with ca.crt, host.crt, host.key and user.crt, user.key of who may ask
    process: subprocess.Popen[bytes] | None = None

    def start(self, members: str, token: str) -> None:
        """Start it; it is up when most of them are."""
        command = [*self.wrapper, "etcd", "--name", self.name, "--data-dir", str(self.directory / self.name)]
        url = f"http{'s' if self.tls else ''}://{self.client}"
        command += ["--listen-client-urls", url, "--advertise-client-urls", url]
        if self.tls:
            command += ["--client-cert-auth", "--trusted-ca-file", str(self.tls / "ca.crt")]
            command += ["--cert-file", str(self.tls / "host.crt"), "--key-file", str(self.tls / "host.key")]
        command += ["--listen-peer-urls", f"http://{self.peer}", "--initial-advertise-peer-urls", f"http://{self.peer}"]
        command += ["--initial-cluster", members, "--initial-cluster-token", token, *_ELECTION]
        command += ["--auto-compaction-mode", "periodic", "--auto-compaction-retention", "1h"]
        with (self.directory / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def stop(self, number: int = signal.SIGKILL) -> None:
        """End it."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(30)


@dataclass
class Cluster:
    """All of them."""

    nodes: list[EtcdNode]

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where clients ask."""
        return tuple(node.client for node in self.nodes)

    def settings(self, **more: object) -> StoreSettings:
        """What a gateway on this store has."""
        words = {"etcd": [str(each) for each in self.endpoints], "listen": "127.0.0.1:1", "ttl": 2}
        return StoreSettings.model_validate(words | more)

    def start(self, *nodes: EtcdNode) -> None:
        """Start nodes, all where none is named."""
        members = ",".join(f"{node.name}=http://{node.peer}" for node in self.nodes)
        for node in nodes or self.nodes:
            node.start(members, "scistream-test")

    def ask(self, node: EtcdNode, path: str, body: dict[str, object]) -> dict[str, object]:
        """Ask one node."""
        if node.tls is None:
            answer: dict[str, object] = httpx.post(f"http://{node.client}/v3/{path}", json=body, timeout=2).json()
            return answer
        context = ssl.create_default_context(cafile=str(node.tls / "ca.crt"))
        context.load_cert_chain(node.tls / "user.crt", node.tls / "user.key")
        answer = httpx.post(f"https://{node.client}/v3/{path}", json=body, timeout=2, verify=context).json()
        return answer

    def wait(self) -> None:
        """Wait until it can be written."""
        deadline = time.monotonic() + 30
        while True:
            for node in self.nodes:
                with suppress(Exception):
                    if "header" in self.ask(node, "kv/put", {"key": "dHJpYWw=", "value": "eA=="}):
                        return
            assert time.monotonic() < deadline, "etcd does not come up"
            time.sleep(0.1)

    def leader(self) -> EtcdNode:
        """The node that leads."""
        for node in self.nodes:
            with suppress(Exception):
                found = self.ask(node, "maintenance/status", {})
                if found["leader"] == found["header"]["member_id"]:  # type: ignore[index]
                    return node
        raise AssertionError("no node of etcd leads")


@contextmanager
def etcd(directory: Path, nodes: int = 1) -> Iterator[Cluster]:
    """Run etcd on loopback."""
    first = port_block(1)
    places = [(Endpoint("127.0.0.1", first + 2 * n), Endpoint("127.0.0.1", first + 2 * n + 1)) for n in range(nodes)]
    with running([EtcdNode(f"e{n}", *place, directory) for n, place in enumerate(places)]) as cluster:
        yield cluster


@contextmanager
def running(nodes: list[EtcdNode]) -> Iterator[Cluster]:
    """Run etcd on nodes, which have one directory."""
    nodes[0].directory.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(nodes)
    try:
        cluster.start()
        cluster.wait()
        yield cluster
    finally:
        for node in cluster.nodes:
            if node.process is not None and node.process.poll() is None:
                node.process.send_signal(signal.SIGCONT)
            node.stop()
