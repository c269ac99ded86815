"""A gateway with two further nodes: sessions on them, and what becomes of these when somebody dies."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from s2cs.commands.common import opened as opened_store
from s2cs.data_server import drained_fact
from s2cs.node_setup import remove
from s2cs.s2ds.backends import BACKENDS
from s2cs.settings_file import load
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Endpoint, PortRange
from scistream.wire import grpc
from scistream.x509 import check_server_certificate
from tests.support import programs
from tests.support.gateways import Client, GatewayProcess, gateway
from tests.support.nodes import NodeProcess, gateway_settings, made
from tests.support.nodes import node as running_node
from tests.support.pages import ROOT, blocks
from tests.support.ports import ports
from tests.support.sessions import Opened, echo, exchange, open_pair
from tests.support.tunnels import flavour, listening, processes_in

S2CS = [sys.executable, "-m", "s2cs"]
NODES_PAGE = blocks(ROOT / "docs/operator/nodes.md", "console")
DATA = os.urandom(300_000)


@dataclass
class Site:
    """A facility whose sessions are on two nodes, and another one."""

    gateway: GatewayProcess
    nodes: dict[str, NodeProcess]
    other: GatewayProcess
    producer: Client
    consumer: Client
    metrics: Endpoint

    def s2cs(self, *words: str) -> subprocess.CompletedProcess[str]:
        return programs.run("s2cs", *words, "--config", self.gateway.config, **self.gateway.environ)

    def info(self, uid: str) -> Any:
        (found,) = self.producer.list(pb.ListRequest(uid=uid)).sessions  # type: ignore[operator]
        return found

    def becomes(self, uid: str, condition: Callable[[Any], bool]) -> Any:
        deadline = time.monotonic() + 40
        while not condition(info := self.info(uid)):
            assert time.monotonic() < deadline, info
            time.sleep(0.1)
        return info

    def leftovers(self, *more: NodeProcess) -> list[object]:
        found: list[object] = []
        for node in (*self.nodes.values(), *more):
            files = [path for path in node.tunnels.rglob("*") if path.name != "lock"]
            found += [*processes_in(node.tunnels), *listening(node.ports), *files]
        return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        directory = tmp_path_factory.mktemp("site")
        keep = {"SCISTREAM_SERVER__ON_SHUTDOWN": "keep", "SCISTREAM_S2DS__LOCAL": "false"}
        first = stack.enter_context(gateway(directory / "a"))
        other = stack.enter_context(gateway(directory / "b"))
        nodes = {}
        for name in ("n1", "n2"):
            range_ = stack.enter_context(ports(20))
            address = Endpoint("127.0.0.1", range_.last + 1)
            nodes[name] = made(first.config, name, address, range_, directory / name)
            stack.callback(nodes[name].clear)
            nodes[name].start()
        metrics = Endpoint("127.0.0.1", first.first_port + 99)
        first.environ.update(keep | {"SCISTREAM_METRICS__LISTEN": f"['{metrics}']"})
        first.environ["SCISTREAM_NETWORK__PORTS"] = f"{first.first_port + 1}-{first.first_port + 98}"
        first.stop()
        first.start()
        clients = [stack.enter_context(each.client()) for each in (first, other)]
        running = Site(first, nodes, other, clients[0], clients[1], metrics)
        yield running
        assert running.leftovers() == []


def opened(site: Site, target: Endpoint, **more: Any) -> tuple[Opened, str]:
    session = open_pair(site.producer, site.consumer, [str(target)], **more)
    return session, site.info(session.uid).node


def test_sessions_are_spread_and_streams_outlive_everybody_but_their_proxy(site: Site) -> None:
    with echo() as application:
        (first, a), (second, b) = (opened(site, application.endpoint) for _ in "12")
        assert {a, b} == {"n1", "n2"}
        node = site.nodes[a]
        assert node.ports.first <= first.wan[0].port <= node.ports.last
        with first.connect() as stream:
            stream.sendall(b"before")
            assert stream.recv(6) == b"before"
            node.stop(signal.SIGKILL)  # its s2ds
            stream.sendall(b"alone.")
            assert stream.recv(6) == b"alone."
            site.gateway.stop(signal.SIGKILL)  # and S2CS
            stream.sendall(b"nobody")
            assert stream.recv(6) == b"nobody"
            node.start()
            site.gateway.start()
            assert site.becomes(first.uid, lambda info: info.state == "ACTIVE").node == a
            exchange(stream, DATA)
        os.kill(processes_in(node.tunnels)[0], signal.SIGKILL)
        site.becomes(first.uid, lambda info: info.restarts == 1 and info.state == "ACTIVE")
        with first.connect() as stream:
            exchange(stream, DATA)
        for session in (first, second):
            session.release()
    assert site.leftovers() == []


def test_a_lost_node_is_noticed_avoided_and_reconciled_over_a_restart_of_s2cs(site: Site) -> None:
    with ExitStack() as stack:
        application = stack.enter_context(echo())
        (kept, a), (_, b) = (opened(site, application.endpoint) for _ in "12")
        lost = site.nodes[a]
        site.s2cs("nodes", "drain", b)
        released, killed, expiring = (
            opened(site, application.endpoint, **more)[0] for more in ({}, {}, {"lease_s": 20})
        )
        site.producer.req(pb.Request(uid="early", role="PROD", num_conn=1, immediate=True))  # type: ignore[operator]
        site.s2cs("nodes", "drain", b, "--off")
        stream, cut = (stack.enter_context(each.connect()) for each in (kept, killed))
        lost.stop(signal.SIGKILL)
        info = site.becomes(kept.uid, lambda info: info.state != "ACTIVE")
        assert (info.state, info.node) == ("RECOVERING", a)
        assert f"node {a} is lost" in info.reason
        assert "may go on" in info.reason
        for each in (stream, cut):  # as they do
            each.sendall(b"before")
            assert each.recv(6) == b"before"
        _, c = opened(site, application.endpoint)
        assert c == b
        for uid in (released.uid, "early"):
            with pytest.raises(grpc.RpcError) as fault:
                site.producer.release(pb.Release(uid=uid))  # type: ignore[operator]
            assert fault.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
            assert "given back as soon as it can be" in fault.value.details()  # type: ignore[attr-defined]
        refused = site.s2cs("sessions", "kill", killed.uid, "--reason", "a test")
        assert refused.returncode == 4
        assert f"session {killed.uid} is ended when its node is back" in refused.stderr
        for uid in (released.uid, killed.uid, "early"):
            info = site.info(uid)
            assert info.state == "CLOSING"
            assert f"it ends when its node is back: node {a} is lost" in info.reason
        shown = {view["name"]: view for view in json.loads(site.s2cs("nodes", "--json").stdout)}
        assert (shown[a]["state"], shown[b]["state"], shown["local"]["state"]) == ("lost", "up", "draining")
        assert "warn  node" in site.s2cs("check").stdout
        site.becomes(expiring.uid, lambda info: info.state == "CLOSING")
        site.gateway.stop(signal.SIGKILL)
        site.gateway.start()
        assert site.info(kept.uid).state == "RECOVERING"
        assert site.info(killed.uid).state == "CLOSING"
        lost.start()
        for uid, state in ((released.uid, "RELEASED"), (killed.uid, "RELEASED"), (expiring.uid, "EXPIRED")):
            site.becomes(uid, lambda info, state=state: info.state == state)  # type: ignore[misc]
        site.becomes("early", lambda info: info.state == "RELEASED")
        assert "killed by" in site.info(killed.uid).reason
        assert cut.recv(1) == b""
        site.becomes(kept.uid, lambda info: info.state == "ACTIVE")
        assert not site.info(kept.uid).reason
        exchange(stream, DATA)
        shown = {view["name"]: view for view in json.loads(site.s2cs("nodes", "--json").stdout)}
        assert (shown[a]["sessions"], shown[a]["free_ports"]["wan"]) == (1, 19)
        for session in json.loads(site.s2cs("sessions", "--json").stdout):
            site.producer.release(pb.Release(uid=session["uid"]))  # type: ignore[operator]
        for session in site.consumer.list(pb.ListRequest()).sessions:  # type: ignore[operator]
            site.consumer.release(pb.Release(uid=session.uid))  # type: ignore[operator]
    assert site.leftovers() == []


def test_a_reload_takes_up_a_node_and_lets_go_one_that_is_removed(site: Site, tmp_path: Path) -> None:
    def added() -> NodeProcess:
        node = made(site.gateway.config, "n3", Endpoint("127.0.0.1", range_.last + 1), range_, tmp_path)
        site.s2cs("nodes", "drain", "n3", "--off")
        assert site.s2cs("reload").returncode == 0
        stack.callback(node.clear)
        node.start()
        return node

    def on_n3() -> Opened:
        for name in site.nodes:
            site.s2cs("nodes", "drain", name)
        while site.producer.describe(pb.DescribeRequest()).unready:  # type: ignore[operator]
            time.sleep(0.1)
        session, name = opened(site, application.endpoint)
        assert name == "n3"
        for name in site.nodes:
            site.s2cs("nodes", "drain", name, "--off")
        return session

    with ExitStack() as stack:
        range_ = stack.enter_context(ports(20))
        application = stack.enter_context(echo())
        node = added()
        session = on_n3()
        refused = site.s2cs("nodes", "remove", "n3")
        assert refused.returncode == 1
        assert "node n3 has 1 sessions" in refused.stderr
        node.stop(signal.SIGKILL)  # for ever
        site.becomes(session.uid, lambda info: info.state == "RECOVERING")
        assert site.s2cs("nodes", "remove", "n3", "--end-sessions").returncode == 0
        assert site.s2cs("reload").returncode == 0
        info = site.becomes(session.uid, lambda info: info.state == "FAILED")
        assert info.reason == "its node n3 is not in the settings any more"
        session.consumer.release(pb.Release(uid=session.uid))  # type: ignore[attr-defined]
        node.bundle.unlink()
        node = added()  # after all: what it has is nobody's
        session = on_n3()
        with session.connect() as stream:
            assert len([path for path in node.tunnels.iterdir() if path.is_dir()]) == 1
            assert site.s2cs("nodes", "remove", "n3", "--end-sessions").returncode == 0
            for name in site.nodes:
                site.s2cs("nodes", "drain", name)
            deadline = time.monotonic() + 10
            while not site.producer.describe(pb.DescribeRequest()).unready:  # type: ignore[operator]
                assert time.monotonic() < deadline, "before the reload a node that is removed takes sessions"
                time.sleep(0.1)
            for name in site.nodes:
                site.s2cs("nodes", "drain", name, "--off")
            assert site.s2cs("reload").returncode == 0
            assert stream.recv(1) == b""
        site.becomes(session.uid, lambda info: info.state == "FAILED")
        session.consumer.release(pb.Release(uid=session.uid))  # type: ignore[attr-defined]
        assert (site.leftovers(node)) == []
        assert "n3" not in site.gateway.config.read_text()
        assert "n3" not in site.s2cs("nodes").stdout
        assert site.s2cs("nodes", "remove", "n3").returncode == 5


def test_what_a_node_lost_fails_with_the_reason_and_what_it_has_too_much_is_stopped(site: Site) -> None:
    with echo() as application:
        session, a = opened(site, application.endpoint)
        node = site.nodes[a]
        node.stop(signal.SIGKILL)
        node.clear()  # as the end of the machine's power does
        node.start()
        info = site.becomes(session.uid, lambda info: info.state == "FAILED")
        assert "does not have it" in info.reason
        session.consumer.release(pb.Release(uid=session.uid))  # type: ignore[attr-defined]


def test_a_session_on_a_node_is_seen_and_verified_as_one_of_this_host_is(site: Site) -> None:
    with echo() as application:
        session, node = opened(site, application.endpoint)
        with session.connect() as stream:
            exchange(stream, DATA)
        verified = site.producer.verify(pb.VerifyRequest(uid=session.uid))  # type: ignore[operator]
        assert {leg.kind for leg in verified.legs} == {"listener", "application"}
        assert not any(leg.fault for leg in verified.legs)
        assert verified.certificate
        info = site.becomes(session.uid, lambda info: info.traffic.connections_total == 1)
        assert (info.traffic.bytes_from_producer, info.traffic.bytes_from_consumer) == (len(DATA), len(DATA))
        assert info.backend_version
        first = next(site.producer.watch(pb.WatchRequest(uid=session.uid)))  # type: ignore[operator]
        assert (first.session.state, first.session.node) == ("ACTIVE", node)
        assert site.producer.logs(pb.LogsRequest(uid=session.uid, lines=5)).uid == session.uid  # type: ignore[operator]
        session.release()


def test_old_clients_are_served_on_a_node(site: Site) -> None:
    if reason := BACKENDS["stunnel"].find(None).reason:
        pytest.skip(reason)
    for each in (site.gateway, site.other):
        each.configure("[compat]\npsk = true\n")
    with echo() as application:
        lan: list[str] = []
        wan: list[str] = []
        for client, role, onward in (
            (site.producer, "PROD", [str(application.endpoint)]),
            (site.consumer, "CONS", wan),
        ):
            answer: Any = client.req(pb.Request(uid="old", role=role, num_conn=1, immediate=True, backend="stunnel"))  # type: ignore[operator]
            client.hello(pb.Hello(uid="old", role=role, prod_listeners=onward))  # type: ignore[operator]
            client.update(pb.UpdateTargets(uid="old", role=role, remote_listeners=onward))  # type: ignore[operator]
            (wan if role == "PROD" else lan).extend(answer.listeners)
        assert site.info("old").node in site.nodes
        to = Endpoint.parse(lan[0])
        with socket.create_connection((to.host, to.port), 30) as stream:
            exchange(stream, DATA)
        for client in (site.producer, site.consumer):
            client.release(pb.Release(uid="old"))  # type: ignore[operator]
    assert site.leftovers() == []


def test_a_drained_node_takes_no_new_sessions(site: Site) -> None:
    assert site.s2cs("nodes", "drain", "nosuch").returncode == 5
    for name in ("n1", "n2"):
        site.s2cs("nodes", "drain", name)
    try:
        with pytest.raises(grpc.RpcError, match="is being drained"):
            site.producer.req(pb.Request(uid="u", role="PROD", num_conn=1, immediate=True))  # type: ignore[operator]
        assert "is being drained" in site.producer.describe(pb.DescribeRequest()).unready  # type: ignore[operator]
        site.s2cs("nodes", "drain", "n2", "--off")
        with echo() as application:
            session, node = opened(site, application.endpoint)
            assert node == "n2"
            session.release()
    finally:
        for name in ("n1", "n2"):
            site.s2cs("nodes", "drain", name, "--off")


def test_metrics_tell_of_each_node(site: Site) -> None:
    with urllib.request.urlopen(f"http://{site.metrics}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    told = set(re.findall(r"^# TYPE (scistream_node_\w+)", text, re.MULTILINE))
    page = (ROOT / "docs/operator/nodes.md").read_text()
    assert told == set(re.findall(r"^\| `(scistream_node_\w+)` \|", page, re.MULTILINE))
    assert {'scistream_node_up{node="local"} 1.0', 'scistream_node_up{node="n2"} 1.0'} <= set(text.splitlines())
    assert 'scistream_node_ports_free{node="n1",side="wan"} 20.0' in text
    assert {"scistream_ports_limit 40.0", 'scistream_ports_free{side="lan"} 40.0'} <= set(text.splitlines())


def test_nodes_that_are_added_and_removed_at_once_are_all_there_and_gone(tmp_path: Path) -> None:
    config = gateway_settings(tmp_path / "g")
    range_, names = PortRange(21000, 21099), [f"n{number}" for number in range(6)]
    with ThreadPoolExecutor(len(names)) as pool:
        at = Endpoint("127.0.0.1", 5010)
        nodes = list(pool.map(lambda name: made(config, name, at, range_, tmp_path / name), names))
        assert {node.name for node in load(config).s2ds.nodes} == set(names)
        check_server_certificate(nodes[0].link.certificate, nodes[0].link.key)
        assert len({node.link.certificate for node in nodes}) == 1
        list(pool.map(lambda name: remove(config, name), names))
    assert load(config).s2ds.nodes == ()


@pytest.mark.parametrize(("name", "says"), [("one-port/stunnel", "set its wan_port = 0"), ("stunnel", "")])
def test_check_tells_of_a_node_that_old_clients_cannot_be_on(tmp_path: Path, name: str, says: str) -> None:
    """Their sessions are on nodes alone, and this host needs no proxy."""
    with ports(20) as range_, running_node(tmp_path, range_, flavour(name), name="n1"):
        config = tmp_path / "gateway" / "s2cs.toml"
        nowhere = "".join(f"programs.{each} = '/nowhere'\n" for each in BACKENDS)
        config.write_text(f"[compat]\npsk = true\n[s2ds]\nlocal = false\n{nowhere}\n{config.read_text()}")
        found = programs.run("s2cs", "check", "--config", config).stdout.splitlines()
    told = [line for line in found if "fail on node n1" in line]
    assert [line.startswith("warn  [compat] psk") and says in line for line in told] == [True] * bool(says)
    assert not [line for line in found if line.startswith("FAULT") and ("backend" in line or "psk" in line)]


def test_nodes_are_added_and_what_cannot_be_is_refused(tmp_path: Path) -> None:
    subprocess.run([*S2CS, "init", str(tmp_path / "g"), "--metrics-port", "0"], check=True, capture_output=True)
    config = tmp_path / "g/s2cs.toml"
    config.write_text(before := config.read_text().replace("[network]", "[network]\nwan_port = 31000"))

    def add(*words: str) -> subprocess.CompletedProcess[str]:
        command = [*S2CS, "nodes", "add", *words, "--config", str(config)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    for words, says in (
        (("local", "127.0.0.1:5010"), "local is this host"),
        (("Big", "127.0.0.1:5010"), "lower-case"),
        (("gw2", "gw2.example.org:5010"), "--lan 'gw2.example.org' is not an IP address"),
        (("gw2", "127.0.0.1:30001"), "among the sessions' ports"),
        (("gw2", "127.0.0.1:31000"), "is the node's wan_port, too"),
        (("gw2", "127.0.0.1:5010", "--rate", "fast"), "not a rate"),
        (("gw2", "127.0.0.1:5010", "--bundle", str(config)), "is there already"),
    ):
        refused = add(*words)
        assert refused.returncode
        assert says in refused.stderr
    assert config.read_text() == before
    assert not list(tmp_path.glob("*.toml"))
    for command in NODES_PAGE[0].commands()[:1]:  # as docs/operator/nodes.md has it
        line = command[1].replace("gateway/s2cs.toml", str(config))
        subprocess.run([*S2CS, *line.split()[1:]], cwd=tmp_path, check=True, capture_output=True)
    bundle = tmp_path / "gw2.toml"
    assert bundle.stat().st_mode & 0o777 == 0o600
    assert "there is a node gw2 already" in add("gw2", "127.0.0.1:5010").stderr
    for command, more, drained in (
        ("remove", [], "yes"),
        ("add", ["127.0.0.1:5010", "--bundle", "again.toml"], "no"),
    ):
        words = [*S2CS, "nodes", command, "gw2", *more, "--config", str(config)]
        subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
        with opened_store(load(config)) as store:
            assert store.fact(drained_fact("gw2")) == drained
    bundle.chmod(0o644)
    serve = subprocess.run(
        [*S2CS, "s2ds", "--config", str(bundle)], capture_output=True, text=True, check=False, timeout=30
    )
    assert serve.returncode == 1
    assert "chmod 600" in serve.stderr
