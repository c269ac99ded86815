"""What may befall a gateway whose proxies are containers: by the engine, by its operator, by other users of it."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from s2cs.s2ds.engine import NoSuch
from s2cs.s2ds.launchers.container import SURVEY, named_for
from scistream.proto import scistream_pb2 as pb
from scistream.wire import grpc
from tests.support.containers import IMAGE, Daemon, copy, daemon, eventually, settings
from tests.support.gateways import GatewayProcess, gateway
from tests.support.sessions import Echo, Opened, echo, exchange, open_pair
from tests.support.streams import Stream, goes_on
from tests.support.tunnels import kill

Pair = tuple[GatewayProcess, GatewayProcess]
KEEP = {"SCISTREAM_SERVER__ON_SHUTDOWN": "keep"}


@pytest.fixture(scope="module")
def pair(docker: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    place, environ = tmp_path_factory.mktemp("facilities"), {**settings(docker), **KEEP}
    with gateway(place / "p", **environ) as producer, gateway(place / "c", **environ) as consumer:
        yield producer, consumer


@pytest.fixture(scope="module")
def app() -> Iterator[Echo]:
    with echo() as running:
        yield running


@contextmanager
def session(docker: Daemon, pair: Pair, app: Echo) -> Iterator[tuple[Opened, Stream]]:
    """A session with a stream through it; nothing of it is left in the end."""
    before = docker.all()
    with pair[0].client() as p, pair[1].client() as c:
        opened = open_pair(p, c, [str(app.endpoint)], 2)
        stream = Stream(opened.connect())
        stream.start()
        goes_on(stream)
    try:
        yield opened, stream
    finally:
        release(pair, opened.uid)
    eventually(lambda: docker.all() == before)
    assert [running.leftovers() for running in pair] == [{}, {}]


def release(pair: Pair, uid: str) -> None:
    for running in pair:
        with running.client() as client:
            client.release(pb.Release(uid=uid))  # type: ignore[operator]


def ended(stream: Stream) -> None:
    stream.ending.set()
    stream.join(60)
    assert stream.fault is None


def carries(opened: Opened) -> None:
    with opened.connect(1) as connection:
        exchange(connection, os.urandom(1_000_000))


def test_an_engine_that_is_killed_and_started_again(docker: Daemon, pair: Pair, app: Echo) -> None:
    """With live-restore the stream goes on, also through a restart of the gateways while the engine is dead."""
    docker.stop()
    docker.start("--live-restore")
    with session(docker, pair, app) as (opened, stream):
        docker.stop(signal.SIGKILL)
        goes_on(stream)
        pair[0].stop(signal.SIGKILL)
        docker.start("--live-restore")
        pair[0].start()
        goes_on(stream)
        ended(stream)
        carries(opened)


def test_an_engine_whose_socket_is_gone(docker: Daemon, pair: Pair, app: Echo) -> None:
    """Streams go on; what dies meanwhile comes back with the socket."""
    elsewhere = docker.socket.with_suffix(".away")
    with session(docker, pair, app) as (opened, stream):
        docker.socket.rename(elsewhere)
        try:
            goes_on(stream)
            ended(stream)
            kill(next(each.pid for each in pair[0].proxies()))
        finally:
            elsewhere.rename(docker.socket)
        carries(opened)


def test_an_image_that_is_removed_and_made_again(docker: Daemon, pair: Pair, app: Echo, tmp_path: Path) -> None:
    before = docker.all()
    passing = "scistream-passing"

    def build(label: str) -> None:
        build = ["docker", "--host", f"unix://{docker.socket}", "build", "--quiet", "--tag", passing, "-"]
        subprocess.run(build, input=f"FROM {IMAGE}\nLABEL made={label}\n", text=True, check=True, capture_output=True)

    build("first")
    with gateway(tmp_path / "g", **settings(docker, IMAGE=passing)) as producer, pair[1].client() as c:
        docker.docker("rmi", passing)
        with producer.client() as p:
            uid = "00000000-0000-0000-0000-00000000dead"
            with pytest.raises(grpc.RpcError) as refused:
                open_pair(p, c, [str(app.endpoint)], uid=uid)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "o such image" in refused.value.details()
            for client in (p, c):
                client.release(pb.Release(uid=uid))  # type: ignore[operator]
            with pytest.raises(grpc.RpcError) as refused:
                open_pair(p, c, [str(app.endpoint)])
            assert f"image {passing} is not there; build it" in refused.value.details()
            build("second")
            opened = open_pair(p, c, [str(app.endpoint)], 2)
            carries(opened)
            opened.release()
        assert producer.leftovers() == {}
    docker.docker("rmi", passing)
    assert docker.all() == before


def test_containers_that_are_removed_by_hand(docker: Daemon, pair: Pair, app: Echo) -> None:
    with session(docker, pair, app) as (opened, stream):
        for each in docker.of(opened.uid):
            docker.docker("rm", "--force", each["Id"])
        stream.join(60)
        assert stream.fault is not None
        eventually(lambda: len(docker.of(opened.uid)) == 2)
        carries(opened)


def test_what_looks_like_ours_and_is_not_lives_on(docker: Daemon, pair: Pair, app: Echo) -> None:
    """Labels of a real container on somebody else's, and a name as ours without them."""
    run = ("run", "--detach", "--network", "host", "--no-healthcheck", "--entrypoint", "sleep")
    with session(docker, pair, app) as (opened, stream):
        (real, _) = docker.of(opened.uid)
        labels = [word for name, value in real["Config"]["Labels"].items() for word in ("--label", f"{name}={value}")]
        directory = real["Config"]["Labels"]["org.scistream.directory"]
        names = {"somebody": labels, f"{named_for(Path(directory))}-{opened.uid}-PROD": []}
        try:
            for name, more in names.items():
                docker.docker(*run, "--name", name, *more, IMAGE, "600")
            for running in pair:
                running.stop(signal.SIGKILL)
                running.start()
            goes_on(stream)
            ended(stream)
            carries(opened)
            release(pair, opened.uid)
            for running in pair:  # and when there is no session
                running.stop()
                running.start()
            for name in names:
                assert docker.engine.ask("GET", f"containers/{name}/json")["State"]["Running"]
        finally:
            docker.docker("rm", "--force", *names)


