"""Two S2CS of one facility on a three-node etcd, and three gateway nodes: each a host of its own, a network namespace.

The outer test makes the hosts and runs the inner ones at the host of the user and of the applications. What they do is
on the page docs/operator/replicas.md.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Endpoint
from scistream.wire import grpc
from tests.support import namespaces
from tests.support.authority import Authority
from tests.support.etcd import WHY_NOT, Cluster, EtcdNode, running
from tests.support.gateways import Client, GatewayProcess, gateway
from tests.support.namespaces import ip, switched
from tests.support.nodes import NodeProcess, made
from tests.support.old_client import old_client
from tests.support.ports import ports
from tests.support.sessions import Opened, echo, exchange, open_pair
from tests.support.tunnels import kill, processes_in
from tests.support.user import User

_INSIDE = "SCISTREAM_TEST_REPLICAS"
NET = "10.78.0."
HOSTS = {
    name: f"{NET}{number}"
    for number, name in enumerate(["s1", "s2", "n1", "n2", "n3", "e1", "e2", "e3", "other", "app"], 5)
}
DATA = os.urandom(2_000_000)
USERS = Authority()
S2CS = [sys.executable, "-m", "s2cs"]
PREFIX = "aps"
GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)

_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces")
_ETCD = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")
outside = pytest.mark.skipif(_INSIDE in os.environ, reason="this is the inside")
inside = pytest.mark.skipif(_INSIDE not in os.environ, reason="is run by test_at_hosts_of_their_own, at another host")
pytestmark = [_ROOT, _ETCD]


@pytest.fixture
def hosts() -> Iterator[str]:
    """Make the hosts; what their names begin with."""
    with switched("etcd", HOSTS) as prefix:
        yield prefix


@outside
def test_at_hosts_of_their_own(hosts: str, tmp_path: Path) -> None:
    """Be the host of the applications and of the user."""
    words = ["-m", "pytest", "-q", "-rP", "--timeout", "500", "-p", "no:cacheprovider", "--basetemp"]
    command = [*namespaces.at(hosts, "app"), sys.executable, *words, str(tmp_path / "in"), __file__]
    run = subprocess.run(command, env=os.environ | {_INSIDE: hosts}, capture_output=True, text=True, check=False)
    print(*(line for line in run.stdout.splitlines() if line.startswith("seen: ")), sep="\n")
    assert run.returncode == 0, run.stdout


def at(name: str) -> tuple[str, ...]:
    return namespaces.at(os.environ[_INSIDE], name)


@dataclass
class Site:
    """A facility with two S2CS, and another one."""

    cluster: Cluster
    replicas: dict[str, GatewayProcess]
    nodes: dict[str, NodeProcess]
    clients: dict[str, Client]
    consumer: Client
    consumer_port: int

    def leader(self) -> str:
        """Name the S2CS that leads."""
        deadline = time.monotonic() + 30
        while True:
            for name in self.replicas:
                try:
                    text = httpx.get(f"http://{HOSTS[name]}:5001/metrics", timeout=2).text
                except httpx.HTTPError:
                    continue
                if "scistream_leader 1.0" in text:
                    return name
            assert time.monotonic() < deadline, "nobody leads"
            time.sleep(0.1)

    def other(self, name: str) -> str:
        """Name the one that is not this one."""
        return next(each for each in self.replicas if each != name)

    def info(self, name: str, uid: str) -> Any:
        """What an S2CS says of a session."""
        (found,) = self.clients[name].list(pb.ListRequest(uid=uid)).sessions  # type: ignore[operator]
        return found

    def becomes(self, name: str, uid: str, condition: Callable[[Any], bool]) -> Any:
        """Wait until a session is so."""
        deadline = time.monotonic() + 40
        while not condition(found := self.info(name, uid)):
            assert time.monotonic() < deadline, found
            time.sleep(0.1)
        return found

    def kept(self) -> list[str]:
        """The keys in etcd that a session could leave behind."""
        command = ["etcdctl", "--endpoints", ",".join(map(str, self.cluster.endpoints)), "get", "--prefix"]
        run = subprocess.run(
            [*command, "--keys-only", f"{PREFIX}/"], capture_output=True, text=True, check=True, env=os.environ | API
        )
        return sorted(line for line in run.stdout.split() if "/facts/" not in line)

    def held(self) -> dict[str, list[str]]:
        """What gateway nodes have of sessions: processes, files, listening ports."""
        found = {}
        for name, node in self.nodes.items():
            files = [str(path) for path in node.tunnels.rglob("*") if path.name != "lock"]
            listens = subprocess.run([*at(name), "ss", "-Hltn"], check=True, capture_output=True, text=True).stdout
            ports = [line.split()[3] for line in listens.splitlines()]
            found[name] = [*map(str, processes_in(node.tunnels)), *files, *ports]
        return found


API = {"ETCDCTL_API": "3"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        home = tmp_path_factory.mktemp("site")
        members = [
            EtcdNode(name, Endpoint(HOSTS[name], 2379), Endpoint(HOSTS[name], 2380), home / "etcd", at(name))
            for name in ("e1", "e2", "e3")
        ]
        cluster = stack.enter_context(running(members))
        other = stack.enter_context(_gateway(home, "other"))
        first = stack.enter_context(_gateway(home, "s1"))
        first.stop()
        nodes = {}
        for name in ("n1", "n2", "n3"):
            range_ = stack.enter_context(ports(20))
            nodes[name] = made(first.config, name, Endpoint(HOSTS[name], range_.last + 1), range_, home / name)
            nodes[name].wrapper = at(name)
            stack.callback(nodes[name].clear)
            nodes[name].start()
        replicas = {"s1": first, "s2": _second(home, first)}
        stack.callback(replicas["s2"].clear)
        for name, replica in replicas.items():
            _share(replica, name, cluster)
        _add_admin(replicas)
        for replica in replicas.values():
            replica.start()
            stack.callback(_end, replica)
        clients = {name: stack.enter_context(replica.client()) for name, replica in replicas.items()}
        yield Site(cluster, replicas, nodes, clients, stack.enter_context(other.client()), other.first_port)


@contextmanager
def _gateway(home: Path, name: str) -> Iterator[GatewayProcess]:
    hosts = [word for host in ("s1", "s2", "other") for word in ("--host", HOSTS[host])]
    with gateway(
        home / name,
        "--lan",
        HOSTS[name],
        "--wan",
        HOSTS[name],
        *hosts,
        wrapper=at(name),
        SCISTREAM_SERVER__RUNTIME_DIR="auto",
    ) as made_:
        yield made_


def _second(home: Path, first: GatewayProcess) -> GatewayProcess:
    """Copy the first S2CS's settings and certificates to a second one."""
    directory = home / "s2"
    directory.mkdir()
    shutil.copytree(first.directory / "certs", directory / "certs")
    (directory / "s2cs.toml").write_text(first.config.read_text().replace(HOSTS["s1"], HOSTS["s2"]))
    address = first.address.replace(HOSTS["s1"], HOSTS["s2"])
    return GatewayProcess(directory, address, first.first_port, first.ports, dict(first.environ), list(at("s2")))


