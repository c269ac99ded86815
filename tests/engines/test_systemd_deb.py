"""The Debian package in a booted systemd: installed, upgraded under a stream, removed, purged."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

import pytest

from tests.engines.facilities import PRODUCER, add_consumer, processes, proxies, setup, streaming
from tests.support.booted import ROOT, Machine


@dataclass(frozen=True)
class Packages:
    """A package and the next version of it, where the machine can read them."""

    first: str
    second: str


@pytest.fixture(scope="module")
def packages(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """Build the package, without network; the next one differs in its version alone."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("there is no dpkg-deb here")
    place = tmp_path_factory.mktemp("deb")
    links = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(ROOT / "dist/wheelhouse"), "SCISTREAM_DEB_BUILD": "1"}
    subprocess.run([ROOT / "deploy/deb/build.sh", place], env=os.environ | links, check=True)
    (package,) = place.glob("*.deb")
    subprocess.run(["dpkg-deb", "-R", package, place / "tree"], check=True)
    control = place / "tree/DEBIAN/control"
    control.write_text(control.read_text().replace("-1\n", "-2\n", 1))
    second = place / "second.deb"
    subprocess.run(["dpkg-deb", "-Znone", "--build", place / "tree", second], check=True, stdout=subprocess.DEVNULL)
    put = []
    for path in (package, second):  # the kit shows another /tmp, or this one as it was at its boot
        put.append(f"/srv/{path.name}")
        machine.run("sh", "-c", f"cat >{put[-1]}", input=path.read_bytes(), text=False)
    return Packages(*put)


def test_install_upgrade_remove_and_purge(machine: Machine, packages: Packages) -> None:
    machine.run("dpkg", "-i", packages.first)
    assert machine.show(PRODUCER, "ActiveState") == "active"
    assert machine.said("systemctl", "is-enabled", PRODUCER) == "enabled"
    assert "0.1.0" in machine.said("s2cs", "--version")
    machine.run("/opt/scistream/bin/python", "-c", "import s2cs.replicas.etcd")  # an extra that is brought
    assert "Debian package" in setup(machine, check=False).stderr
    settings = machine.said("sha256sum", "/etc/scistream/s2cs.toml")
    add_consumer(machine)
    with streaming(machine, "nginx") as stream:
        pid, running = machine.show(PRODUCER, "MainPID"), proxies(machine, PRODUCER)
        machine.run("dpkg", "-i", packages.second)
        assert machine.show(PRODUCER, "MainPID") != pid
        assert proxies(machine, PRODUCER) == running
        assert machine.said("sha256sum", "/etc/scistream/s2cs.toml") == settings
        stream.goes_on()
        stream.ends_whole()
        stream.release()
    machine.run("systemctl", "stop", PRODUCER)
    run = machine.run("dpkg", "-i", packages.second)
    assert "scistream was stopped, and stays so" in run.stderr
    assert machine.show(PRODUCER, "ActiveState") == "inactive"
    machine.run("systemctl", "start", PRODUCER)
    machine.run("dpkg", "-i", packages.second)
    assert machine.show(PRODUCER, "ActiveState") == "active"
    with streaming(machine, "haproxy"):
        machine.run("dpkg", "-r", "scistream")
        assert processes(machine, PRODUCER) == set()
    assert machine.said("sha256sum", "/etc/scistream/s2cs.toml") == settings
    assert machine.run("test", "-e", "/opt/scistream", check=False).returncode
    machine.run("dpkg", "-i", packages.second)
    assert machine.show(PRODUCER, "ActiveState") == "active"
    machine.run("sh", "-c", "systemctl stop consumer; systemctl kill -s KILL consumer || :")
    machine.run("dpkg", "--purge", "scistream")
    script = "ls -d /etc/scistream /var/lib/scistream /var/log/scistream /run/scistream /opt/scistream 2>/dev/null || :"
    assert machine.said("sh", "-c", script) == ""
    assert machine.run("id", "scistream", check=False).returncode
    assert PRODUCER not in machine.said("systemctl", "list-units", "--all", "--plain", "--no-legend")


def test_a_fault_of_the_settings_leaves_the_service_off_and_is_shown(machine: Machine, packages: Packages) -> None:
    machine.run("sh", "-c", "mkdir -p /etc/scistream; echo 'nonsense = 1' >/etc/scistream/s2cs.toml")
    run = machine.run("dpkg", "-i", packages.first)
    assert "nonsense" in run.stderr
    assert "systemctl enable --now scistream" in run.stderr
    assert machine.show(PRODUCER, "ActiveState") == "inactive"
    machine.run("dpkg", "--purge", "scistream")
