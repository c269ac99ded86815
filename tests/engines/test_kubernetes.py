"""Data servers as pods of a real cluster: two gateways, a user, and streams between them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from s2cs.s2ds.backends import BACKENDS
from s2cs.s2ds.kubernetes.trying import RIGHTS
from tests.support.cluster import IMAGE, NAMESPACE, NODE, Cluster, Gateway, User, cluster, eventually
from tests.support.containers import ROOT
from tests.support.tunnels import kill

_app_ports = count(7001)


@pytest.fixture(scope="module")
def kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with (
        FileLock(Path("/tmp/scistream-cluster.lock")),
        cluster(Path(f"/tmp/sci-kube-{os.getpid()}")) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def pair(kube: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Gateway]]:
    place = tmp_path_factory.mktemp("facilities")
    producer = Gateway(kube, place / "p", "producer", 5000, "20000-20099")
    consumer = Gateway(kube, place / "c", "consumer", 5010, "20000-20099")  # the same ports, on the same node
    for each in (producer, consumer):
        each.start()
    yield producer, consumer
    for each in (producer, consumer):
        each.stop(signal.SIGTERM)


@pytest.fixture(scope="module")
def user(kube: Cluster, pair: tuple[Gateway, Gateway], tmp_path_factory: pytest.TempPathFactory) -> User:
    known = User(kube, tmp_path_factory.mktemp("user"))
    for each in pair:
        known.knows(each.name, f"{NODE}:{each.port}", each.directory / "certs/ca.crt", each.directory / "token")
    return known


@pytest.fixture
def clean(kube: Cluster, user: User) -> Iterator[None]:
    """See that the cluster has in the end what it had."""
    before = kube.everything()
    yield
    eventually("nothing is left in the cluster", lambda: kube.everything() == before)


class Flow:
    """A session with a stream through it."""

    def __init__(self, user: User, program: subprocess.Popen[str], answer: Any) -> None:
        self.user, self.program, self.uid = user, program, answer["uid"]
        self.listeners = answer["consumer"]["listeners"]
        self.connect()

    def say(self, line: str) -> Any:
        assert self.program.stdin
        assert self.program.stdout
        self.program.stdin.write(f"{line}\n")
        self.program.stdin.flush()
        return json.loads(self.program.stdout.readline())

    def connect(self) -> None:
        assert self.say(f"connect {self.listeners[0]}") == "connected"
        self.goes_on()

    def goes_on(self) -> None:
        before = self.say("count")
        eventually("the stream goes on", lambda: self.say("count") > before + 10 * 65536)

    def ends_whole(self) -> None:
        report = self.say("end")
        assert report["equal"], report
        assert report["got"] == report["sent"] > 0

    def is_active(self) -> bool:
        return self.user.states(self.uid) == ["ACTIVE", "ACTIVE"]


@contextmanager
def streaming(user: User, *options: str, producer: str = "producer", backend: str = "nginx") -> Iterator[Flow]:
    """Open a session and send data through it; it is released in the end."""
    port = next(_app_ports)
    pipe = subprocess.PIPE
    program = user.cluster.popen("python3", str(ROOT / "tests/engines/stream.py"), str(port), stdin=pipe, stdout=pipe)
    request = ("request", "--json", "--producer", producer, "--consumer", "consumer", "--backend", backend)
    try:
        answer = json.loads(user.s2uc(*request, "--prod-listeners", f"127.0.0.1:{port}", *options).stdout)
        try:
            yield Flow(user, program, answer)
        finally:
            user.s2uc("release", answer["uid"], check=False)
    finally:
        program.kill()
        program.communicate()


def node_processes(kube: Cluster, pod: Any, word: bytes) -> list[int]:
    """The processes of a pod whose command has a word, as they are called outside of it."""
    group = Path(f"/proc/{kube.process(pod)}/cgroup").read_text()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (path / "cgroup").read_text() == group and word in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found


def test_the_account_may_what_it_needs_and_no_more(kube: Cluster, user: User) -> None:
    (secret,) = [each for each in kube.items("secrets") if each["metadata"]["name"].startswith("s2cs-token-")]
    account = f"system:serviceaccount:{NAMESPACE}:s2cs"
    assert secret["metadata"]["annotations"]["kubernetes.io/service-account.name"] == "s2cs"
    verbs = ("get", "list", "watch", "create", "update", "delete", "deletecollection")
    kinds = ("pods", "secrets", "pods/--subresource=exec", "pods/--subresource=log", "configmaps", "nodes", "roles")
    for namespace in (NAMESPACE, "default"):
        ask = ["kubectl", "auth", "can-i", "--as", account, "-n", namespace, "--quiet"]
        may = {(v, k) for k in kinds for v in verbs if not kube.run(*ask, v, *k.split("/"), check=False).returncode}
        needed = {(verb, kind) for kind, verbs in RIGHTS.items() for verb in verbs}
        assert may == (needed if namespace == NAMESPACE else set())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("clean")
def test_a_stream_through_two_pods(kube: Cluster, user: User, backend: str) -> None:
    with streaming(user, "--num-conn", "2", "--rate", "80Mb/s", backend=backend) as flow:
        pods = kube.pods(flow.uid)
        secrets = {each["metadata"]["name"]: each for each in kube.items("secrets")}
        assert len(pods) == 2
        for pod in pods:
            (reference,) = secrets[pod["metadata"]["name"]]["metadata"]["ownerReferences"]
            assert reference["uid"] == pod["metadata"]["uid"]
            container = pod["spec"]["containers"][0]
            assert container["resources"] == {"requests": {"cpu": "62m", "memory": "129Mi"}}
            status = dict(
                line.split(":\t", 1)
                for line in Path(f"/proc/{kube.process(pod)}/status").read_text().splitlines()
                if ":\t" in line
            )
            assert status["Uid"].split()[0] == "10001"
            assert {int(status[f"Cap{kind}"], 16) for kind in ("Prm", "Eff", "Bnd")} == {0}
        flow.goes_on()
        flow.ends_whole()


_UDP_ECHO = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as echo:
    echo.bind(("127.0.0.1", int(sys.argv[1])))
    while True:
        echo.sendto(*echo.recvfrom(65536))
"""
_UDP_ASK = """
import os, socket, sys
host, _, port = sys.argv[1].rpartition(":")
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flow:
    flow.settimeout(1)
    for length in (1, 1400, 9000, 60000):
        data, answer = os.urandom(length), b""
        for _ in range(10):  # what is lost is sent again
            flow.sendto(data, (host, int(port)))
            try:
                answer = flow.recv(65536)
            except TimeoutError:
                continue
            break
        assert answer == data, length
"""