def _share(replica: GatewayProcess, name: str, cluster: Cluster) -> None:
    text = replica.config.read_text().replace("[s2ds]", "[s2ds]\nlocal = false", 1)
    (replica.directory / "users.crt").write_bytes(USERS.pem)
    text += f"\n[auth.certificates]\nlisten = ['{HOSTS[name]}:5003']\nca = 'users.crt'\n[compat]\nuser = 'old'\n"
    text += f"\n[store]\netcd = {[str(each) for each in cluster.endpoints]}\nprefix = '{PREFIX}'\n"
    replica.config.write_text(text + f"listen = '{HOSTS[name]}:5002'\n")
    replica.environ["SCISTREAM_SERVER__ON_SHUTDOWN"] = "keep"
    replica.environ["SCISTREAM_METRICS__LISTEN"] = f"['{HOSTS[name]}:5001']"


def _add_admin(replicas: dict[str, GatewayProcess]) -> None:
    """Add an admin at one host, and look at it from the other."""
    token = replicas["s1"].directory / "token"
    token.unlink()
    words = ["user", "add", "admin", "--admin", "--token-file", str(token)]
    old = ["user", "add", "old", "--token-file", str(token.with_name("old-token"))]
    for name, command in (("s1", words), ("s1", old), ("s2", ["user", "list"]), ("s2", ["check"])):
        config = str(replicas[name].config)
        run = subprocess.run(
            [*at(name), *S2CS, *command, "--config", config],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | replicas[name].environ,
        )
        assert run.returncode == 0, run.stdout + run.stderr
    assert "can be used, and has 2 users" in run.stdout
    (replicas["s2"].directory / "token").write_text(token.read_text())


