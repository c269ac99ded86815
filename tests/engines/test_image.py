"""The image on a real engine: the facilities of compose.yaml, and gateways whose proxies are in further containers."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scistream.proto import scistream_pb2 as pb
from scistream.wire import grpc
from tests.support.containers import IMAGE, ROOT, Daemon, eventually
from tests.support.gateways import Client, gateway
from tests.support.ports import BLOCK, port_block
from tests.support.sessions import echo, exchange, open_pair
from tests.support.streams import Stream, goes_on

FILE = ROOT / "deploy/docker/compose.yaml"
FACILITIES = {"producer": "127.0.1.1:5000", "consumer": "127.0.2.1:5010"}


@dataclass
class Compose:
    """The project of compose.yaml on an engine."""

    docker: Daemon
    command: list[str]

    def run(self, *words: str) -> str:
        """Do what an operator does; what was said."""
        environment = os.environ | {"DOCKER_HOST": f"unix://{self.docker.socket}"}
        command = [*self.command, "--file", str(FILE), "--project-name", "facilities", *words]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout + run.stderr

    def container(self, service: str) -> Any:
        """A service's container, as the engine describes it."""
        return self.docker.engine.ask("GET", f"containers/{self.run('ps', '-q', service).strip()}/json")

    def inside(self, service: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run something in a service's container."""
        words = ["docker", "--host", f"unix://{self.docker.socket}", "exec", self.container(service)["Id"], *command]
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)

    def healthy(self, *services: str) -> bool:
        """Tell whether these are, by their image's own check."""
        return all(self.container(each)["State"]["Health"]["Status"] == "healthy" for each in services)

    @contextmanager
    def client(self, service: str) -> Iterator[Client]:
        """Speak with a facility's gateway as its admin."""
        ca, token = (self.inside(service, "cat", f"{service}/{name}").stdout for name in ("certs/ca.crt", "token"))
        with grpc.secure_channel(FACILITIES[service], grpc.ssl_channel_credentials(ca.encode())) as channel:
            yield Client(channel, token.strip())


@pytest.fixture(scope="module")
def compose(docker: Daemon) -> Iterator[Compose]:
    """The two facilities, which are up; they leave nothing behind."""
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0:
        command = ["docker", "compose"]
    elif shutil.which("docker-compose"):
        command = ["docker-compose"]
    else:
        pytest.skip("there is neither docker compose nor docker-compose here")
    before = docker.all()
    made = Compose(docker, command)
    try:
        made.run("up", "--detach", *FACILITIES)
        eventually(lambda: made.healthy(*FACILITIES))
        yield made
    finally:
        made.run("down", "--volumes")
    assert docker.all() == before


def test_the_image_needs_no_rights(compose: Compose) -> None:
    for service in FACILITIES:
        found = compose.container(service)
        host = found["HostConfig"]
        assert (found["Config"]["User"], host["ReadonlyRootfs"], host["Privileged"]) == ("scistream", True, False)
        assert (host["CapDrop"], host["CapAdd"] or []) == (["ALL"], [])
        assert compose.inside(service, "python3", "-c", "import s2cs.replicas.etcd").returncode == 0  # the extra, too
        assert compose.inside(service, "id", "-u").stdout.strip() == "10001"
        for place in ("/", "/usr/bin", "/opt/scistream", "/etc"):
            refused = compose.inside(service, "sh", "-c", f"echo >{place}/written").stderr
            assert "Read-only file system" in refused or "Permission denied" in refused, refused
        root = compose.docker.docker("exec", "--user", "0", found["Id"], "sh", "-c", "echo >/written || echo refused")
        assert root.strip() == "refused"
        status = compose.inside(service, "cat", "/proc/1/status").stdout
        assert "NoNewPrivs:\t1" in status
        assert "CapEff:\t0000000000000000" in status


def test_a_gateway_that_does_not_serve_is_not_healthy(compose: Compose) -> None:
    """The image's own check, run by hand: as it is, and where nobody answers."""
    container = compose.container("producer")
    check = container["Config"]["Healthcheck"]["Test"]
    assert check[0] == "CMD"
    assert compose.inside("producer", *check[1:]).returncode == 0
    assert compose.inside("producer", "env", "HEALTH=http://127.0.0.1:9/healthz", *check[1:]).returncode != 0


def test_a_stream_between_the_two(compose: Compose) -> None:
    assert "209715200 bytes came, equal to what was sent" in compose.run("run", "--rm", "stream")


@pytest.mark.parametrize("by", ["restart", "kill"])
def test_a_gateway_comes_back_with_its_sessions(compose: Compose, by: str) -> None:
    """Its proxies end with the container; the session, its key and its ports are there again in the next."""
    with ExitStack() as stack:
        app = stack.enter_context(echo())
        p, c = (stack.enter_context(compose.client(each)) for each in FACILITIES)
        opened = open_pair(p, c, [str(app.endpoint)], 1)
        stream = Stream(opened.connect())
        stream.start()
        goes_on(stream)
        compose.run(by, "producer")
        stream.join(60)
        assert stream.fault is not None
        if by == "kill":
            compose.run("start", "producer")
        eventually(lambda: compose.healthy("producer"))
        eventually(lambda: state(p, opened.uid) == "ACTIVE")
        with opened.connect() as connection:
            exchange(connection, os.urandom(10_000_000))
        opened.release()


