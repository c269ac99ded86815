"""Every command of the README and of the first pages, run as it is written.

The hosts of the two-hosts walk-through are directories here, and their addresses are loopback ones.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.support.fresh import checkout, clean_environment

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
GUIDE = {page.stem: page.read_text() for page in (ROOT / "docs/user").glob("*.md")}

# What stands for what. N is a number that no other run of this test uses at the time.
ADDRESSES = {
    "gw.aps.example": "127.N.1.1",  # no name service here: the gateway's WAN address
    "203.0.113.5": "127.N.1.1",
    "10.1.0.5": "127.N.1.5",
    "10.1.0.7": "127.N.1.7",
    "gw.alcf.example": "127.N.2.1",
    "198.51.100.5": "127.N.2.1",
    "10.2.0.5": "127.N.2.5",
}
SCP = """#!/bin/sh
# Stands in for scp: HOST:PATH is PATH in the directory of that host.
for argument; do
    case $argument in
        *:*) argument="../${argument%%:*}/${argument#*:}" ;;
    esac
    set -- "$@" "$argument"; shift
done
exec cp "$@"
"""
ANALYSE = """#!/bin/sh
# The consumer's program in docs/user/job.md.
echo "analyse $* of $SCISTREAM_UID from $SCISTREAM_LISTENERS"
"""


def blocks(page: str, language: str) -> list[str]:
    """Give the contents of a page's fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def dialogue(page: str) -> list[tuple[str, str]]:
    """Give host and command of each line of a page's console blocks."""
    lines = [line for block in blocks(page, "console") for line in block.splitlines()]
    pairs = [line.split("$ ", 1) for line in lines]
    assert all(len(pair) == 2 for pair in pairs), "each line is HOST$ COMMAND"
    return [(host, command) for host, command in pairs]


