"""A container engine of the tests' own, with our image; gone with all it had when the tests have ended."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from s2cs.s2ds.config import Containers
from s2cs.s2ds.engine import Engine, NoSuch
from scistream.errors import ScistreamError

ROOT = Path(__file__).parents[2]
IMAGE = "scistream"
_BASE = ROOT / "dist/rootfs.tar"
_LEAST = ("--iptables=false", "--ip6tables=false", "--bridge=none", "--default-ulimit", "nofile=20000:20000")
_PODMAN = """[containers]
default_ulimits=["nofile=20000:20000","nproc=32768:32768"]
[engine]
runtime="runc"
"""


class Daemon:
    """A Docker daemon, or Podman's service, with all its files in one directory."""

    def __init__(self, directory: Path, program: str) -> None:
        self.directory = directory
        self.program = program
        self.socket = directory / "sock"
        self.engine = Engine(self.socket)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def containers(self) -> Containers:
        """How a data server uses it."""
        return Containers(self.socket, IMAGE)

    def start(self, *options: str) -> None:
        """Start it, and wait until it answers; options are Docker's."""
        root, run = self.directory / "root", self.directory / "exec"
        environment = dict(os.environ)
        if self.program == "dockerd":
            where = (
                "--data-root",
                root,
                "--exec-root",
                run,
                "-p",
                self.directory / "pid",
                "-H",
                f"unix://{self.socket}",
            )
            command = ["dockerd", *map(str, where), *_LEAST, *options]
        else:
            settings = self.directory / "containers.conf"
            settings.write_text(_PODMAN)
            environment["CONTAINERS_CONF"] = str(settings)
            where = ("--root", root, "--runroot", run, "system", "service", "-t", "0", f"unix://{self.socket}")
            command = ["podman", *map(str, where)]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.engine.ask("GET", "info")
                return
            except ScistreamError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    pytest.skip(f"{self.program} does not run here: {error}")
                time.sleep(0.05)

    def stop(self) -> None:
        """Stop it, as its service would be."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def docker(self, *command: str) -> str:
        """Run Docker's command line on it."""
        run = subprocess.run(
            ["docker", "--host", f"unix://{self.socket}", *command], stdout=subprocess.PIPE, text=True, check=True
        )
        return run.stdout

    def all(self) -> dict[str, list[str]]:
        """All that it has: containers, running or not, images, volumes, networks."""
        containers = self.engine.ask("GET", "containers/json", all="1")
        return {
            "containers": sorted(each["Names"][0] for each in containers),
            "images": sorted(each["Id"] for each in self.engine.ask("GET", "images/json")),
            "volumes": sorted(each["Name"] for each in self.engine.ask("GET", "volumes")["Volumes"] or []),
            "networks": sorted(each["Id"] for each in self.engine.ask("GET", "networks")),
        }

    def of(self, uid: str) -> list[Any]:
        """The containers of a session, as the engine describes them."""
        label = json.dumps({"label": [f"org.scistream.session={uid}"]})
        found = self.engine.ask("GET", "containers/json", all="1", filters=label)
        described = []
        for each in found:
            with suppress(NoSuch):  # it has just been removed
                described.append(self.engine.ask("GET", f"containers/{each['Id']}/json"))
        return described


@contextmanager
def daemon(program: str) -> Iterator[Daemon]:
    """Run an engine in a directory of its own, or skip the test and say why."""
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program} here")
    if os.geteuid():
        pytest.skip(f"only root starts {program}")
    directory = Path(tempfile.mkdtemp(prefix="sci-engine-"))  # a socket's path is short
    made = Daemon(directory, program)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        _unmount(directory)
        shutil.rmtree(directory, ignore_errors=True)


def _unmount(directory: Path) -> None:
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        place = line.split()[1]
        if place.startswith(f"{directory}/"):
            subprocess.run(["umount", "--lazy", place], check=False)


def load(daemon: Daemon) -> None:
    """Give a daemon of Docker the image: built on it from the base that is here."""
    if not _BASE.exists() or not (ROOT / "dist/wheelhouse/.made").exists():
        pytest.skip("what the image is built from is not there: make wheelhouse, and deploy/docker/base.sh")
    daemon.docker("import", str(_BASE), "scistream-base")
    build = ("build", "--quiet", "--network", "none", "--build-arg", "BASE=scistream-base")
    daemon.docker(*build, "--file", str(ROOT / "deploy/docker/Dockerfile"), "--tag", IMAGE, str(ROOT))


def copy(source: Daemon, to: Daemon) -> None:
    """Give another daemon the image."""
    archive = to.directory / "image.tar"
    source.docker("save", "--output", str(archive), IMAGE)
    to.docker("load", "--input", str(archive))
    archive.unlink()
