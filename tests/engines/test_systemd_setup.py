"""deploy/setup.sh where all goes wrong: interrupted anywhere, twice at once, on a host that lacks what it needs."""

from __future__ import annotations

import pytest

from tests.engines.facilities import PRODUCER, setup, wait_for
from tests.support.booted import ROOT, Machine

LINKS = ("--find-links", str(ROOT / "dist/wheelhouse"))
_RUN = "setup-under-test.service"


def there(machine: Machine, pattern: str) -> bool:
    return not machine.run("sh", "-c", f"ls -d {pattern}", check=False).returncode


def begin(machine: Machine, *options: str) -> None:
    """Start it where all of it can be killed at once."""
    unit = ("systemd-run", "--quiet", "--collect", "--unit", _RUN)
    machine.run(*unit, str(ROOT / "deploy/setup.sh"), *options)


def kill(machine: Machine) -> None:
    machine.run("systemctl", "kill", "--signal", "KILL", _RUN, check=False)
    wait_for("its end", lambda: machine.show(_RUN, "ActiveState") in ("inactive", "failed"))


def test_without_a_python_nothing_is_left(machine: Machine) -> None:
    hide = "mkdir -p /srv/hidden; mv /usr/bin/python3* /srv/hidden"
    machine.run("sh", "-c", f"{hide}; mkdir -p /srv/local; mv /usr/local/bin/python3* /srv/local || :")
    run = machine.run("timeout", "90", str(ROOT / "deploy/setup.sh"), *LINKS, check=False)
    machine.run("sh", "-c", "mv /srv/hidden/* /usr/bin; mv /srv/local/* /usr/local/bin || :")
    assert run.returncode == 1
    assert "there is no Python of 3.11 or newer" in run.stderr
    assert not there(machine, "/opt/scistream/releases/*")
    assert not there(machine, f"/etc/systemd/system/{PRODUCER}")


def test_where_etc_is_read_only_nothing_is_changed(machine: Machine) -> None:
    script = 'mount --bind /etc /etc; mount -o remount,ro,bind /etc; exec "$@"'
    command = ("unshare", "--mount", "sh", "-euc", script, "sh", str(ROOT / "deploy/setup.sh"), *LINKS)
    run = machine.run(*command, check=False)
    assert run.returncode == 1
    assert "/etc/systemd/system cannot be written to: it is read-only; nothing was changed" in run.stderr
    assert not there(machine, "/opt/scistream/releases/*")


def test_killed_anywhere_and_run_again_it_comes_to_its_end(machine: Machine) -> None:
    for moment in (
        "/opt/scistream/releases/*/bin/pip",
        "/opt/scistream/current",
        "/etc/scistream/.unfinished",
        "/etc/scistream/certs/server.key",
        f"/etc/systemd/system/multi-user.target.wants/{PRODUCER}",
    ):
        begin(machine, *LINKS)
        wait_for(moment, lambda moment=moment: there(machine, moment), 120)
        kill(machine)
    run = setup(machine, *LINKS)
    assert machine.show(PRODUCER, "ActiveState") == "active", run.stderr
    assert not there(machine, "/etc/scistream/.unfinished")
    assert machine.said("sh", "-c", "ls /opt/scistream/releases | wc -l") == "1"
    assert "all is up to date" in setup(machine, *LINKS).stderr
    assert "admin" in machine.said("s2cs", "user", "list")
    machine.run(
        "sh",
        "-euc",
        "s2uc --config /srv/user gateway add here 127.0.0.1:5000 --ca /etc/scistream/certs/ca.crt "
        "--token-file /etc/scistream/token; s2uc --config /srv/user check-auth here",
    )


def test_a_program_that_was_put_in_place_and_not_started_is_started(machine: Machine) -> None:
    pid = machine.show(PRODUCER, "MainPID")
    machine.run("rm", "/opt/scistream/in-force")  # as it is in the middle of an upgrade
    assert "restarted; streams went on" in setup(machine, *LINKS).stderr
    assert machine.show(PRODUCER, "MainPID") != pid


def test_a_python_of_the_callers_own_is_not_taken(machine: Machine) -> None:
    """The service does not see into homes."""
    python = "/root/own/python3.13"
    script = f"mkdir -p /root/own; printf '#!/bin/sh\\necho >/root/own/taken\\n' >{python}; chmod +x {python}"
    machine.run("sh", "-euc", f"{script}; rm -r /opt/scistream/releases/*/installed")
    run = machine.run("env", "PATH=/root/own:/usr/bin:/bin", str(ROOT / "deploy/setup.sh"), *LINKS)
    assert "installed; settings are in" in run.stderr
    assert not there(machine, "/root/own/taken")
    assert machine.show(PRODUCER, "ActiveState") == "active"


def test_two_at_once_are_one(machine: Machine) -> None:
    machine.run("sh", "-c", "rm -r /opt/scistream/releases/*/installed")
    begin(machine, *LINKS)
    wait_for("the lock", lambda: there(machine, "/opt/scistream/releases/*/bin/pip"))
    run = setup(machine, *LINKS, check=False)
    assert (run.returncode, "another setup.sh is at work" in run.stderr) == (1, True), run.stderr
    run = setup(machine, "--uninstall", check=False)
    assert (run.returncode, "another setup.sh is at work" in run.stderr) == (1, True), run.stderr
    wait_for("its end", lambda: machine.show(_RUN, "ActiveState") == "inactive", 300)
    assert "all is up to date" in setup(machine, *LINKS).stderr


@pytest.mark.parametrize("moment", [f"/etc/systemd/system/{PRODUCER}", "/opt/scistream"])
def test_an_interrupted_removal_is_done_by_the_next(machine: Machine, moment: str) -> None:
    setup(machine, *LINKS)
    begin(machine, "--uninstall", "--purge")
    wait_for(f"no {moment}", lambda: not there(machine, moment), 120)
    kill(machine)
    setup(machine, "--uninstall", "--purge")
    for place in ("/opt", "/etc", "/var/lib", "/var/log"):
        assert not there(machine, f"{place}/scistream")
    assert machine.run("id", "scistream", check=False).returncode
    assert not machine.said("systemctl", "list-units", "--all", "--plain", "--no-legend", "scistream*")