def _end(replica: GatewayProcess) -> None:
    if replica.process.poll() is None:
        replica.process.send_signal(signal.SIGCONT)
    replica.stop(signal.SIGKILL)


def say(stream: Any, word: bytes) -> None:
    stream.sendall(word)
    assert stream.recv(len(word)) == word


@inside
def test_either_answers_and_one_dies(site: Site) -> None:
    kept, held = site.kept(), site.held()
    with echo(HOSTS["app"]) as application:
        targets = [str(application.endpoint)]
        sessions = [open_pair(site.clients[name], site.consumer, targets) for name in ("s1", "s2", "s1")]
        assert {site.info("s2", each.uid).node for each in sessions} == set(site.nodes)
        leader = site.leader()
        other = site.other(leader)
        with sessions[0].connect() as stream, sessions[1].connect() as second:
            say(stream, b"before")
            site.replicas[leader].stop(signal.SIGKILL)
            begin = time.monotonic()
            say(stream, b"nobody leads")
            assert {site.info(other, each.uid).state for each in sessions} == {"ACTIVE"}
            print(f"seen: S2CS killed: the other one answers after {time.monotonic() - begin:.1f} s")
            assert site.leader() == other
            exchange(stream, DATA)
            more = open_pair(site.clients[other], site.consumer, targets)
            site.replicas[leader].start()
            say(second, b"with both")
            assert site.info(leader, more.uid).state == "ACTIVE"
            exchange(second, DATA)
        kill(processes_in(site.nodes[site.info(other, more.uid).node].tunnels)[0])
        site.becomes(leader, more.uid, lambda found: found.state == "ACTIVE")
        with more.connect() as stream:
            exchange(stream, DATA)
        release(site, *sessions, more)
    assert without_sessions(site.kept()) == without_sessions(kept)
    assert site.held() == held


def release(site: Site, *sessions: Opened) -> None:
    """Give all back, at whichever S2CS answers."""
    for session in sessions:
        session.producer = site.clients[site.leader()]
        session.release()


def without_sessions(keys: list[str]) -> list[str]:
    """Leave out the sessions that have ended, which are known for an hour: what they left would be beside them."""
    return [key for key in keys if not key.startswith(f"{PREFIX}/sessions/")]


@inside
def test_who_led_and_was_stopped_changes_nothing_any_more(site: Site) -> None:
    kept, held = site.kept(), site.held()
    with echo(HOSTS["app"]) as application:
        leader = site.leader()
        other = site.other(leader)
        session = open_pair(site.clients[leader], site.consumer, [str(application.endpoint)])
        released = open_pair(site.clients[leader], site.consumer, [str(application.endpoint)])
        with session.connect() as stream:
            stopped = site.replicas[leader]
            stopped.process.send_signal(signal.SIGSTOP)
            assert site.info(other, session.uid).state == "ACTIVE"
            site.clients[other].release(pb.Release(uid=released.uid))  # type: ignore[operator]
            assert site.leader() == other
            time.sleep(max(0, 10 - stopped_for(stopped)))
            stopped.process.send_signal(signal.SIGCONT)
            begin = time.monotonic()
            says = tried(
                lambda: site.info(leader, released.uid)
            )  # with its own mouth, or the other one's: not with its old memory
            assert says.state == "RELEASED", says
            print(f"seen: stopped and continued: it follows after {time.monotonic() - begin:.1f} s")
            assert site.leader() == other
            assert "leads no longer" in stopped.log
            say(stream, b"whole")
            exchange(stream, DATA)
        site.consumer.release(pb.Release(uid=released.uid))  # type: ignore[operator]
        release(site, session)
    assert without_sessions(site.kept()) == without_sessions(kept)
    assert site.held() == held


