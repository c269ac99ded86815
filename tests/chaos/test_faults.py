"""A gateway that runs out of things: it says so in one sentence, what runs goes on, and it recovers by itself."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from scistream.proto import scistream_pb2 as pb
from scistream.wire import grpc
from tests.support.gateways import Client, GatewayProcess, gateway, restarted
from tests.support.sessions import Opened, echo, exchange, open_pair

Code = grpc.StatusCode


def refused(code: Code, client: Client, says: str, num_conn: int = 1) -> None:
    request = pb.Request(uid=str(uuid.uuid4()), role="PROD", num_conn=num_conn, immediate=True)
    with pytest.raises(grpc.RpcError) as caught:
        client.req(request)
    assert caught.value.code() is code, caught.value.details()
    assert says in caught.value.details()
    assert "\n" not in caught.value.details()


def accepted(client: Client, num_conn: int = 1) -> None:
    uid = str(uuid.uuid4())
    client.req(pb.Request(uid=uid, role="PROD", num_conn=num_conn, immediate=True))
    client.release(pb.Release(uid=uid))


def accepted_again(client: Client) -> None:
    """The audit log looks every second whether it can be written again; until then no session begins."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return accepted(client)
        except grpc.RpcError as error:
            assert "its audit log cannot be written" in error.details()
            assert time.monotonic() < deadline
            time.sleep(0.2)


@contextmanager
def running_stream(directory: Path) -> Iterator[tuple[GatewayProcess, Client, Opened]]:
    """Two gateways with a stream; what happens to the producer's must not be seen in it."""
    with (
        echo() as app,
        gateway(directory / "c") as consumer,
        gateway(directory / "p") as producer,
        producer.client() as p,
        consumer.client() as c,
    ):
        session = open_pair(p, c, [str(app.endpoint)], 2, ("nginx", "nginx"))
        with session.connect() as stream:
            stream.sendall(b"before")
            assert stream.recv(6, socket.MSG_WAITALL) == b"before"
            yield producer, p, session
            exchange(stream, os.urandom(1 << 20))
        session.release()
        assert producer.leftovers() == {}


@contextmanager
def small_state_disk(directory: Path) -> Iterator[Path]:
    """Mount 4 MB where the producer's gateway will have its state."""
    if os.geteuid():
        pytest.skip("only root mounts a small disk")
    state = directory / "p" / "state"
    state.mkdir(parents=True, mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "tmpfs", str(state)], check=True)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SCISTREAM_SERVER__RUNTIME_DIR", "state/tunnels")
            patch.setenv("SCISTREAM_S2DS__USER", "root")  # who can reach it there
            yield state
    finally:
        subprocess.run(["umount", "-l", str(state)], check=True)


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    waste = disk / "waste"
    with waste.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    assert not shutil.disk_usage(disk).free
    yield
    waste.unlink()


def test_a_full_disk(tmp_path: Path) -> None:
    with small_state_disk(tmp_path) as disk, running_stream(tmp_path) as (_, client, session):
        client.req(pb.Request(uid="other", role="PROD", num_conn=1, immediate=True))
        with filled(disk):
            refused(Code.RESOURCE_EXHAUSTED, client, "make")
            with session.connect(1) as connection:
                exchange(connection, b"a new stream of an old session")
            assert client.release(pb.Release(uid="other")).state == "RELEASED"
            assert [s.state for s in client.list(pb.ListRequest()).sessions] == ["ACTIVE", "RELEASED"]
        accepted_again(client)


def test_a_read_only_disk(tmp_path: Path) -> None:
    with small_state_disk(tmp_path) as disk, running_stream(tmp_path) as (_, client, session):
        # The kernel makes no disk read-only while files are open for writing; for new ones this is the same.
        tunnels = disk / "tunnels"
        subprocess.run(["mount", "--bind", str(tunnels), str(tunnels)], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(tunnels)], check=True)
        try:
            refused(Code.RESOURCE_EXHAUSTED, client, "Read-only file system")
            with session.connect(1) as connection:
                exchange(connection, b"a new stream of an old session")
        finally:
            subprocess.run(["umount", "-l", str(tunnels)], check=True)
        accepted(client)


def test_no_descriptors_left(tmp_path: Path) -> None:
    with running_stream(tmp_path) as (producer, client, _):
        pid = producer.process.pid
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 40, hard))
        refused(Code.RESOURCE_EXHAUSTED, client, "LimitNOFILE")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        accepted(client)