@pytest.mark.usefixtures("clean")
def test_udp_through_two_pods(kube: Cluster, user: User, pair: tuple[Gateway, Gateway]) -> None:
    port = next(_app_ports)
    application = kube.popen("python3", "-c", _UDP_ECHO, str(port))
    request = ("request", "--json", "--producer", "producer", "--consumer", "consumer", "--protocol", "udp")
    try:
        listens = f"127.0.0.1:{port}"
        answer = json.loads(user.s2uc(*request, "--unencrypted", "--prod-listeners", listens).stdout)
        (listener,) = answer["consumer"]["listeners"]
        kube.run("python3", "-c", _UDP_ASK, listener)
        for each in pair:
            each.stop(signal.SIGKILL)
            each.start()
        for pod in kube.pods(answer["uid"]):
            kill(*node_processes(kube, pod, b"nginx: master"))
        eventually("the session is mended", lambda: user.states(answer["uid"]) == ["ACTIVE", "ACTIVE"])
        kube.run("python3", "-c", _UDP_ASK, listener)
        user.s2uc("release", answer["uid"])
    finally:
        application.kill()
        application.wait()


@pytest.mark.usefixtures("clean")
def test_killed_control_servers_take_their_pods_up_again(user: User, pair: tuple[Gateway, Gateway]) -> None:
    with streaming(user) as flow:
        for each in pair:
            each.stop(signal.SIGKILL)
            flow.goes_on()
            each.start()
        assert flow.is_active()
        flow.ends_whole()


@pytest.mark.usefixtures("clean")
def test_a_killed_proxy_is_mended_in_its_pod(kube: Cluster, user: User) -> None:
    with streaming(user) as flow:
        for pod in kube.pods(flow.uid):
            died = node_processes(kube, pod, b"nginx: master")
            assert died
            kill(*died)
        eventually("the session is mended", flow.is_active)
        flow.connect()
        flow.ends_whole()
        assert [pod["status"]["containerStatuses"][0]["restartCount"] for pod in kube.pods(flow.uid)] == [0, 0]