def stopped_for(replica: GatewayProcess) -> float:
    """How long ago the log was last written: about when it was stopped."""
    return time.time() - (replica.directory / "serve.log").stat().st_mtime


@inside
def test_etcd_loses_nodes(site: Site) -> None:
    held = site.held()
    with echo(HOSTS["app"]) as application:
        session = open_pair(site.clients["s1"], site.consumer, [str(application.endpoint)])
        with session.connect() as stream:
            for what, node in (("its leader", site.cluster.leader()), ("a node", site.cluster.nodes[0])):
                node.stop()
                begin = time.monotonic()
                more = tried(lambda: open_pair(site.clients["s2"], site.consumer, [str(application.endpoint)]))
                print(f"seen: etcd lost {what}: a session is opened after {time.monotonic() - begin:.1f} s")
                say(stream, b"on it goes")
                release(site, more)
                site.cluster.start(node)
                site.cluster.wait()
            for node in site.cluster.nodes[:2]:
                node.stop()
            begin = time.monotonic()
            says = ""
            while "shared store" not in says:
                assert time.monotonic() < begin + 60, says
                try:
                    site.clients["s1"].list(pb.ListRequest(), timeout=30)  # type: ignore[operator]
                    time.sleep(0.2)
                except grpc.RpcError as error:
                    assert error.code() in GONE, error
                    says = error.details() or ""
            print(f"seen: most of etcd lost: {says}")
            assert says.endswith("; running streams go on")
            say(stream, b"without etcd")
            site.cluster.start(*site.cluster.nodes[:2])
            site.cluster.wait()
            begin = time.monotonic()
            assert tried(lambda: site.info("s1", session.uid)).state == "ACTIVE"
            print(f"seen: etcd is back: an S2CS leads after {time.monotonic() - begin:.1f} s")
            exchange(stream, DATA)
        release(site, session)
    assert site.held() == held


T = TypeVar("T")


def tried(what: Callable[[], T]) -> T:
    """Ask as often as a well-behaved client does: while the answer is that it is worth another attempt."""
    deadline = time.monotonic() + 40
    while True:
        try:
            return what()
        except grpc.RpcError as error:
            assert error.code() in GONE, error
            assert time.monotonic() < deadline, error
            time.sleep(0.1)


@inside
def test_a_gateway_node_is_lost_and_back(site: Site) -> None:
    held = site.held()
    with echo(HOSTS["app"]) as application:
        leader = site.leader()
        other = site.other(leader)
        session = open_pair(site.clients[other], site.consumer, [str(application.endpoint)])
        node = site.nodes[site.info(other, session.uid).node]
        with session.connect() as stream:
            node.stop(signal.SIGKILL)
            site.becomes(other, session.uid, lambda found: found.state == "RECOVERING")
            site.replicas[leader].stop(signal.SIGKILL)  # and the S2CS that knew it
            say(stream, b"nobody knows")
            assert site.info(other, session.uid).state == "RECOVERING"
            node.start()
            site.becomes(other, session.uid, lambda found: found.state == "ACTIVE")
            exchange(stream, DATA)
        site.replicas[leader].start()
        release(site, session)
    assert site.held() == held


@inside
def test_the_one_that_leads_is_cut_off_from_etcd_alone(site: Site) -> None:
    """It reaches users and nodes, and must neither decide nor order any more when another one leads."""
    held = site.held()
    with echo(HOSTS["app"]) as application:
        leader = site.leader()
        other = site.other(leader)
        session = open_pair(site.clients[other], site.consumer, [str(application.endpoint)])
        routes = [f"{HOSTS[name]}/32" for name in ("e1", "e2", "e3")]
        host = f"{os.environ[_INSIDE]}-{leader}"
        try:
            with session.connect() as stream:
                for route in routes:
                    ip("-n", host, "route", "add", "blackhole", route)
                begin = time.monotonic()
                more = tried(lambda: open_pair(site.clients[other], site.consumer, [str(application.endpoint)]))
                print(f"seen: cut off from etcd: the other one opens a session after {time.monotonic() - begin:.1f} s")
                soon(lambda: "leads no longer" in site.replicas[leader].log.rpartition("leads now")[2])
                with pytest.raises(grpc.RpcError) as caught:
                    site.clients[leader].list(pb.ListRequest(), timeout=20)  # type: ignore[operator]
                assert caught.value.code() in GONE
                say(stream, b"on it goes")
                for route in routes:
                    ip("-n", host, "route", "delete", "blackhole", route)
                assert tried(lambda: site.info(leader, more.uid)).state == "ACTIVE"
                exchange(stream, DATA)
        finally:
            for route in routes:
                subprocess.run(
                    ["ip", "-n", host, "route", "delete", "blackhole", route], check=False, capture_output=True
                )
        release(site, session, more)
    assert site.held() == held


