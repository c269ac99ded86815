"""A further gateway node as a service of a booted systemd: installed by setup.sh, and streams that outlive it."""

from __future__ import annotations

import re
import signal
import sys
from contextlib import ExitStack

import pytest

from tests.engines.facilities import CONSUMER, processes, proxies, setup, streaming, wait_for
from tests.support.booted import ROOT, Machine

NODE, PRODUCER = "scistream-s2ds.service", "producer.service"
BACKENDS = ("nginx", "haproxy", "stunnel")
LINKS = ("--find-links", str(ROOT / "dist/wheelhouse"))
_OFFERED = "/srv/gw2.toml"


@pytest.fixture(scope="module")
def node(machine: Machine) -> Machine:
    """The machine as a node of a gateway that carries nothing itself, and another gateway beside them."""
    s2cs = f"{sys.executable} -m s2cs"
    for name, port in (("producer", 5000), ("consumer", 5010)):
        state = f"--state-dir /var/lib/{name} --port {port} --port-range {port + 26000}-{port + 26999}"
        machine.run("sh", "-euc", f"cd {ROOT}; {s2cs} init /etc/{name} --name {name} {state}")
    options = f"gw2 127.0.0.1:5020 --port-range 33000-33999 --bundle {_OFFERED} --config /etc/producer/s2cs.toml"
    machine.run("sh", "-euc", f"cd {ROOT}; {s2cs} nodes add {options}")
    machine.run("sed", "-i", "s/^\\[s2ds\\]$/[s2ds]\\nlocal = false/", "/etc/producer/s2cs.toml")
    setup(machine, *LINKS, "--node", _OFFERED)
    for unit in (PRODUCER, CONSUMER):
        name = unit.removesuffix(".service")
        machine.run(
            "sh",
            "-euc",
            f"""
            chown -R scistream:scistream /etc/{name} /var/lib/{name}
            sed -E 's,Directory=scistream,Directory={name},; s,/etc/scistream,/etc/{name},' \\
                /etc/systemd/system/scistream.service >/etc/systemd/system/{unit}
            systemctl daemon-reload
            systemctl start {unit}
            address=$(sed -n 's/^listen = \\["\\([^"]*\\)".*/\\1/p' /etc/{name}/s2cs.toml | head -n 1)
            s2uc --config /srv/user gateway add {name} "$address" --ca /etc/{name}/certs/ca.crt \\
                --token-file /etc/{name}/token
            """,
        )
    return machine


def sessions_left(machine: Machine) -> str:
    """What the node has of sessions: processes, and directories in memory."""
    left = machine.said("sh", "-c", "find /run/scistream-s2ds -mindepth 2 -type d")
    return f"{proxies(machine, NODE) or ''}{left}"


def test_a_node_is_a_service_that_exposes_little_and_is_not_a_gateway(node: Machine) -> None:
    assert node.said("systemctl", "is-enabled", NODE) == "enabled"
    assert node.show("scistream.service", "ActiveState") == "inactive"
    assert not node.run("ls", "/etc/scistream/s2cs.toml", check=False).stdout
    assert "serves on 127.0.0.1:5020" in node.show(NODE, "StatusText")
    assert node.said("stat", "--format", "%U %a", "/etc/scistream/s2ds.toml") == "scistream 600"
    offline = ("systemd-analyze", "security", "--offline=true", "--no-pager")
    report = node.said(*offline, f"/etc/systemd/system/{NODE}")
    figure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", report)
    assert figure
    assert float(figure[1]) <= 2.0
    assert f"gives, {figure[1]}" in (ROOT / f"deploy/systemd/{NODE}").read_text()


def test_setup_a_second_time_changes_nothing(node: Machine) -> None:
    pid = node.show(NODE, "MainPID")
    assert "all is up to date" in setup(node, *LINKS).stderr
    assert "all is up to date" in setup(node, *LINKS, "--node", _OFFERED).stderr
    assert node.show(NODE, "MainPID") == pid


def test_streams_outlive_whatever_becomes_of_the_node_s_server(node: Machine) -> None:
    drop_in = f"/etc/systemd/system/{NODE}.d"
    node.run("sh", "-c", f"mkdir {drop_in}; printf '[Service]\\nWatchdogSec=2\\n' >{drop_in}/test.conf")
    node.run("systemctl", "daemon-reload")
    node.run("systemctl", "restart", NODE)
    assert sessions_left(node) == ""
    with ExitStack() as stack:
        streams = [stack.enter_context(streaming(node, backend)) for backend in BACKENDS]
        running = proxies(node, NODE)
        assert len(running) >= len(BACKENDS)
        assert proxies(node, PRODUCER) == set()
        for what in ("restart", "stop", "start"):
            node.run("systemctl", what, NODE)
            for stream in streams:
                stream.goes_on()
        assert proxies(node, NODE) == running
        for number in (signal.SIGKILL, signal.SIGSTOP):
            pid = node.show(NODE, "MainPID")
            node.run("kill", f"-{number.value}", pid)

            def another(pid: str = pid) -> bool:
                return node.show(NODE, "MainPID") not in ("0", pid) and node.show(NODE, "ActiveState") == "active"

            wait_for(f"another server after {number.name}", another)
            for stream in streams:
                stream.goes_on()
        assert proxies(node, NODE) == running
        for stream in streams:
            stream.ends_whole()
        node.run("kill", "-KILL", *map(str, running), check=False)  # of a group the first may end the others
        wait_for("other proxies", lambda: len(now := proxies(node, NODE)) >= len(BACKENDS) and not now & running)
        for stream in streams:
            assert stream.say(f"connect {stream.listener}") == "connected"
            stream.goes_on()
            stream.ends_whole()
            stream.release()
    wait_for("the end of all sessions", lambda: sessions_left(node) == "", 10)
    node.run("rm", "-r", drop_in)
    node.run("systemctl", "daemon-reload")


def test_a_broken_file_of_settings_is_said_by_the_service(node: Machine) -> None:
    node.run("sh", "-c", "cp -p /etc/scistream/s2ds.toml /srv/kept; echo 'nonsense = 1' >>/etc/scistream/s2ds.toml")
    assert node.run("systemctl", "restart", NODE, check=False).returncode
    status = node.run("systemctl", "status", "--no-pager", "--full", NODE, check=False).stdout
    node.run("cp", "-p", "/srv/kept", "/etc/scistream/s2ds.toml")
    node.run("systemctl", "restart", NODE)
    assert re.search(r'Status: "s2cs: .*nonsense', status), status


def test_a_gateway_is_no_node_of_another(node: Machine) -> None:
    node.run("cp", "/etc/consumer/s2cs.toml", "/etc/scistream/s2cs.toml")
    run = setup(node, *LINKS, "--node", _OFFERED, check=False)
    node.run("rm", "/etc/scistream/s2cs.toml")
    assert run.returncode == 1
    assert "this host has a gateway of its own" in run.stderr


def test_uninstalling_ends_all(node: Machine) -> None:
    """The last test of this file."""
    with streaming(node, "nginx"):
        setup(node, "--uninstall")
        assert processes(node, NODE) == set()
        assert node.said("ls", "/etc/scistream/s2ds.toml")
        setup(node, "--uninstall", "--purge")
        setup(node, "--uninstall", "--purge")
    kept = node.said("sh", "-c", "ls -d /etc/scistream /var/lib/scistream* /run/scistream* 2>/dev/null || :")
    assert kept.split() in ([], ["/run/scistream-setup.lock"])