@pytest.mark.usefixtures("clean")
def test_a_container_that_dies_comes_back_on_its_ports(kube: Cluster, user: User) -> None:
    with streaming(user) as flow:
        for pod in kube.pods(flow.uid):
            os.kill(kube.process(pod), signal.SIGKILL)
        eventually(
            "the containers are back",
            lambda: all(pod["status"]["containerStatuses"][0].get("restartCount") for pod in kube.pods(flow.uid)),
        )
        eventually("the session is mended", flow.is_active)
        flow.connect()
        flow.ends_whole()


@pytest.mark.usefixtures("clean")
def test_a_data_server_that_is_not_heard_of_is_lost_and_comes_back(kube: Cluster, user: User) -> None:
    with streaming(user) as flow:
        frozen = [kube.process(pod) for pod in kube.pods(flow.uid)]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        eventually("it is lost", lambda: user.states(flow.uid) == ["RECOVERING", "RECOVERING"])
        flow.goes_on()
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
        eventually("it is back", flow.is_active)
        flow.ends_whole()


@pytest.mark.usefixtures("clean")
def test_a_pod_that_somebody_deletes_is_told(kube: Cluster, user: User) -> None:
    with streaming(user) as flow:
        for pod in kube.pods(flow.uid):
            kube.kubectl("-n", NAMESPACE, "delete", "pod", pod["metadata"]["name"], "--force", "--grace-period=0")
        eventually("it has failed", lambda: user.states(flow.uid) == ["FAILED", "FAILED"])
        assert "was deleted from the cluster" in user.s2uc("status", flow.uid).stdout


@pytest.mark.usefixtures("clean")
def test_what_no_session_knows_is_deleted_at_the_next_start(
    kube: Cluster, user: User, pair: tuple[Gateway, Gateway], tmp_path: Path
) -> None:
    with streaming(user) as flow:
        producer = pair[0]
        producer.stop(signal.SIGKILL)
        producer.start(SCISTREAM_SERVER__STATE_DIR=str(tmp_path / "empty"))
        eventually("its pod is gone", lambda: len(kube.pods(flow.uid)) == 1)
        producer.stop(signal.SIGTERM)
        producer.start()
        assert user.states(flow.uid)[0] == "FAILED"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"KUBERNETES__RATE_RESOURCE": "scistream.org/mbps"}, "no node of the cluster can take the session: 0/1 nodes"),
        ({"S2DS__IMAGE": "nobody/none:1"}, "image nobody/none:1 cannot be had on node node1"),
        ({"KUBERNETES__PRIORITY_CLASS": "none"}, "no PriorityClass with name none was found"),
        ({}, "the cluster's quota has no room for the session"),
    ],
)
@pytest.mark.usefixtures("clean")
def test_what_the_cluster_cannot_do_is_said_and_nothing_is_left(
    kube: Cluster, user: User, tmp_path: Path, fault: dict[str, str], said: str
) -> None:
    gateway = Gateway(kube, tmp_path / "g", "faulty", 5020, "21000-21099")
    gateway.start(**{f"SCISTREAM_{key}": value for key, value in fault.items()})
    user.knows("faulty", f"{NODE}:5020", gateway.directory / "certs/ca.crt", gateway.directory / "token")
    if not fault:
        kube.kubectl("-n", NAMESPACE, "create", "quota", "q", "--hard=pods=0")
    try:
        request = ("request", "--producer", "faulty", "--consumer", "consumer", "--rate", "80Mb/s")
        run = user.s2uc(*request, "--prod-listeners", "127.0.0.1:7000", check=False)
        assert run.returncode
        assert said in run.stderr
    finally:
        if not fault:
            kube.kubectl("-n", NAMESPACE, "delete", "quota", "q")
        user.s2uc("gateway", "remove", "faulty")
        gateway.stop(signal.SIGTERM)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"API": "https://10.99.0.1:1"}, "the Kubernetes API at https://10.99.0.1:1 does not answer"),
        ({"TOKEN_FILE": "nobody"}, "the cluster does not let S2CS do it: pods is forbidden"),
        ({"TOKEN_FILE": "stranger"}, "the Kubernetes API does not know the token"),
        ({"TOKEN_FILE": "none"}, "cannot be read: No such file"),
    ],
)
def test_a_gateway_that_may_not_or_cannot_ask_says_so(
    kube: Cluster, tmp_path: Path, fault: dict[str, str], said: str
) -> None:
    gateway = Gateway(kube, tmp_path / "g", "faulty", 5020, "21000-21099")
    (gateway.directory / "nobody").write_text("nobody-token")
    (gateway.directory / "stranger").write_text("x")
    gateway.environ.update({f"SCISTREAM_KUBERNETES__{key}": value for key, value in fault.items()})
    gateway.start()
    assert said in gateway.log
    run = gateway.check()
    assert run.returncode == 1
    lacking = "S2CS may not create pods, delete pods, list pods, watch pods, create secrets in namespace scistream"
    assert (lacking if fault.get("TOKEN_FILE") == "nobody" else said) in run.stdout + run.stderr


