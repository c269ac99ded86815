"""The gateway as a service of a booted systemd: installed by setup.sh, hardened, and streams that outlive it."""

from __future__ import annotations

import json
import re
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.engines.facilities import (
    CONSUMER,
    PRODUCER,
    Stream,
    install,
    processes,
    proxies,
    setup,
    streaming,
    user,
    wait_for,
)
from tests.support.booted import ROOT, Machine

BACKENDS = ("nginx", "haproxy", "stunnel")
LINKS = ("--find-links", str(ROOT / "dist/wheelhouse"))


@pytest.fixture(scope="module")
def facilities(machine: Machine) -> Machine:
    """The machine with two gateways, installed by setup.sh."""
    install(machine)
    return machine


def drop_in(machine: Machine, unit: str, text: str) -> None:
    """Change a unit as an operator does, and start it again."""
    directory = f"/etc/systemd/system/{unit}.d"
    machine.run("sh", "-euc", f"mkdir -p {directory}; printf '%s\\n' \"$1\" >{directory}/test.conf", "sh", text)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", unit)


def undo(machine: Machine, unit: str) -> None:
    machine.run("rm", "-rf", f"/etc/systemd/system/{unit}.d")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", unit)


def main_pid(machine: Machine, unit: str = PRODUCER) -> int:
    return int(machine.show(unit, "MainPID"))


def engine(machine: Machine) -> set[str]:
    """What the engine has of sessions: units, and the control groups of processes that are no unit's main one."""
    units = machine.said("systemctl", "list-units", "--all", "--plain", "--no-legend", "scistream*", "consumer*")
    groups = machine.said("sh", "-c", "cd /sys/fs/cgroup/systemd; find . -name '*scistream*' -o -name '*consumer*'")
    files = machine.said("sh", "-c", "find /run/scistream /run/consumer /dev/shm -mindepth 2")
    found = {line.split()[0] for line in units.splitlines()} | set(groups.splitlines()) | set(files.splitlines())
    return found | {f"{unit} process {pid}" for unit in (PRODUCER, CONSUMER) for pid in proxies(machine, unit)}


def test_setup_a_second_time_changes_nothing(facilities: Machine) -> None:
    pid, find = main_pid(facilities), ("sh", "-c", "find /etc /opt /usr/local -newer /srv/mark -type f")
    facilities.run("touch", "/srv/mark")
    assert "all is up to date" in setup(facilities, *LINKS).stderr
    assert facilities.said(*find) == ""
    assert main_pid(facilities) == pid
    facilities.run("/opt/scistream/current/bin/python", "-c", "import s2cs.replicas.etcd")  # an extra that is brought
    again = setup(facilities, *LINKS, "--", "--name", "other")
    assert "--name other is not used" in again.stderr


def test_the_unit_exposes_little(facilities: Machine) -> None:
    report = facilities.said("systemd-analyze", "security", "--no-pager", PRODUCER)
    figure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", report)
    assert figure
    assert float(figure[1]) <= 2.0
    unit = Path(ROOT / "deploy/systemd/scistream.service").read_text()
    assert f"says {figure[1]} of this unit" in unit


def test_the_service_says_what_it_does(facilities: Machine) -> None:
    assert "serves on 127.0.0.1:5000; 0 sessions, kept at a stop" in facilities.show(PRODUCER, "StatusText")
    assert facilities.show(PRODUCER, "WatchdogUSec") == "30s"
    pid = main_pid(facilities)
    facilities.run("systemctl", "reload", PRODUCER)
    facilities.run("sh", "-c", "echo 'nonsense = 1' >>/etc/scistream/s2cs.toml")
    assert facilities.run("systemctl", "reload", PRODUCER, check=False).returncode
    facilities.run("sed", "-i", "$d", "/etc/scistream/s2cs.toml")
    facilities.run("systemctl", "reload", PRODUCER)
    assert main_pid(facilities) == pid
    assert facilities.show(PRODUCER, "ActiveState") == "active"


def status(machine: Machine, pid: int) -> dict[str, list[str]]:
    lines = machine.said("cat", f"/proc/{pid}/status").splitlines()
    return {line.partition(":")[0]: line.partition(":")[2].split() for line in lines}


