"""Three gateway nodes, S2CS and the other facility, each a host of its own: a network namespace with its address."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Endpoint
from tests.support.gateways import GatewayProcess, gateway
from tests.support.namespaces import at, ip, switched
from tests.support.nodes import NodeProcess, made
from tests.support.ports import ports
from tests.support.sessions import Opened, echo, exchange, open_pair
from tests.support.tunnels import processes_in

_INSIDE = "SCISTREAM_TEST_NODES_APART"
HOSTS = {"gw": "10.77.0.5", "other": "10.77.0.6", "app": "10.77.0.9"}
NODES = {"n1": "10.77.0.11", "n2": "10.77.0.12", "n3": "10.77.0.13"}
DATA = os.urandom(2_000_000)

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces"),
]


@pytest.fixture
def hosts() -> Iterator[str]:
    """Make the hosts; what their names begin with."""
    with switched("ssn", HOSTS | NODES) as prefix:
        yield prefix


@pytest.mark.skipif(_INSIDE in os.environ, reason="this is the inside")
def test_three_nodes_apart(hosts: str, tmp_path: Path) -> None:
    """Be the host of the applications and of the user."""
    words = [
        "-m",
        "pytest",
        "-q",
        "-rP",
        "-m",
        "soak",
        "-p",
        "no:cacheprovider",
        "--basetemp",
        str(tmp_path / "in"),
        __file__,
    ]
    command = [*at(hosts, "app"), sys.executable, *words]
    run = subprocess.run(command, env=os.environ | {_INSIDE: hosts}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    print(*(line for line in run.stdout.splitlines() if " after " in line), sep="\n")
    assert "1 passed" in run.stdout


@pytest.mark.skipif(_INSIDE not in os.environ, reason="is run by the test before it, at another host")
def test_inside(tmp_path: Path) -> None:
    prefix = os.environ[_INSIDE]
    with ExitStack() as stack:
        first, other = (
            stack.enter_context(
                gateway(tmp_path / name, "--lan", HOSTS[name], "--wan", HOSTS[name], wrapper=at(prefix, name))
            )
            for name in ("gw", "other")
        )
        nodes = {}
        for name, address in NODES.items():
            range_ = stack.enter_context(ports(20))
            node = made(first.config, name, Endpoint(address, range_.last + 1), range_, tmp_path / name)
            node.wrapper = at(prefix, name)
            stack.callback(node.clear)
            node.start()
            nodes[name] = node
        first.environ.update({"SCISTREAM_SERVER__ON_SHUTDOWN": "keep", "SCISTREAM_S2DS__LOCAL": "false"})
        first.stop()
        first.start()
        producer, consumer = (stack.enter_context(each.client()) for each in (first, other))
        application = stack.enter_context(echo(HOSTS["app"]))
        sessions = [open_pair(producer, consumer, [str(application.endpoint)]) for _ in range(3)]
        places = {info(producer, session).node: session for session in sessions}
        assert set(places) == set(NODES)
        assert {session.wan[0].host for session in sessions} == set(NODES.values())
        for name, session in places.items():
            outlives(name, nodes[name], first, producer, session)
        for session in sessions:
            session.release()
        for name, node in nodes.items():
            assert processes_in(node.tunnels) == []
            assert [path for path in node.tunnels.rglob("*") if path.name != "lock"] == []
            listens = subprocess.run(
                [*at(prefix, name), "ss", "-Hltn"], check=True, capture_output=True, text=True
            ).stdout
            assert len(listens.splitlines()) == 1, listens  # its own port


def outlives(name: str, node: NodeProcess, gateway: GatewayProcess, producer: Any, session: Opened) -> None:
    """Let everything happen to a node while a stream is open through it."""
    prefix = os.environ[_INSIDE]

    def say(stream: Any, word: bytes) -> None:
        stream.sendall(word)
        assert stream.recv(len(word)) == word

    with session.connect() as stream:
        say(stream, b"before")
        gateway.stop(signal.SIGKILL)
        say(stream, b"without S2CS")
        gateway.start()
        say(stream, b"with S2CS")
        node.stop(signal.SIGKILL)
        say(stream, b"without S2DS")
        node.start()
        becomes(producer, session, lambda found: found.state == "ACTIVE")
        ip("-n", f"{prefix}-{name}", "link", "set", "lan0", "down")
        begin = time.monotonic()
        lost = becomes(producer, session, lambda found: found.state == "RECOVERING")
        print(f"{name}: lost after {time.monotonic() - begin:.1f} s: {lost.reason}")
        elsewhere = open_pair(producer, session.consumer, session_targets(producer, session))
        assert info(producer, elsewhere).node != name
        elsewhere.release()
        gateway.stop(signal.SIGKILL)  # while the node cannot be reached
        gateway.start()
        assert info(producer, session).state == "RECOVERING"
        ip("-n", f"{prefix}-{name}", "link", "set", "lan0", "up")
        begin = time.monotonic()
        becomes(producer, session, lambda found: found.state == "ACTIVE")
        print(f"{name}: back after {time.monotonic() - begin:.1f} s")
        exchange(stream, DATA)
    os.kill(processes_in(node.tunnels)[0], signal.SIGKILL)
    becomes(producer, session, lambda found: found.restarts and found.state == "ACTIVE")
    with session.connect() as stream:
        exchange(stream, DATA)


def session_targets(producer: Any, session: Opened) -> list[str]:
    return list(info(producer, session).targets)


def info(producer: Any, session: Opened) -> Any:
    (found,) = producer.list(pb.ListRequest(uid=session.uid)).sessions
    return found


def becomes(producer: Any, session: Opened, condition: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + 40
    while not condition(found := info(producer, session)):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found