def test_a_good_gateway_is_found_good(pair: tuple[Gateway, Gateway]) -> None:
    run = pair[0].check()
    assert run.returncode == 0, run.stdout
    assert "the cluster takes pods of sessions in namespace scistream" in run.stdout


def test_s2cs_in_the_cluster_can_lose_its_pod(kube: Cluster, user: User, pair: tuple[Gateway, Gateway]) -> None:
    """Set it up as docs/operator/kubernetes.md says, on a copy of the base with settings and a volume for here."""
    before = kube.everything()
    base = user.directory / "overlay"
    certs = pair[0].directory / "certs"
    volume = user.directory / "volume"
    volume.mkdir()
    os.chown(volume, 10001, 10001)
    for path in (volume, *volume.parents):
        if (path.stat().st_uid == os.geteuid() and path.is_relative_to("/tmp/")) or path == volume:
            path.chmod(0o755)
    base.mkdir()
    tables = (ROOT / "deploy/kubernetes/base/s2cs.toml").read_text()
    tables = tables.replace("targets = []", 'targets = ["127.0.0.0/8"]').replace("peers = []", 'peers = ["0.0.0.0/0"]')
    tables = tables.replace("20000-20999", "22000-22099").replace('name = "gateway"', 'name = "inside"')
    assert f'image = "{IMAGE}"' in tables
    (base / "s2cs.toml").write_text(tables)
    for name in ("kustomization.yaml", "access.yaml", "gateway.yaml"):
        (base / name).write_text((ROOT / "deploy/kubernetes/base" / name).read_text())
    (base / "volume.yaml").write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": "s2cs"},
                "spec": {
                    "capacity": {"storage": "1Gi"},
                    "accessModes": ["ReadWriteOnce"],
                    "hostPath": {"path": str(volume)},
                    "persistentVolumeReclaimPolicy": "Retain",
                },
            }
        )
    )
    tls = ("--cert", str(certs / "server.crt"), "--key", str(certs / "server.key"))
    kube.kubectl("-n", NAMESPACE, "create", "secret", "tls", "s2cs-tls", *tls)
    try:
        kube.kubectl("apply", "-f", str(base / "volume.yaml"))
        kube.kubectl("apply", "--kustomize", str(base))
        kube.kubectl("-n", NAMESPACE, "rollout", "status", "deploy/s2cs", "--timeout=60s")
        inside = ("-n", NAMESPACE, "exec", "deploy/s2cs", "--", "s2cs")
        token = kube.kubectl(*inside, "user", "add", "alice").strip()
        (user.directory / "token").write_text(token)
        assert "the cluster takes pods" in kube.kubectl(*inside, "check")
        user.knows("inside", f"{NODE}:30500", certs / "ca.crt", user.directory / "token")
        with streaming(user, producer="inside") as flow:
            old = [pod["metadata"]["name"] for pod in kube.items("pods", "-l", "app.kubernetes.io/name=scistream-s2cs")]
            kube.kubectl("-n", NAMESPACE, "delete", "pod", *old, "--force", "--grace-period=0")
            flow.goes_on()
            kube.kubectl("-n", NAMESPACE, "rollout", "status", "deploy/s2cs", "--timeout=60s")
            eventually("the next one has the session", flow.is_active)
            flow.goes_on()
            flow.ends_whole()
        eventually("the session's pods are gone", lambda: not kube.pods(flow.uid))
    finally:
        kube.kubectl("delete", "--kustomize", str(base), check=False)
        kube.kubectl("delete", "-f", str(base / "volume.yaml"), check=False)
        kube.kubectl("-n", NAMESPACE, "delete", "secret", "s2cs-tls", check=False)
        kube.kubectl("apply", "-n", NAMESPACE, "-f", str(ROOT / "deploy/kubernetes/base/access.yaml"))
    eventually("nothing is left", lambda: len(kube.everything()) == len(before))