def test_what_was_left_by_servers_that_were_killed_half_way(docker: Daemon, pair: Pair, tmp_path: Path) -> None:
    """A container that got no sockets goes with the next start, and none of another data server; a survey by age."""
    place = str(pair[0].tunnels)
    ours, another, survey = f"{named_for(Path(place))}-x-handle-0000", "scistream-00000000-x-handle-0000", "old-survey"
    before = docker.all()
    for name, label in ((ours, place), (another, "/elsewhere")):
        docker.docker("create", "--name", name, "--label", f"org.scistream.directory={label}", IMAGE)
    docker.docker("create", "--name", survey, "--label", f"{SURVEY}=x", IMAGE)
    try:
        pair[0].stop(signal.SIGKILL)
        pair[0].start()
        left = {name.strip("/") for name in docker.all()["containers"]} - {
            name.strip("/") for name in before["containers"]
        }
        assert left == {another, survey}
        docker.engine.prune(SURVEY, 0)
    finally:
        for name in (ours, another):
            with suppress(NoSuch):
                docker.engine.ask("DELETE", f"containers/{name}", force="1")
    assert docker.all() == before


def test_an_engine_whose_disk_is_full(docker: Daemon, app: Echo, tmp_path: Path) -> None:
    with ExitStack() as stack:
        small = stack.enter_context(daemon("dockerd", 2**30))
        copy(docker, small)
        before = small.all()
        pair = [stack.enter_context(gateway(tmp_path / name, **settings(small))) for name in "pc"]
        with pair[0].client() as p, pair[1].client() as c:
            filling = small.root / "filling"
            uid = str(uuid.uuid4())
            with suppress(OSError), filling.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(2**20))
            with pytest.raises(grpc.RpcError) as refused:
                open_pair(p, c, [str(app.endpoint)], uid=uid)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "no space left on device" in refused.value.details()
            for client in (p, c):
                client.release(pb.Release(uid=uid))  # type: ignore[operator]
            assert small.all() == before
            filling.unlink()
            opened = open_pair(p, c, [str(app.endpoint)], 2)
            carries(opened)
            opened.release()
        assert [running.leftovers() for running in pair] == [{}, {}]
        assert small.all() == before