def test_a_taken_port_range(tmp_path: Path) -> None:
    with running_stream(tmp_path) as (producer, client, _), ExitStack() as others:
        for port in range(producer.first_port + 1, producer.first_port + producer.ports):
            try:
                others.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue  # the session's own
        refused(Code.RESOURCE_EXHAUSTED, client, "free")
        others.close()
        accepted(client)


def test_the_store_is_truncated_under_it(tmp_path: Path) -> None:
    """What runs goes on; the next start refuses the file, keeps it, and says what to do."""
    keep = {"SCISTREAM_SERVER__ON_SHUTDOWN": "keep"}
    with (
        echo() as app,
        gateway(tmp_path / "c") as consumer,
        gateway(tmp_path / "p", **keep) as producer,
        producer.client() as p,
        consumer.client() as c,
    ):
        session = open_pair(p, c, [str(app.endpoint)], 1, ("nginx", "nginx"))
        with session.connect() as stream:
            store = producer.directory / "state" / "s2cs.db"
            kept = {path: path.read_bytes() for path in store.parent.glob("s2cs.db*")}
            producer.stop(signal.SIGKILL)
            for path in kept:
                path.unlink() if path != store else os.truncate(store, 5000)
            command = [sys.executable, "-m", "s2cs", "serve", "--config", str(producer.config)]
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
            assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
            assert f"{store} cannot be used" in done.stderr
            assert store.stat().st_size == 5000
            stream.sendall(b"goes on")
            assert stream.recv(7, socket.MSG_WAITALL) == b"goes on"
            for path, content in kept.items():
                path.write_bytes(content)
            with restarted(producer) as again, again.client() as q:
                assert q.list(pb.ListRequest(uid=session.uid)).sessions[0].state == "ACTIVE"
                exchange(stream, b"to its end")
        consumer_side = [s.uid for s in c.list(pb.ListRequest()).sessions]
        assert consumer_side == [session.uid]


JUMPING_CLOCK = """
import os, time
_real = time.time
def _jumped():
    try:
        with open(os.environ["JUMP"]) as file:
            return _real() + float(file.read() or 0)
    except OSError:
        return _real()
time.time = _jumped
"""


@pytest.mark.parametrize("jump", [86400.0, -86400.0])
def test_a_clock_that_jumps_a_day(tmp_path: Path, jump: float) -> None:
    """It neither ends a lease nor makes it immortal, and a restart after it changes nothing."""
    (tmp_path / "sitecustomize.py").write_text(JUMPING_CLOCK)
    jumps = tmp_path / "jump"
    environ = {
        "PYTHONPATH": str(tmp_path),
        "JUMP": str(jumps),
        "SCISTREAM_SERVER__ON_SHUTDOWN": "keep",
        "SCISTREAM_LIMITS__DEFAULT_LEASE": "600",
    }
    with (
        echo() as app,
        gateway(tmp_path / "c") as consumer,
        gateway(tmp_path / "p", wrapper=("env",), **environ) as producer,
        producer.client() as p,
        consumer.client() as c,
    ):
        session = open_pair(p, c, [str(app.endpoint)], 1, ("nginx", "nginx"))
        p.req(pb.Request(uid="short", role="PROD", num_conn=1, immediate=True, lease_s=3))
        before = p.list(pb.ListRequest(uid=session.uid)).sessions[0].expires_at.seconds
        with session.connect() as stream:
            jumps.write_text(str(jump))
            ends = [event.session.state for event in p.watch(pb.WatchRequest(uid="short"), timeout=30)]
            assert ends[-1] == "EXPIRED"
            producer.stop(signal.SIGKILL)
            producer.start()
            with producer.client() as q:
                (seen,) = q.list(pb.ListRequest(uid=session.uid)).sessions
                assert seen.state == "ACTIVE"
                assert abs(seen.expires_at.seconds - before - jump) < 5  # told in the wall clock's time
                accepted(q)
                exchange(stream, b"goes on")
                q.release(pb.Release(uid=session.uid))


def test_no_processes_left(tmp_path: Path) -> None:
    version1 = Path("/sys/fs/cgroup/pids")
    group = (version1 if version1.exists() else Path("/sys/fs/cgroup")) / f"scistream-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error.strerror}")
    try:
        with running_stream(tmp_path) as (producer, client, _):
            (group / "cgroup.procs").write_text(str(producer.process.pid))
            current = int((group / "pids.current").read_text())
            (group / "pids.max").write_text(str(current + 2))
            refused(Code.RESOURCE_EXHAUSTED, client, "TasksMax")
            (group / "pids.max").write_text("max")
            accepted(client)
            (group.parent / "cgroup.procs").write_text(str(producer.process.pid))
    finally:
        group.rmdir()