def state(client: Client, uid: str) -> str:
    (found,) = [each for each in client.list(pb.ListRequest(), timeout=30).sessions if each.uid == uid]  # type: ignore[operator]
    return str(found.state)


@dataclass
class Contained:
    """A gateway in a container that uses the engine which it runs in."""

    docker: Daemon
    name: str
    place: Path
    port: int

    def run(self, command: list[str], *options: str) -> str:
        """Run a command of the image as its user on the host's network, with no right and nothing to write to."""
        least = ("--network", "host", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
        state = ("--volume", f"{self.place}/state:/var/lib/scistream")
        return self.docker.docker("run", *least, *state, *options, IMAGE, *command)

    def serve(self, *options: str) -> None:
        """Make it serve as docs/operator/docker.md says."""
        socket, keys = self.docker.socket, f"{self.place}/keys"
        settings = {"S2DS__LAUNCHER": "docker", "S2DS__ENGINE": socket, "SERVER__RUNTIME_DIR": keys}
        environment = [word for name, value in settings.items() for word in ("--env", f"SCISTREAM_{name}={value}")]
        group = ("--group-add", str(socket.stat().st_gid), "--volume", f"{socket}:{socket}")
        config = "/var/lib/scistream/g/s2cs.toml"
        shared = (*group, "--volume", f"{keys}:{keys}", "--no-healthcheck", *environment)
        self.run(["serve", "--config", config], "--detach", "--name", self.name, *shared, *options)

    @contextmanager
    def client(self) -> Iterator[Client]:
        """Speak with it as its admin."""
        own = self.place / "state/g"
        credentials = grpc.ssl_channel_credentials((own / "certs/ca.crt").read_bytes())
        with grpc.secure_channel(f"127.0.0.1:{self.port}", credentials) as channel:
            grpc.channel_ready_future(channel).result(60)
            yield Client(channel, (own / "token").read_text().strip())


@contextmanager
def contained(docker: Daemon, place: Path, name: str) -> Iterator[Contained]:
    """Make a gateway for a container, and remove that at the end."""
    for path in (place, place / "state", place / "keys"):
        path.mkdir()
        os.chown(path, 10001, 10001)
    made = Contained(docker, name, place, port_block())
    ports = f"{made.port + 1}-{made.port + BLOCK - 1}"
    init = ["init", "/var/lib/scistream/g", "--name", name, "--port", str(made.port), "--port-range", ports]
    made.run([*init, "--metrics-port", "0"], "--rm")
    try:
        yield made
    finally:
        docker.docker("rm", "--force", name)


def test_streams_outlive_the_containers_of_gateways_whose_proxies_are_in_others(docker: Daemon, tmp_path: Path) -> None:
    reachable(tmp_path)
    before = docker.all()
    with ExitStack() as stack:
        app = stack.enter_context(echo())
        pair = [stack.enter_context(contained(docker, tmp_path / name, f"gateway-{name}")) for name in "pc"]
        for each in pair:
            each.serve("--pid", "host")
        with pair[0].client() as p, pair[1].client() as c:
            opened = open_pair(p, c, [str(app.endpoint)], 2)
            stream = Stream(opened.connect())
            stream.start()
            goes_on(stream)
        containers = docker.of(opened.uid)
        assert len(containers) == 2
        docker.docker("restart", pair[0].name)
        goes_on(stream)
        docker.docker("kill", pair[1].name)
        goes_on(stream)
        docker.docker("rm", pair[1].name)
        pair[1].serve("--pid", "host")
        with pair[0].client() as p, pair[1].client() as c:
            assert [state(each, opened.uid) for each in (p, c)] == ["ACTIVE", "ACTIVE"]
            goes_on(stream)
            assert [each["Id"] for each in docker.of(opened.uid)] == [each["Id"] for each in containers]
            stream.ending.set()
            stream.join(60)
            assert stream.fault is None
            for each in containers:
                docker.docker("rm", "--force", each["Id"])
            eventually(lambda: len(docker.of(opened.uid)) == 2)
            with opened.connect(1) as connection:
                exchange(connection, os.urandom(1_000_000))
            for client in (p, c):
                client.release(pb.Release(uid=opened.uid))  # type: ignore[operator]
        assert [path for each in pair for path in (each.place / "keys").rglob("*") if path.name != "lock"] == []
    assert docker.all() == before


def test_a_gateway_that_does_not_see_its_proxies_says_what_to_do(docker: Daemon, tmp_path: Path) -> None:
    reachable(tmp_path)
    before = docker.all()
    with contained(docker, tmp_path / "g", "gateway-blind") as blind, gateway(tmp_path / "other") as other:
        blind.serve()
        with blind.client() as p, other.client() as c, pytest.raises(grpc.RpcError) as refused:
            open_pair(p, c, ["127.0.0.1:9"])
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "run s2cs on the host, or with --pid=host" in refused.value.details()
    assert docker.all() == before


def reachable(path: Path) -> None:
    """Let another user pass."""
    for each in (path, *path.parents[:3]):
        each.chmod(each.stat().st_mode | 0o011)
