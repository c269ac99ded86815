"""A container engine of the tests' own, with our image; gone with all it had when the tests have ended.

What engines keep outside of their own directory is listed at the end, and is a fault: processes, mounts, control groups
and the sockets of containerd's shims.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from s2cs.s2ds import procfs
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
lock_type="file"
"""
_GROUPS = Path("/sys/fs/cgroup")
_END_S = 15.0  # how long what an engine has ended may take to be gone


class Daemon:
    """A Docker daemon, or Podman's service, with all its files in one directory."""

    def __init__(self, directory: Path, program: str) -> None:
        self.directory = directory
        self.program = program
        self.socket = directory / "sock"
        self.engine = Engine(self.socket)
        self._process: subprocess.Popen[bytes] | None = None
        self._shims: set[Path] = set()  # sockets of containerd's, in a directory that all engines share

    @property
    def containers(self) -> Containers:
        """How a data server uses it."""
        return Containers(self.socket, IMAGE)

    def start(self, *options: str) -> None:
        """Start it, and wait until it answers; options are Docker's."""
        environment = dict(os.environ)
        if self.program == "dockerd":
            command = ["dockerd", "--data-root", self.root, "--exec-root", self.directory / "exec"]
            command += ["-p", self.directory / "pid", "-H", f"unix://{self.socket}", *_LEAST]
            command += ["--cgroup-parent", f"/{self.directory.name}", *options]
        else:
            settings = self.directory / "containers.conf"
            settings.write_text(_PODMAN)
            environment["CONTAINERS_CONF"] = str(settings)
            command = ["podman", "--root", self.root, "--runroot", self.directory / "exec"]
            command += ["--tmpdir", self.directory / "tmp", "system", "service", "-t", "0", f"unix://{self.socket}"]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.engine.ask("GET", "info")
                return
            except ScistreamError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{error}: {(self.directory / 'log').read_text()[-1000:]}") from None
                time.sleep(0.05)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop it as its service would be, or kill it."""
        self._meet_shims()
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None
        if number is signal.SIGKILL:
            # Its containerd dies with it. Where nobody reaps that, the next daemon takes it for alive by its number.
            (self.directory / "exec/containerd/containerd.pid").unlink(missing_ok=True)

    def close(self) -> list[str]:
        """End it with all that it has, and tell what it or its containers had left."""
        left: list[str] = []
        self._meet_shims()
        if self._process is None or self._process.poll() is not None:
            self.start()
        for container in self.engine.ask("GET", "containers/json", all="1"):
            left.append(f"container {container['Names'][0]}")
            self.engine.ask("DELETE", f"containers/{container['Id']}", force="1", v="1")
        self.stop()
        deadline = time.monotonic() + _END_S
        while (outside := self.outside()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left + outside

    def outside(self) -> list[str]:
        """What there is of it outside of its directory, while it does not run."""
        # What an engine makes once for all containers, and leaves.
        own = {str(self.root), str(self.root / "overlay"), str(self.directory / "exec/netns/default")}
        return [
            *(f"process {pid}: {command}" for pid, command in self._processes().items()),
            *(f"mount {place}" for place in self._mounts() if place not in own),
            *(f"control group {path}" for path in self._groups() if path.name != "conmon"),
            *(f"socket {path}" for path in self._shims if path.exists()),
        ]

    def clear(self) -> None:
        """Take away what is left of it."""
        for pid in self._processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for place in reversed(self._mounts()):
            subprocess.run(["umount", "--lazy", place], check=False)
        for path in reversed(self._groups()):
            with suppress(OSError):
                path.rmdir()
        for path in (*self._shims, *_GROUPS.glob(f"*/{self.directory.name}")):
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        shutil.rmtree(self.directory)

    def _meet_shims(self) -> None:
        for path in self.directory.glob("exec/containerd/**/address"):
            self._shims.add(Path(path.read_text().removeprefix("unix://")))

    @property
    def root(self) -> Path:
        """Where its images and containers are."""
        return self.directory / "root"

    def _processes(self) -> dict[int, str]:
        """Processes that name its directory or have their root in it, but for those that wait to be reaped."""
        found = {}
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, ValueError):
                command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                root = next(
                    (line for line in (place / "mountinfo").read_text().splitlines() if line.split()[4] == "/"), ""
                )
                if f"{self.directory}/" in command + root and procfs.alive(int(place.name)):
                    found[int(place.name)] = command
        return found

    def _mounts(self) -> list[str]:
        places = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        return [place for place in places if place.startswith(f"{self.directory}/")]

    def _groups(self) -> list[Path]:
        """Control groups of its containers: all in one that has its name, or in one that all of Podman's share."""
        parent = self.directory.name if self.program == "dockerd" else "libpod_parent"
        return sorted(path for top in _GROUPS.glob(f"*/{parent}") for path in top.rglob("*") if path.is_dir())

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
def daemon(program: str, room: int = 0) -> Iterator[Daemon]:
    """Run an engine in a directory of its own, or skip the test and say why.

    Args:
        program: `dockerd` or `podman`.
        room: how many bytes it has for images and containers; 0 is what the disk has.
    """
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program} here")
    if os.geteuid():
        pytest.skip(f"only root starts {program}")
    made = Daemon(Path(tempfile.mkdtemp(prefix="sci-engine-")), program)  # a socket's path is short
    try:
        if room:
            made.root.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(made.root)], check=True)
        try:
            made.start()
        except RuntimeError as error:
            pytest.skip(f"{program} does not run here: {error}")
        yield made
        left = made.close()
    finally:
        made.clear()
    assert not left, f"{program} and its containers left something behind: {left}"


def settings(docker: Daemon, **more: str) -> dict[str, str]:
    """The environment of a gateway that uses an engine."""
    values = {"LAUNCHER": "docker", "ENGINE": str(docker.socket), "IMAGE": docker.containers.image, **more}
    return {f"SCISTREAM_S2DS__{name}": value for name, value in values.items()}


def eventually(holds: Callable[[], bool], timeout_s: float = 60) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


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