@inside
def test_what_operators_do(site: Site) -> None:
    leader = site.leader()
    other = site.other(leader)

    def s2cs(name: str, *words: str) -> str:
        replica = site.replicas[name]
        command = [*at(name), *S2CS, *words, "--config", str(replica.config)]
        environ = os.environ | replica.environ
        run = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout + run.stderr

    def health(name: str) -> int:
        return httpx.get(f"http://{HOSTS[name]}:5001/readyz", timeout=5).status_code

    assert (health(leader), health(other)) == (200, 200)
    pid = site.replicas[other].process.pid
    for name in (leader, other):
        assert "reloaded" in s2cs(name, "reload")
    assert "no sessions" in s2cs(other, "sessions")
    s2cs(other, "drain")
    with pytest.raises(grpc.RpcError, match="no new sessions now"), echo(HOSTS["app"]) as application:
        open_pair(site.clients[leader], site.consumer, [str(application.endpoint)])
    s2cs(leader, "drain", "--off")
    soon(lambda: health(other) == 200)
    assert site.replicas[other].process.poll() is None
    assert site.replicas[other].process.pid == pid  # started anew in its place
    for marks in ((), (("scistream-peer", "ipv4:192.0.2.1:1"),)):  # what only another S2CS may say
        with pytest.raises(grpc.RpcError) as caught:
            site.clients[leader].stub.list(pb.ListRequest(), metadata=(*marks, ("authorization", "Bearer s2t_x")))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.RpcError):
        site.clients[other].stub.list(pb.ListRequest(), metadata=(("authorization", "Bearer s2t_y"),))
    audit = s2cs(leader, "audit", "show", "--json")
    assert HOSTS["app"] in audit
    assert "192.0.2.1" not in audit
    assert HOSTS[other] not in audit
    credentials = grpc.ssl_channel_credentials(site.replicas[leader].ca)
    with grpc.secure_channel(f"{HOSTS[leader]}:5002", credentials) as channel:  # the port for other S2CS
        with pytest.raises(grpc.RpcError) as caught:
            Client(channel, site.clients[leader].token).list(pb.ListRequest(), timeout=5)  # type: ignore[operator]
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    begin = time.monotonic()
    site.replicas[leader].stop()
    assert site.clients[other].describe(pb.DescribeRequest(), timeout=20).user == "admin"  # type: ignore[operator]
    print(f"seen: S2CS stopped by its operator: the other one answers after {time.monotonic() - begin:.1f} s")
    site.replicas[leader].start()


