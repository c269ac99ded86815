"""The launcher `systemd` in a booted systemd: a scope for each data server, and sessions of gateways that use it."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from typing import Any

import pytest

from s2cs.s2ds.launchers.base import out_of_memory
from tests.engines.facilities import CONSUMER, PRODUCER, install, setup, streaming, user, wait_for
from tests.support.booted import ROOT, Machine

BACKENDS = ("nginx", "haproxy", "stunnel")
MEMORY = 2**26
SETTINGS = f'launcher = "systemd"\\nmemory_bytes = {MEMORY}\\ntasks = 32\\ncpu_weight = 50'


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
            install -D -m 0644 {ROOT}/deploy/systemd/privileged.conf /etc/systemd/system/{unit}.d/privileged.conf
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
    options = ["-q", "-p", "no:cacheprovider", "-m", "engines", "-k", "systemd", "--rootdir", str(ROOT)]
    options += ["-c", f"{ROOT}/pyproject.toml"]
    suites = [str(ROOT / f"tests/contract/{name}.py") for name in ("test_s2ds", "test_s2ds_udp")]
    run = machine.run(sys.executable, "-m", "pytest", *options, *suites, check=False)
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
                assert facilities.show(unit, "MemoryMax") == str(MEMORY)
                assert facilities.show(unit, "TasksMax") == "32"
                assert facilities.show(unit, "CPUWeight") == "50"
                assert int(facilities.show(unit, "MemoryCurrent")) > 0
                assert int(facilities.show(unit, "TasksCurrent")) > 0
                assert stream.uid in facilities.show(unit, "Description")
                limit = facilities.said("cat", f"/sys/fs/cgroup/memory/scistream.slice/{unit}/memory.limit_in_bytes")
                assert limit == str(MEMORY)
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


def journal(machine: Machine, *matches: str) -> list[dict[str, Any]]:
    lines = machine.said("journalctl", "--no-pager", "--output", "json", *matches).splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_proxies_print_is_in_the_journal_as_their_scopes_and_their_sessions(
    facilities: Machine, backend: str
) -> None:
    with streaming(facilities, backend) as stream:
        units = of(facilities, stream.uid)
        stream.ends_whole()

        def told(*matches: str) -> list[dict[str, Any]]:
            found = journal(facilities, f"SCISTREAM_SESSION={stream.uid}", *matches)
            return [each for each in found if each["SYSLOG_IDENTIFIER"] == backend]

        closed = {"nginx": "sent=", "haproxy": "up=", "stunnel": "Connection closed"}[backend]
        for unit in units:
            wait_for(
                f"the end of a connection, of {unit}",
                lambda unit=unit: any(closed in each["MESSAGE"] for each in told(f"OBJECT_SYSTEMD_UNIT={unit}")),
            )
            shown = facilities.said("journalctl", "--no-pager", "--output", "cat", "--unit", unit)
            assert closed in shown
        stream.release()
    said = facilities.said("journalctl", "--no-pager", "--output", "cat", f"SCISTREAM_SESSION={stream.uid}")
    assert "PRIVATE" not in said
    assert "BEGIN" not in said
    assert not journal(facilities, f"SCISTREAM_SESSION={stream.uid}", "PRIORITY=6")
    all_gone(facilities)


def test_cpu_is_accounted_to_the_session_that_used_it(facilities: Machine) -> None:
    with streaming(facilities, "nginx") as busy, streaming(facilities, "nginx") as idle:
        idle.ends_whole()

        def used(uid: str) -> int:
            accounts = [facilities.show(unit, "CPUUsageNSec") for unit in of(facilities, uid)]
            if "[not set]" in accounts:
                pytest.skip("systemd keeps no account of CPU here: its groups for cpu and cpuacct are apart")
            return sum(map(int, accounts))

        before, at_rest = used(busy.uid), used(idle.uid)
        assert before > 0
        busy.goes_on()
        wait_for("its account", lambda: used(busy.uid) > before + 20_000_000)
        assert used(idle.uid) - at_rest < used(busy.uid) - before
        busy.ends_whole()
        for each in (busy, idle):
            each.release()
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


@pytest.mark.parametrize("restarted", [False, True], ids=["its own", "adopted"])
def test_a_proxy_that_is_killed_for_its_memory_is_mended_and_the_reason_is_told(
    facilities: Machine, restarted: bool
) -> None:
    # The kernel is told to choose the proxy, not what takes the memory.
    script = "echo 1000 >/proc/$1/oom_score_adj; shift; for g; do echo $$ >$g; done; "
    script += "exec python3 -c 'bytearray(200 * 2**20)'"
    with streaming(facilities, "haproxy") as stream:
        if restarted:
            facilities.run("systemctl", "restart", PRODUCER, CONSUMER)
        unit, other = of(facilities, stream.uid)
        (proxy,) = pids(facilities, unit)
        hierarchies = ("systemd", "unified", "memory")
        groups = [f"/sys/fs/cgroup/{each}/scistream.slice/{unit}/cgroup.procs" for each in hierarchies]
        run = facilities.run("timeout", "20", "sh", "-c", script, "sh", str(proxy), *groups, check=False)
        assert run.returncode
        wait_for("another scope", lambda: len({*of(facilities, stream.uid)} - {unit, other}) == 1)
        units = ("--unit", PRODUCER, "--unit", CONSUMER)
        said = facilities.said("journalctl", "--no-pager", "--output", "cat", *units, "--grep", stream.uid)
        assert f"haproxy {out_of_memory(MEMORY)}" in said, said
        stream.say("end")
        assert stream.say(f"connect {stream.listener}") == "connected"
        stream.goes_on()
        stream.ends_whole()
        stream.release()
    all_gone(facilities)


def test_a_limit_that_is_too_small_for_any_proxy_is_told_to_who_asks(facilities: Machine) -> None:
    settings, too_small = "/etc/scistream/s2cs.toml", 2**20
    facilities.run("sed", "-i", f"s/^memory_bytes = .*/memory_bytes = {too_small}/", settings)
    facilities.run("systemctl", "reload", PRODUCER)
    for backend in BACKENDS:
        request = ("request", "--producer", "producer", "--consumer", "consumer", "--backend", backend)
        run = user(facilities, "--timeout", "20", *request, "--prod-listeners", "127.0.0.1:6099", check=False)
        assert run.returncode
        assert f"{backend} {out_of_memory(too_small)}" in run.stderr
    facilities.run("sed", "-i", f"s/^memory_bytes = .*/memory_bytes = {MEMORY}/", settings)
    facilities.run("systemctl", "reload", PRODUCER)
    all_gone(facilities)


def test_a_proxy_makes_no_more_tasks_than_it_may(facilities: Machine) -> None:
    with streaming(facilities, "nginx") as stream:
        (unit, _) = of(facilities, stream.uid)
        group = f"/sys/fs/cgroup/pids/scistream.slice/{unit}/cgroup.procs"
        script = f"echo $$ >{group}; for i in $(seq 40); do sleep 5 & done"
        assert "fork" in facilities.run("sh", "-c", script, check=False).stderr
        stream.goes_on()
        stream.ends_whole()
        stream.release()
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
    checked = facilities.said("s2cs", "check")  # as root, who could make them
    assert "systemd makes units for root only, and S2CS was run as scistream" in checked
    setup(facilities, "--uninstall")
    assert "scistream.slice" not in facilities.said("systemctl", "list-units", "--plain", "scistream*")