@pytest.mark.parametrize("privileged", [False, True], ids=["as it is", "privileged"])
def test_streams_and_proxies_with_nothing_to_lose(facilities: Machine, privileged: bool) -> None:
    """Each backend under the unit's restrictions: equal hashes, no capabilities, and nothing left behind."""
    if privileged:
        for unit in (PRODUCER, CONSUMER):
            drop_in(facilities, unit, (ROOT / "deploy/systemd/privileged.conf").read_text())
    uid = facilities.said("id", "-u", "scistream-s2ds" if privileged else "scistream")
    before = engine(facilities)
    with ExitStack() as stack:
        streams = [stack.enter_context(streaming(facilities, backend)) for backend in BACKENDS]
        running = proxies(facilities, PRODUCER) | proxies(facilities, CONSUMER)
        assert len(running) >= 2 * len(BACKENDS)
        for pid in running:
            found = status(facilities, pid)
            assert found["Uid"] == [uid] * 4
            assert {*found["CapEff"], *found["CapPrm"], *found["CapBnd"], *found["CapAmb"]} == {"0" * 16}
            assert found["NoNewPrivs"] == ["1"]
            assert found["Seccomp"] == ["2"]
        for stream in streams:
            stream.ends_whole()
            stream.release()
    assert engine(facilities) == before
    if privileged:
        for unit in (PRODUCER, CONSUMER):
            undo(facilities, unit)


def test_a_proxy_that_is_taken_over_reads_nothing(facilities: Machine, tmp_path: Path) -> None:
    """A shell started as proxies are, within the unit's restrictions."""
    script = """
import asyncio, pathlib, sys
from s2cs.s2ds.confinement import choose
from s2cs.s2ds.launchers import LAUNCHERS
from s2cs.s2ds.launchers.base import Job

async def main():
    base = pathlib.Path("/run/scistream/try")
    base.mkdir()
    (base / "run").mkdir()
    (base / "own").write_text("own")
    shell = "cat own; for f in /etc/scistream/certs/server.key /var/lib/scistream/s2cs.db /etc/scistream/s2cs.toml; do "
    shell += "cat $f && echo read $f; done; echo >../mine && echo wrote; kill -0 $PPID && echo signalled"
    job = Job(("/bin/sh", "-c", shell), base, choose(""), log=pathlib.Path("log"), handle=pathlib.Path("handle"))
    process = await LAUNCHERS["process"].launch(job)
    await process.wait(20)
    print((base / "log").read_text())
asyncio.run(main())
"""
    hardening = []
    for line in (ROOT / "deploy/systemd/scistream.service").read_text().splitlines():
        key = line.partition("=")[0]
        if key.startswith(("Protect", "Private", "Restrict", "SystemCall", "Capability", "NoNew", "Lock", "Memory")):
            hardening += ["--property", line]
    command = ["systemd-run", "--quiet", "--wait", "--pipe", "--uid", "scistream", *hardening]
    options = ["--property", "RuntimeDirectory=scistream", "--property", "RuntimeDirectoryPreserve=yes"]
    python = f"{facilities.said('readlink', '-f', '/opt/scistream/bin')}/python"
    said = facilities.said(*command, *options, python, "-c", script)
    facilities.run("rm", "-rf", "/run/scistream/try")
    assert said.startswith("own")
    assert said.count("Permission denied") == 4
    assert "read /" not in said
    assert "wrote" not in said
    assert "signalled" not in said


def cut_nothing(streams: list[Stream]) -> None:
    for stream in streams:
        stream.goes_on()