@dataclass
class Hosts:
    """The hosts of the walk-through."""

    directory: Path
    number: int
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        tools = self.directory / "tools"
        tools.mkdir()
        (tools / "scp").write_text(SCP)
        (tools / "scp").chmod(0o755)
        inherited = {k: v for k, v in os.environ.items() if not re.match(r"(?i)scistream_|.*_proxy$", k)}
        path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
        # Sessions that the pages leave open, or a failure, end with their gateway here.
        shared = {"SCISTREAM_METRICS__LISTEN": "[]"}  # the two gateways are one host here, with one loopback
        self.environment = {**inherited, **shared, "PATH": path, "SCISTREAM_SERVER__ON_SHUTDOWN": "release"}

    def here(self, text: str) -> str:
        """Write a text with this test's addresses."""
        for there, here in ADDRESSES.items():
            text = text.replace(there, here.replace("N", str(self.number)))
        return text

    def home(self, host: str) -> Path:
        home = self.directory / host
        home.mkdir(exist_ok=True)
        return home

    def run(self, host: str, command: str) -> str:
        """Run a command line at a host, give what it prints; one with & at its end goes on."""
        home = self.home(host)
        environment = {**self.environment, "HOME": str(home)}
        line = self.here(command)
        if line.endswith("&"):
            with (home / "log").open("ab") as log:
                self.running.append(
                    subprocess.Popen(
                        ["bash", "-c", f"exec {line.removesuffix('&')}"],
                        cwd=home,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                    )
                )
            self.wait_for_listener(self.running[-1])
            return ""
        result = subprocess.run(
            ["bash", "-c", line],
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, f"{host}$ {line}\n{result.stdout}{result.stderr}"
        return result.stdout

    def wait_for_listener(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert process.poll() is None, f"{process.args!r} has ended"
            if any(c.status == psutil.CONN_LISTEN for c in psutil.Process(process.pid).net_connections()):
                return
            time.sleep(0.05)
        raise AssertionError(f"{process.args!r} does not listen")

    def listeners(self) -> set[tuple[str, int]]:
        """Give what listens on the addresses of this walk-through."""
        listening = [c.laddr for c in psutil.net_connections("tcp4") if c.status == psutil.CONN_LISTEN]
        mine = f"127.{self.number}."
        return {(address.ip, address.port) for address in listening if address and address.ip.startswith(mine)}

    def close(self) -> None:
        for process in reversed(self.running):
            process.send_signal(signal.SIGTERM)
        for process in self.running:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    for number in range(20, 250):
        guard = socket.socket()
        with contextlib.suppress(OSError):
            guard.bind((f"127.{number}.0.1", 5000))
            break
        guard.close()
    with guard:
        found = Hosts(tmp_path, number)
        try:
            yield found
        finally:
            found.close()


@pytest.mark.skipif(not shutil.which("curl"), reason="the walk-through uses curl")
def test_the_first_real_session(hosts: Hosts) -> None:
    (hosts.home("instrument") / "frames").mkdir()
    frame = os.urandom(3_000_000)
    (hosts.home("instrument") / "frames/frame.bin").write_bytes(frame)
    hosts.home("compute")
    said: dict[str, str] = {}
    for host, command in dialogue(README):
        if command.startswith("s2uc status"):
            analyse(hosts)
        said[f"{host}$ {command.split(' --', 1)[0]}"] = hosts.run(host, command)
        if command.startswith("s2uc request"):
            during = hosts.listeners()

    assert (hosts.home("compute") / "frame.bin").read_bytes() == frame
    assert "ACTIVE" in said["laptop$ s2uc status scan-7"]
    assert "ACTIVE" in said["laptop$ s2uc request"]
    sessions = {(ip, port) for ip, port in during if 30000 <= port <= 30999}
    assert {ip for ip, _ in sessions} == {hosts.here("203.0.113.5"), hosts.here("10.2.0.5")}
    assert len(sessions) == 8
    assert not hosts.listeners() & sessions

    # The user's guide goes on from there.
    for name, page in GUIDE.items():
        for host, command in dialogue(page):
            hosts.run(host, command)
        assert not blocks(page, "sh") or name == "job"
    (script,) = blocks(GUIDE["python"], "python")
    (hosts.home("laptop") / "script.py").write_text(hosts.here(script))
    out = hosts.run("laptop", "python3 script.py")
    assert len(re.findall(r"127\.\d+\.2\.5:30\d\d\d", out)) == 4

    for gateway in hosts.running:
        assert gateway.poll() is None
    hosts.close()
    assert not hosts.listeners()


def analyse(hosts: Hosts) -> None:
    """Run the application of docs/user/job.md while the session lives."""
    program = hosts.home("compute") / "analyse"
    program.write_text(ANALYSE)
    program.chmod(0o755)
    out = hosts.run("compute", _application())
    address = r"127\.\d+\.2\.5:30\d\d\d"
    assert re.fullmatch(rf"analyse --from {address} --from {address} of scan-7 from {address}(,{address}){{3}}\n", out)


def _application() -> str:
    (command,) = blocks(GUIDE["job"], "sh")
    return command.strip()


def test_the_addresses_of_the_readme_are_all_replaced() -> None:
    text = "".join(command for _, command in dialogue(README))
    for address in re.findall(r"\b\d+\.\d+\.\d+\.\d+\b|\b[\w.]+\.example\b", text):
        assert address in ADDRESSES


def test_every_shell_block_of_the_readme_is_known_here() -> None:
    assert blocks(README, "sh") == ["make demo\n", "make test\n", "python3 -m pip install '.[embedded]'\n"]
    assert set(re.findall(r"^```(\w+)$", README, re.MULTILINE)) == {"sh", "console"}


@pytest.mark.timeout(400)
def test_make_demo_in_a_fresh_checkout(tmp_path: Path) -> None:
    tree = checkout(tmp_path / "scistream")
    environment = clean_environment(tmp_path / "home")
    for _ in range(2):
        run = subprocess.run(
            ["make", "demo"],
            cwd=tree,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=360,
            check=False,
        )
        assert run.returncode == 0, run.stdout + run.stderr
        assert re.search(r"frames checked +[1-9]", run.stdout)
    assert "installing" not in run.stdout  # the second time there is nothing to install


@pytest.mark.timeout(400)
def test_pip_install_as_the_readme_says(tmp_path: Path) -> None:
    tree = checkout(tmp_path / "scistream")
    environment = clean_environment(tmp_path / "home")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], env=environment, check=True)
    environment["PATH"] = os.pathsep.join([str(tmp_path / "venv/bin"), environment["PATH"]])
    environment["PIP_CONSTRAINT"] = str(ROOT / "constraints.txt")  # what is tested is what is pinned
    command = blocks(README, "sh")[2]
    subprocess.run(["bash", "-c", f"{command.strip()} --quiet"], cwd=tree, env=environment, check=True, timeout=360)
    for program in ("s2cs", "s2uc"):
        run = subprocess.run([program, "--version"], cwd=tmp_path, env=environment, check=True, capture_output=True)
        assert b"0.1" in run.stdout
