"""The launcher `systemd` in a booted systemd: a scope for each data server, and sessions of gateways that use it."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from typing import Any

import pytest

from tests.engines.facilities import CONSUMER, PRODUCER, install, streaming, user, wait_for
from tests.support.booted import ROOT, Machine

BACKENDS = ("nginx", "haproxy", "stunnel")
SETTINGS = 'launcher = "systemd"\\nmemory_bytes = 67108864\\ntasks = 32\\ncpu_weight = 50'


@pytest.fixture(scope="module")
def facilities(machine: Machine) -> Machine:
    """Two gateways whose proxies run in scopes."""
    install(machine)
    for unit, etc in ((PRODUCER, "scistream"), (CONSUMER, "consumer")):
        machine.run(
            "sh",
            "-euc",
            f"""
            sed -i 's/^\\[s2ds\\]$/[s2ds]\\n{SETTINGS}/' /etc/{etc}/s2cs.toml
            mkdir -p /etc/systemd/system/{unit}.d
            cp {ROOT}/deploy/systemd/privileged.conf /etc/systemd/system/{unit}.d/
            systemctl daemon-reload
            systemctl restart {unit}
            """,
        )
    return machine


def scopes(machine: Machine) -> set[str]:
    listed = machine.said("systemctl", "list-units", "--all", "--plain", "--no-legend", "scistream-*")
    groups = machine.said("sh", "-c", "cd /sys/fs/cgroup; ls -d */scistream.slice/*.scope 2>/dev/null || :")
    return {line.split()[0] for line in listed.splitlines()} | {line.rpartition("/")[2] for line in groups.splitlines()}


def of(machine: Machine, uid: str) -> list[str]:
    """The scopes of a session: one at each of its two gateways."""
    return sorted(unit for unit in scopes(machine) if unit.startswith(f"scistream-{uid}-"))


def all_gone(machine: Machine) -> None:
    """See that nothing is left; systemd clears away a scope in a moment of its own."""
    wait_for(f"no scope, {scopes(machine)}", lambda: not scopes(machine), 10)


def pids(machine: Machine, unit: str) -> set[int]:
    path = f"/sys/fs/cgroup/systemd/scistream.slice/{unit}/cgroup.procs"
    return set(map(int, machine.run("cat", path, check=False).stdout.split()))


def test_the_contract_of_data_servers(machine: Machine) -> None:
    """The suite that all data servers pass, in that machine."""
    options = ["-q", "-p", "no:cacheprovider", "-m", "engines", "--rootdir", str(ROOT), "-c", f"{ROOT}/pyproject.toml"]
    suite = str(ROOT / "tests/contract/test_s2ds.py")
    run = machine.run(sys.executable, "-m", "pytest", *options, suite, check=False)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert "passed" in run.stdout
    all_gone(machine)


def test_streams_have_limits_and_accounts_of_their_own(facilities: Machine) -> None:
    with ExitStack() as stack:
        streams = [stack.enter_context(streaming(facilities, backend)) for backend in BACKENDS]
        for stream in streams:
            units = of(facilities, stream.uid)
            assert len(units) == 2
            for unit in units:
                assert facilities.show(unit, "MemoryMax") == "67108864"
                assert facilities.show(unit, "TasksMax") == "32"
                assert facilities.show(unit, "CPUWeight") == "50"
                assert int(facilities.show(unit, "MemoryCurrent")) > 0
                assert int(facilities.show(unit, "TasksCurrent")) > 0
                assert stream.uid in facilities.show(unit, "Description")
                limit = facilities.said("cat", f"/sys/fs/cgroup/memory/scistream.slice/{unit}/memory.limit_in_bytes")
                assert limit == "67108864"
        before = scopes(facilities)
        for unit in (PRODUCER, CONSUMER):
            facilities.run("systemctl", "restart", unit)
        facilities.run("systemctl", "kill", "--signal", "KILL", PRODUCER)
        wait_for("another server", lambda: facilities.show(PRODUCER, "ActiveState") == "active")
        for stream in streams:
            stream.goes_on()
        assert scopes(facilities) == before
        for stream in streams:
            stream.ends_whole()
            stream.release()
    all_gone(facilities)


def state(machine: Machine, uid: str) -> Any:
    return json.loads(user(machine, "status", "--json", uid).stdout)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_killed_proxy_is_mended_in_another_scope_after_an_adoption_too(facilities: Machine, backend: str) -> None:
    with streaming(facilities, backend) as stream:
        facilities.run("systemctl", "restart", PRODUCER)
        before = of(facilities, stream.uid)
        for unit in before:
            facilities.run("systemctl", "kill", "--signal", "KILL", unit)
        wait_for("other scopes", lambda: len(now := of(facilities, stream.uid)) == 2 and not {*now} & {*before})
        stream.say("end")
        assert stream.say(f"connect {stream.listener}") == "connected"
        stream.goes_on()
        stream.ends_whole()
        stream.release()
    all_gone(facilities)


def test_what_leaves_its_process_group_ends_with_the_session(facilities: Machine) -> None:
    with streaming(facilities, "nginx") as stream:
        escaped = []
        for unit in of(facilities, stream.uid):
            groups = [f"/sys/fs/cgroup/{each}/scistream.slice/{unit}/cgroup.procs" for each in ("systemd", "unified")]
            script = 'for g; do echo $$ >"$g"; done; exec setsid sleep 600'
            escaped.append(facilities.popen("sh", "-c", script, "sh", *groups))
            wait_for("the escaped", lambda unit=unit: len(pids(facilities, unit)) > 1)
        stream.release()
    all_gone(facilities)
    for each in escaped:
        each.communicate(timeout=10)
        assert each.returncode


def test_one_who_takes_too_much_memory_is_ended_alone(facilities: Machine) -> None:
    with streaming(facilities, "nginx") as stream, streaming(facilities, "haproxy") as other:
        (unit, _) = of(facilities, stream.uid)
        group = f"/sys/fs/cgroup/memory/scistream.slice/{unit}/cgroup.procs"
        script = f"echo $$ >{group}; exec python3 -c 'bytearray(200 * 2**20)'"
        assert facilities.run("sh", "-c", script, check=False).returncode
        other.goes_on()
        other.ends_whole()
        for each in (stream, other):
            each.release()
    all_gone(facilities)


def test_without_root_the_launcher_is_refused(facilities: Machine) -> None:
    """The last test of this file."""
    facilities.run("rm", "/etc/systemd/system/scistream.service.d/privileged.conf")
    facilities.run("systemctl", "daemon-reload")
    assert facilities.run("systemctl", "restart", PRODUCER, check=False).returncode
    facilities.run("systemctl", "stop", PRODUCER)
    said = facilities.said("journalctl", "--unit", PRODUCER, "--output", "cat")
    assert 'launcher "systemd" cannot be used: systemd makes units for root only' in said
    assert "privileged.conf" in said
