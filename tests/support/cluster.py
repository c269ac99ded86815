"""A Kubernetes cluster of the tests' own, of one node, with our image: up for a module's tests, and gone after them."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.containers import ROOT

IMAGE = "scistream:1"
NAMESPACE = "scistream"
NODE, API = "10.99.0.1", "https://10.99.0.1:16443"
_KIT = "SCISTREAM_KUBE_KIT"
_BASE = ROOT / "dist/rootfs.tar"
_ENTER = ["nsenter", "--net=/run/netns/kube"]
_KINDS = "pods,secrets,services,configmaps,persistentvolumeclaims"


class Cluster:
    """A cluster that runs. Its clients are in its network namespace."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environ = os.environ | {"KUBECONFIG": str(directory / "kubeconfig")}

    def run(self, *command: str, check: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run a command there to its end."""
        done = subprocess.run(
            [*_ENTER, *command], env=self.environ | more, capture_output=True, text=True, timeout=120, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def popen(self, *command: str, **more: Any) -> subprocess.Popen[str]:
        """Start a command there."""
        environ = self.environ | more.pop("environ", {})
        return subprocess.Popen([*_ENTER, *command], env=environ, text=True, **more)

    def kubectl(self, *command: str, check: bool = True) -> str:
        """Run kubectl as the cluster's administrator."""
        return self.run("kubectl", *command, check=check).stdout

    def items(self, kind: str, *options: str) -> list[Any]:
        """The objects of a kind, in the sessions' namespace."""
        found: list[Any] = json.loads(self.kubectl("-n", NAMESPACE, "get", kind, "-o", "json", *options))["items"]
        return found

    def pods(self, uid: str) -> list[Any]:
        """The pods of a session."""
        found = self.items("pods")
        return [pod for pod in found if pod["metadata"].get("annotations", {}).get("scistream.org/session") == uid]

    def everything(self) -> list[str]:
        """All that is in the cluster, but for what it makes itself."""
        return sorted(self.kubectl("get", _KINDS, "--all-namespaces", "-o", "name").split())

    def process(self, pod: Any) -> int:
        """The first process of a pod's container, as it is called outside of it."""
        container = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("docker://")
        return int(self.docker("inspect", "--format", "{{.State.Pid}}", container))

    def docker(self, *command: str) -> str:
        """Run Docker's command line on its engine."""
        return self.run("docker", "--host", f"unix://{self.directory}/run/docker.sock", *command).stdout.strip()

    def account(self, directory: Path) -> dict[str, str]:
        """Write what a gateway outside needs to be S2CS's account; its settings, as variables."""
        (secret,) = [each for each in self.items("secrets") if each["metadata"]["name"].startswith("s2cs-token-")]
        files = {"account.token": secret["data"]["token"], "account.ca": secret["data"]["ca.crt"]}
        for name, text in files.items():
            (directory / name).write_bytes(base64.b64decode(text))
        values = {"ENABLED": "true", "API": API, "CA": str(directory / "account.ca")}
        values["TOKEN_FILE"] = str(directory / "account.token")
        return {f"SCISTREAM_KUBERNETES__{name}": value for name, value in values.items()}

    def load(self) -> None:
        """Give it the image: built by its own engine from the base that is here."""
        self.docker("import", str(_BASE), "scistream-base:1")
        build = ("build", "--quiet", "--network", "none", "--build-arg", "BASE=scistream-base:1")
        self.docker(*build, "--file", str(ROOT / "deploy/docker/Dockerfile"), "--tag", IMAGE, str(ROOT))


@contextmanager
def cluster(directory: Path) -> Iterator[Cluster]:
    """Run one, or skip the test and say why."""
    kit = Path(os.environ.get(_KIT, ""))
    if not (kit / "kube.sh").is_file():
        pytest.skip(f"{_KIT} names no folder with a kube.sh that starts a cluster")
    if os.geteuid():
        pytest.skip("only root starts a cluster")
    if not _BASE.exists() or not (ROOT / "dist/wheelhouse/.made").exists():
        pytest.skip("what the image is built from is not there: make wheelhouse, and deploy/docker/base.sh")
    command = ["bash", str(kit / "kube.sh")]
    up = subprocess.run([*command, "up", str(directory)], capture_output=True, text=True, check=False)
    if up.returncode:
        pytest.skip(f"the cluster does not start here: {up.stdout[-300:]} {up.stderr[-300:]}")
    try:
        running = Cluster(directory)
        running.load()
        running.kubectl("create", "namespace", NAMESPACE)
        running.kubectl("apply", "-n", NAMESPACE, "-f", str(ROOT / "deploy/kubernetes/base/access.yaml"))
        yield running
    finally:
        subprocess.run([*command, "down", str(directory)], capture_output=True, check=False)


class Gateway:
    """An `s2cs serve` outside of the cluster, which makes its sessions there."""

    def __init__(self, cluster: Cluster, directory: Path, name: str, port: int, ports: str, **environ: str) -> None:
        self.cluster, self.directory, self.name, self.port = cluster, directory, name, port
        self._process: subprocess.Popen[str] | None = None
        options = ["--name", name, "--port", str(port), "--port-range", ports, "--metrics-port", "0"]
        self._s2cs("init", str(directory), *options, "--host", NODE, "--lan", NODE, "--wan", NODE)
        self.environ = {
            **cluster.account(directory),
            "SCISTREAM_S2DS__IMAGE": IMAGE,
            "SCISTREAM_POLICY__TARGETS": '["127.0.0.0/8"]',
            "SCISTREAM_POLICY__TRUSTED_WAN": f'["{NODE}/32"]',
            **environ,
        }

    def _s2cs(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return self.cluster.run(sys.executable, "-m", "s2cs", *command, check=False, **environ)

    def check(self) -> subprocess.CompletedProcess[str]:
        """Look at its settings."""
        return self._s2cs("check", "--config", str(self.directory / "s2cs.toml"), **self.environ)

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self.directory / "serve.log").read_text()

    def start(self, **environ: str) -> None:
        """Start it, and wait until it serves, or has ended."""
        file = self.directory / "serve.log"
        with file.open("ab") as log:
            begin = log.tell()
            command = [sys.executable, "-m", "s2cs", "serve", "--config", str(self.directory / "s2cs.toml")]
            self._process = self.cluster.popen(*command, stderr=log, environ=self.environ | environ)
        deadline = time.monotonic() + 30
        while "serves on" not in file.read_text()[begin:] and self._process.poll() is None:
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def stop(self, number: int) -> None:
        """Stop it."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(30)


class User:
    """Somebody with `s2uc`, who knows gateways."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster, self.directory = cluster, directory

    def s2uc(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the user's command."""
        return self.cluster.run(sys.executable, "-m", "s2uc", "--config", str(self.directory), *command, check=check)

    def knows(self, name: str, address: str, ca: Path, token: Path) -> None:
        """Add a gateway."""
        self.s2uc("gateway", "add", name, address, "--ca", str(ca), "--token-file", str(token))

    def states(self, uid: str) -> list[str]:
        """A session's states, at both gateways."""
        both = json.loads(self.s2uc("status", uid, "--json").stdout)
        return [both[side]["state"] for side in ("producer", "consumer")]


def eventually(what: str, holds: Callable[[], bool], timeout_s: float = 60) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.1)
