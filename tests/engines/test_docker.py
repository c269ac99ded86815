"""The launcher `docker` on real engines: sessions of two gateways, each of whose proxies is a container."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from s2cs.s2ds.backends import BACKENDS
from s2cs.s2ds.config import Limits
from s2cs.s2ds.confinement import Confinement
from s2cs.s2ds.contract import TunnelState
from s2cs.s2ds.launchers.base import Job
from s2cs.s2ds.launchers.docker import DockerLauncher
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Role
from tests.support.containers import Daemon, copy, daemon, eventually, settings
from tests.support.gateways import GatewayProcess, gateway
from tests.support.ports import ports
from tests.support.sessions import Echo, Opened, echo, exchange, open_pair
from tests.support.streams import Stream, goes_on
from tests.support.tunnels import Flavour, Session, answering, application, calling, config, local

MEMORY = 64 * 2**20
KEEP = {"SCISTREAM_SERVER__ON_SHUTDOWN": "keep"}


@pytest.fixture(scope="module")
def pair(docker: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GatewayProcess, GatewayProcess]]:
    limits = settings(docker, MEMORY_BYTES=str(MEMORY), TASKS="64", CPU_WEIGHT="50")
    place = tmp_path_factory.mktemp("facilities")
    with gateway(place / "p", **limits, **KEEP) as producer, gateway(place / "c", **limits, **KEEP) as consumer:
        yield producer, consumer


@pytest.fixture(scope="module")
def app() -> Iterator[Echo]:
    with echo() as running:
        yield running


@pytest.fixture
def flow(
    request: pytest.FixtureRequest, docker: Daemon, pair: tuple[GatewayProcess, GatewayProcess], app: Echo
) -> Iterator[tuple[Opened, Stream]]:
    """A session with a stream through it, which comes through whole, and leaves the engine as it was."""
    before = docker.all()
    backend = getattr(request, "param", "nginx")
    with ExitStack() as stack:
        p, c = (stack.enter_context(each.client()) for each in pair)
        opened = open_pair(p, c, [str(app.endpoint)], 2, (backend, backend))
        stream = Stream(opened.connect())
        stream.start()
        goes_on(stream)
        yield opened, stream
        goes_on(stream)
        stream.ending.set()
        stream.join(60)
        assert stream.fault is None
        opened.release()
    assert [running.leftovers() for running in pair] == [{}, {}]
    assert docker.all() == before


def states(running: GatewayProcess) -> dict[str, str]:
    with running.client() as client:
        return {s.uid: s.state for s in client.list(pb.ListRequest(), timeout=30).sessions}


def recovers(docker: Daemon, opened: Opened, died: list[Any]) -> None:
    """See that a session has other containers than those that died, and carries data."""
    ids = {each["Id"] for each in died}

    def both() -> bool:
        now = docker.of(opened.uid)
        return len(now) == 2 and not ids & {each["Id"] for each in now} and all(c["State"]["Running"] for c in now)

    eventually(both)
    with opened.connect(1) as connection:
        exchange(connection, os.urandom(100_000))


@pytest.mark.parametrize("flow", BACKENDS, indirect=True)
def test_a_container_for_each_data_server(docker: Daemon, flow: tuple[Opened, Stream]) -> None:
    found = docker.of(flow[0].uid)
    assert len(found) == 2
    for each in found:
        host, labels = each["HostConfig"], each["Config"]["Labels"]
        assert labels["org.scistream.session"] == flow[0].uid
        assert (host["Memory"], host["MemorySwap"], host["PidsLimit"], host["CpuShares"]) == (MEMORY, MEMORY, 64, 512)
        assert host["CapDrop"] == ["ALL"]
        assert host["ReadonlyRootfs"]
        assert not host["Privileged"]
        assert "no-new-privileges" in host["SecurityOpt"]
        assert host["NetworkMode"] == "host"
        (own,) = {m["Destination"] for m in each["Mounts"] if not m["RW"]}
        assert {m["Destination"] for m in each["Mounts"] if m["RW"]} == {f"{own}/run"}
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{each['State']['Pid']}/status").read_text().splitlines()
        )
        assert status["Uid"].split()[0] != "0"
        assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
        assert status["NoNewPrivs"] == "1"
        limits = Path(f"/proc/{each['State']['Pid']}/limits").read_text()
        assert "Max core file size        1 " in limits


@pytest.mark.parametrize("flow", BACKENDS, indirect=True)
def test_killed_control_servers_find_their_containers_again(
    docker: Daemon, flow: tuple[Opened, Stream], pair: tuple[GatewayProcess, GatewayProcess]
) -> None:
    before = docker.of(flow[0].uid)
    for running in pair:
        running.stop(signal.SIGKILL)
        running.start()
        assert states(running)[flow[0].uid] == "ACTIVE"
    goes_on(flow[1])
    assert [each["Id"] for each in docker.of(flow[0].uid)] == [each["Id"] for each in before]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("by", ["the kernel", "docker"])
def test_a_container_that_dies_is_replaced_on_its_sockets(
    docker: Daemon, pair: tuple[GatewayProcess, GatewayProcess], app: Echo, backend: str, by: str
) -> None:
    before = docker.all()
    with pair[0].client() as p, pair[1].client() as c:
        opened = open_pair(p, c, [str(app.endpoint)], 2, (backend, backend))
        died = docker.of(opened.uid)
        for each in died:
            if by == "docker":
                docker.docker("kill", each["Id"])
            else:
                os.kill(each["State"]["Pid"], signal.SIGKILL)
        recovers(docker, opened, died)
        assert "was ended by SIGKILL" in pair[0].log
        opened.release()
    assert docker.all() == before


def test_streams_go_on_while_a_daemon_with_live_restore_is_restarted(
    docker: Daemon, pair: tuple[GatewayProcess, GatewayProcess], app: Echo
) -> None:
    docker.stop()
    docker.start("--live-restore")
    before = docker.all()
    with pair[0].client() as p, pair[1].client() as c:
        opened = open_pair(p, c, [str(app.endpoint)], 1)
        stream = Stream(opened.connect())
        stream.start()
        goes_on(stream)
        docker.stop()
        goes_on(stream)
        pair[1].stop(signal.SIGKILL)
        docker.start("--live-restore")
        pair[1].start()
        goes_on(stream)
        stream.ending.set()
        stream.join(60)
        assert stream.fault is None
    with pair[0].client() as p, pair[1].client() as c:
        for each in (p, c):
            each.release(pb.Release(uid=opened.uid))
    assert docker.all() == before


def test_a_daemon_without_it_takes_the_containers_along_and_they_come_back(
    docker: Daemon, pair: tuple[GatewayProcess, GatewayProcess], app: Echo
) -> None:
    docker.stop()
    docker.start()
    before = docker.all()
    with pair[0].client() as p, pair[1].client() as c:
        opened = open_pair(p, c, [str(app.endpoint)], 2)
        died = docker.of(opened.uid)
        docker.stop()
        docker.start()
        recovers(docker, opened, died)
        opened.release()
    assert docker.all() == before


def test_what_is_released_while_the_engine_is_away_goes_when_it_is_back(
    docker: Daemon, pair: tuple[GatewayProcess, GatewayProcess], app: Echo
) -> None:
    docker.stop()
    docker.start("--live-restore")
    before = docker.all()
    with pair[0].client() as p, pair[1].client() as c:
        opened = open_pair(p, c, [str(app.endpoint)], 1)
        docker.stop()
        opened.release()
        assert [running.leftovers() for running in pair] == [{}, {}]
    docker.start("--live-restore")
    eventually(lambda: docker.all() == before)


async def test_too_little_memory_is_said(docker: Daemon, tmp_path: Path) -> None:
    before = docker.all()
    (tmp_path / "run").mkdir()
    tmp_path.chmod(0o755)
    greedy = ("/usr/bin/python3", "-c", "bytearray(100_000_000)")
    nobody = Confinement("nobody", 65534, 65534, switches=True)
    job = Job(greedy, tmp_path, nobody, limits=Limits(memory_bytes=16 * 2**20))
    process = await DockerLauncher(docker.containers).launch(job)
    assert await process.wait(30)
    assert process.ended == ("was ended for want of memory: it needed more than [s2ds] memory_bytes = 16777216")
    assert docker.all() == before


def s2cs(verb: str, directory: Path, environ: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "s2cs", verb, "--config", str(directory / "s2cs.toml"), *options]
    return subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"IMAGE": "nobody/none:1"}, "image nobody/none:1 is not there; build it"),
        ({"ENGINE": "/none"}, "/none does not"),
    ],
)
def test_what_is_not_there_is_said_with_its_mend(
    docker: Daemon, tmp_path: Path, fault: dict[str, str], said: str
) -> None:
    with gateway(tmp_path / "h") as stopped:
        pass
    for verb in ("check", "serve"):
        run = s2cs(verb, stopped.directory, settings(docker, **fault))
        assert run.returncode == 1
        assert said in run.stdout + run.stderr


def test_the_doctor_looks_at_the_image(docker: Daemon, tmp_path: Path) -> None:
    with gateway(tmp_path / "g") as stopped:
        pass
    said = s2cs("doctor", stopped.directory, settings(docker), "--all").stdout
    assert said.count(f" of image {docker.containers.image})") == len(BACKENDS)
    said = s2cs("doctor", stopped.directory, settings(docker, IMAGE="none:1")).stdout
    assert "FAULT  launcher: docker: image none:1 is not there" in said
    assert "build it: docker build" in said
    assert "apt-get install nginx" not in said


def test_an_image_without_proxies_is_told(docker: Daemon, tmp_path: Path) -> None:
    with gateway(tmp_path / "g") as stopped:
        pass
    run = s2cs("check", stopped.directory, settings(docker, IMAGE="scistream-base"))
    assert run.returncode == 1
    assert "image scistream-base does not say which proxies it has" in run.stdout


@pytest.mark.parametrize("backend", BACKENDS)
async def test_podman_does_as_well(docker: Daemon, tmp_path: Path, backend: str) -> None:
    with daemon("podman") as podman, ports(10) as range_:
        copy(docker, podman)
        before = podman.all()
        chosen = config(tmp_path, range_, Flavour(backend, backend), launcher="docker", containers=podman.containers)
        session = Session()
        spec = session.spec(Role.PROD, 2)
        async with application(answering(b"app")) as target:
            first = local(chosen)
            server = await first.__aenter__()
            reserved = await server.reserve(spec)
            await server.start(spec.id, session.bridge(reserved, Role.PROD, target))
            async with calling(reserved.listeners[0], session) as caller:
                assert await caller.ask(b"one") == b"app one"
                server.let_go()
                async with local(chosen) as again:
                    assert await caller.ask(b"two") == b"app two"
                    (status,) = await again.list()
                    assert status.state is TunnelState.RUNNING
                    os.kill(status.pids[0], signal.SIGKILL)
                    async with calling(reserved.listeners[1], session) as other:
                        assert await other.ask(b"three") == b"app three"
                    (status,) = await again.list()
                    assert status.reason.startswith(f"{backend} was ended by SIGKILL")
                    await again.stop(spec.id)
                    assert podman.all() == before