def test_streams_outlive_whatever_becomes_of_the_server(facilities: Machine) -> None:
    drop_in(facilities, PRODUCER, "[Service]\nWatchdogSec=2")
    with ExitStack() as stack:
        streams = [stack.enter_context(streaming(facilities, backend)) for backend in BACKENDS]
        running = proxies(facilities, PRODUCER)
        facilities.run("systemctl", "reload", PRODUCER)
        cut_nothing(streams)
        for unit in (PRODUCER, CONSUMER):
            facilities.run("systemctl", "restart", unit)
            cut_nothing(streams)
        assert proxies(facilities, PRODUCER) == running
        for number in (signal.SIGKILL, signal.SIGSTOP):
            pid = main_pid(facilities)
            facilities.run("kill", f"-{number.value}", str(pid))
            wait_for(
                f"another server after {number.name}",
                lambda pid=pid: (
                    main_pid(facilities) not in (0, pid) and facilities.show(PRODUCER, "ActiveState") == "active"
                ),
            )
            cut_nothing(streams)
        assert proxies(facilities, PRODUCER) == running
        assert facilities.show(PRODUCER, "NRestarts") == "2"
        assert "3 sessions" in facilities.show(PRODUCER, "StatusText")
        for stream in streams:
            stream.ends_whole()
            stream.release()
    undo(facilities, PRODUCER)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_proxy_that_is_killed_is_mended_after_a_restart_too(facilities: Machine, backend: str) -> None:
    before = engine(facilities)
    with streaming(facilities, backend) as stream:
        facilities.run("systemctl", "restart", PRODUCER)
        pids = " ".join(map(str, proxies(facilities, PRODUCER)))
        facilities.run("sh", "-c", f"kill -KILL {pids}", check=False)  # of a group the first may end the others

        def mended() -> bool:
            answer = json.loads(user(facilities, "status", "--json", stream.uid).stdout)
            return "ACTIVE" in json.dumps(answer) and bool(proxies(facilities, PRODUCER))

        wait_for("another proxy", mended)
        stream.say("end")
        assert stream.say(f"connect {stream.listener}") == "connected"
        stream.goes_on()
        stream.ends_whole()
        stream.release()
    assert engine(facilities) == before


@pytest.mark.parametrize("fate", ["keep", "release"])
def test_a_stop_keeps_or_releases(facilities: Machine, fate: str) -> None:
    drop_in(facilities, PRODUCER, f"[Service]\nEnvironment=SCISTREAM_SERVER__ON_SHUTDOWN={fate}")
    with streaming(facilities, "nginx") as stream:
        facilities.run("systemctl", "stop", PRODUCER)
        assert facilities.show(PRODUCER, "ActiveState") == "inactive"
        if fate == "keep":
            stream.goes_on()
            facilities.run("systemctl", "start", PRODUCER)
            stream.goes_on()
            stream.ends_whole()
        else:
            assert processes(facilities, PRODUCER) == set()
            assert facilities.said("find", "/run/scistream", "-mindepth", "1") == ""
            facilities.run("systemctl", "start", PRODUCER)
        stream.release()
    undo(facilities, PRODUCER)


def test_what_is_misused_is_said_and_changes_nothing(facilities: Machine) -> None:
    for options, sentence in (
        (["--nonsense"], "option --nonsense is unknown"),
        (["--purge"], "--purge goes with --uninstall"),
        (["--find-links"], "--find-links needs a directory"),
        (["--uninstall", "--", "--name", "x"], "--uninstall takes only --purge"),
    ):
        run = setup(facilities, *options, check=False)
        assert (run.returncode, sentence in run.stderr) == (2, True), run.stderr
    run = setup(facilities, "--find-links", "/nowhere", check=False)
    assert (run.returncode, "is no directory" in run.stderr) == (1, True)
    assert facilities.show(PRODUCER, "ActiveState") == "active"


def test_uninstalling_ends_all_and_keeps_what_is_the_operators(facilities: Machine) -> None:
    """The last test of this file."""
    with streaming(facilities, "haproxy"):
        setup(facilities, "--uninstall")
        assert processes(facilities, PRODUCER) == set()
        assert facilities.run("ls", "/opt/scistream", "/usr/local/bin/s2cs", check=False).stdout == ""
        assert facilities.said("ls", "-A", "/etc/scistream/s2cs.toml", "/var/lib/scistream/s2cs.db")
        setup(facilities, "--uninstall")
    facilities.run("systemctl", "stop", CONSUMER)
    facilities.run("systemctl", "kill", "--signal", "KILL", CONSUMER)  # its half of the session, which it kept
    setup(facilities, *LINKS)
    assert "0 sessions" in facilities.show(PRODUCER, "StatusText")
    setup(facilities, "--uninstall", "--purge")
    kept = facilities.said("sh", "-c", "ls -d /etc/scistream /var/lib/scistream /var/log/scistream 2>/dev/null || :")
    assert kept == ""
    assert facilities.run("id", "scistream", check=False).returncode