@inside
def test_callers_by_certificate_at_the_one_that_follows(site: Site) -> None:
    """One S2CS checks the certificate, and another one decides; a caller's own word of a certificate is nothing."""
    other = site.replicas[site.other(site.leader())]
    pem, key = USERS.issue("alice")
    words = (("scistream-certificate-bin", pem), ("scistream-peer", "ipv4:192.0.2.1:1"))
    with grpc.secure_channel(
        f"{other.address.rpartition(':')[0]}:5003", grpc.ssl_channel_credentials(other.ca, key, pem)
    ) as channel:
        found = Client(channel, "").stub.describe(pb.DescribeRequest(), timeout=20)
    assert (found.user, found.method) == ("cert:alice", "certificate")
    with grpc.secure_channel(other.address, grpc.ssl_channel_credentials(other.ca)) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            Client(channel, "").stub.describe(pb.DescribeRequest(), metadata=words, timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


@inside
def test_an_old_client_waits_over_the_death_of_the_one_that_leads(site: Site) -> None:
    """Its `req` answers when the application has said Hello, whoever leads by then."""
    leader = site.leader()
    other = site.other(leader)
    uid, at_other = "old-1", site.replicas[other]

    def is_reserved() -> bool:
        known = site.clients[other].list(pb.ListRequest()).sessions  # type: ignore[operator]
        return (uid, "RESERVED") in {(each.uid, each.state) for each in known}

    with old_client(at_other.address, at_other.ca) as client, echo(HOSTS["app"]) as application:
        waiting = client.start("req", uid=uid, role="PROD", num_conn=1, rate=0)
        soon(is_reserved)
        site.replicas[leader].stop(signal.SIGKILL)
        where = [str(application.endpoint)]
        tried(lambda: client.call("hello", uid=uid, role="PROD", prod_listeners=where))
        assert list(waiting.result(timeout=30).prod_listeners) == where
        client.call("release", uid=uid)
        site.replicas[leader].start()


@inside
@pytest.mark.parametrize("words", ["junk", "{}", '{"client": 7}', '{"client": "no certificate"}'])
def test_what_one_of_them_says_of_itself_is_not_understood(site: Site, words: str) -> None:
    """As of an S2CS of another version: it is no peer, and the others go on."""
    leader, known = site.leader(), f"{PREFIX}/replicas/strange"
    etcdctl = ["etcdctl", "--endpoints", str(site.cluster.endpoints[0])]
    subprocess.run([*etcdctl, "put", known, words], check=True, capture_output=True, env=os.environ | API)
    try:
        soon(lambda: "strange says of itself is not understood" in site.replicas[leader].log)
        for name in site.replicas:
            assert site.clients[name].describe(pb.DescribeRequest(), timeout=20).user == "admin"  # type: ignore[operator]
        assert site.leader() == leader
    finally:
        subprocess.run([*etcdctl, "del", known], check=True, capture_output=True, env=os.environ | API)


def soon(condition: Callable[[], bool]) -> None:
    """See that something is so within some seconds."""
    deadline = time.monotonic() + 20
    while True:
        with suppress(httpx.HTTPError):
            if condition():
                return
        assert time.monotonic() < deadline
        time.sleep(0.1)


@inside
def test_killed_at_any_moment_of_a_session(site: Site, tmp_path: Path) -> None:
    """Both S2CS are killed in turn, at random, while a user opens, renews and releases sessions by the library."""
    kept, held = site.kept(), site.held()
    killed = 0
    ended = threading.Event()
    user = User(tmp_path / "user")
    first, second = site.replicas.values()
    token, ca = first.directory / "token", first.directory / "certs/ca.crt"
    user.s2uc("gateway", "add", "aps", f"{first.address},{second.address}", "--ca", str(ca), "--token-file", str(token))
    far = GatewayProcess(first.directory.parent / "other", "", 0, 0, {})
    words = ("--ca", str(far.directory / "certs/ca.crt"), "--token-file", str(far.directory / "token"))
    user.s2uc("gateway", "add", "alcf", f"{HOSTS['other']}:{site.consumer_port}", *words)

    def kill() -> None:
        nonlocal killed
        while not ended.wait(random.uniform(0.5, 3)):
            replica = site.replicas[site.leader()]
            replica.stop(signal.SIGKILL)
            killed += 1
            time.sleep(random.uniform(0, 1))
            replica.start()

    with echo(HOSTS["app"]) as application, ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill)
        try:
            for n in range(8):
                uid = f"any-{n}"
                where = ("--producer", "aps", "--consumer", "alcf", "--prod-listeners", str(application.endpoint))
                found = user.json("--timeout", "60", "request", "--uid", uid, *where)
                (listener,) = found["consumer"]["listeners"]
                place = Endpoint.parse(listener)
                with socket.create_connection((place.host, place.port), 30) as stream:
                    stream.settimeout(30)
                    say(stream, b"open")
                    user.s2uc("--timeout", "60", "renew", uid)
                    exchange(stream, DATA)
                user.s2uc("--timeout", "60", "release", uid)
        finally:
            ended.set()
            killing.result()
    print(f"seen: {killed} kills while 8 sessions were opened, renewed and released")
    site.becomes("s1", "any-7", lambda found: found.state == "RELEASED")
    assert killed
    assert without_sessions(site.kept()) == without_sessions(kept)
    assert site.held() == held
