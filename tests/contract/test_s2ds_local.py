"""What only the data server in this process can be asked: its processes, files and refusals."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pkgutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

import s2cs.s2ds.backends
import s2cs.s2ds.launchers
from s2cs.s2ds import buffers, logs, procfs
from s2cs.s2ds import local as local_module
from s2cs.s2ds.backends import BACKENDS
from s2cs.s2ds.backends.base import Backend
from s2cs.s2ds.config import Interface, LocalConfig
from s2cs.s2ds.confinement import choose
from s2cs.s2ds.contract import Capability, Change, TunnelState
from s2cs.s2ds.launchers import LAUNCHERS
from s2cs.s2ds.launchers import process as process_launcher
from s2cs.s2ds.launchers.base import Job
from s2cs.s2ds.local import LocalDataServer
from scistream.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from scistream.vocabulary import Endpoint, PortRange, Rate, Role
from scistream.x509 import PrivateKey
from tests.support.ports import ports
from tests.support.tunnels import (
    FLAVOURS,
    Flavour,
    Session,
    answering,
    application,
    calling,
    config,
    flavour,
    hang_up,
    kill,
    listening,
    local,
    processes_in,
    tcp_sockets,
)

NOBODY = Endpoint("127.0.0.1", 9)


@pytest.fixture(params=FLAVOURS)
def kind(request: pytest.FixtureRequest) -> Flavour:
    return flavour(request.param)


@pytest.fixture
def range_() -> Iterator[PortRange]:
    with ports(20) as held:
        yield held


def garbled(kind: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a backend write a directive that no proxy knows."""
    text = {"nginx": "nonsense;\n", "haproxy": "nonsense\n", "stunnel": "nonsense = 1\n"}[kind.backend]
    monkeypatch.setattr(type(BACKENDS[kind.backend]), "configuration", lambda *_: text)


async def test_a_bad_configuration_never_counts_as_ready(
    kind: Flavour, tmp_path: Path, range_: PortRange, monkeypatch: pytest.MonkeyPatch
) -> None:
    garbled(kind, monkeypatch)
    session = Session()
    async with local(config(tmp_path, range_, kind)) as server:
        reserved = await server.reserve(session.spec(Role.PROD, id="x"))
        with pytest.raises(Unavailable, match=r"exited with status 1.*nonsense"):
            await server.start("x", session.bridge(reserved, Role.PROD, NOBODY))
        (status,) = await server.list()
        assert (status.state, status.pids) == (TunnelState.FATAL, ())
        assert "nonsense" in status.reason
        assert processes_in(tmp_path) == []
        await server.stop("x")
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]


async def test_a_refused_update_leaves_the_old_configuration(
    kind: Flavour, tmp_path: Path, range_: PortRange, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session()
    async with local(config(tmp_path, range_, kind)) as server, application(answering(b"app")) as target:
        reserved = await server.reserve(session.spec(Role.PROD, id="x"))
        bridge = session.bridge(reserved, Role.PROD, target)
        await server.start("x", bridge)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*.pem")}
        with monkeypatch.context() as patch:
            garbled(kind, patch)
            with pytest.raises(Unavailable, match=r"refuse[sd].*configuration.*nonsense"):
                await server.update("x", session.bridge(reserved, Role.PROD, NOBODY))
        assert {path: path.read_bytes() for path in tmp_path.rglob("*.pem")} == before
        async with calling(reserved.listeners[0], session) as caller:
            assert await caller.ask(b"1") == b"app 1"
        watch = server.watch()
        os.kill((await server.list())[0].pids[0], signal.SIGKILL)  # and it comes back with the old one, too
        assert [(await asyncio.wait_for(anext(watch), 10)).change for _ in "12"] == [Change.EXITED, Change.RUNNING]
        async with calling(reserved.listeners[0], session) as caller:
            assert await caller.ask(b"2") == b"app 2"
        await server.update("x", bridge)


async def test_a_proxy_that_never_serves_is_ended_in_time(
    tmp_path: Path, range_: PortRange, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = flavour("nginx")
    monkeypatch.setattr(
        type(BACKENDS["nginx"]), "command", lambda *_: ("/bin/sh", "-c", "trap '' QUIT TERM; echo hm; sleep 60 & wait")
    )
    session = Session()
    async with local(config(tmp_path, range_, kind, start_timeout_s=0.3)) as server:
        reserved = await server.reserve(session.spec(Role.PROD, id="x"))
        with pytest.raises(Unavailable, match=r"did not serve within 0.3 s: hm"):
            await server.start("x", session.bridge(reserved, Role.PROD, NOBODY))
        assert processes_in(tmp_path) == []


async def test_what_ignores_the_polite_signal_is_killed_with_its_children(tmp_path: Path) -> None:
    script = "trap '' TERM; (trap '' TERM; sleep 60) & sleep 60"
    process = await LAUNCHERS["process"].launch(Job(("/bin/sh", "-c", script), tmp_path))
    while len(processes_in(tmp_path)) < 3:
        await asyncio.sleep(0.01)
    await process.stop(signal.SIGTERM, 0.1)
    assert processes_in(tmp_path) == []
    assert process.ended == "was ended by SIGKILL"
    process.signal(signal.SIGTERM)  # harmless now


async def test_what_cannot_be_watched_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", none_left)
    with pytest.raises(Unavailable, match="could not be watched: Too many open files"):
        await LAUNCHERS["process"].launch(Job(("/bin/sleep", "60"), tmp_path))
    assert processes_in(tmp_path) == []


async def test_a_child_that_outlives_its_leader_is_killed(tmp_path: Path) -> None:
    process = await LAUNCHERS["process"].launch(Job(("/bin/sh", "-c", "sleep 60 & sleep 0.1; exit 7"), tmp_path))
    assert await process.wait(10)
    await process.stop(signal.SIGTERM, 1)
    assert processes_in(tmp_path) == []
    assert process.ended == "exited with status 7"


async def test_a_process_gets_its_sockets_and_nothing_else(kind: Flavour, tmp_path: Path, range_: PortRange) -> None:
    leak = os.dup(1)
    os.set_inheritable(leak, True)
    rpc = grpc.aio.server()
    rpc.add_insecure_port("127.0.0.1:0")
    await rpc.start()
    try:
        session = Session()
        async with local(config(tmp_path, range_, kind)) as server:
            reserved = await server.reserve(session.spec(Role.PROD, 3, id="x"))
            await server.start("x", session.bridge(reserved, Role.PROD, NOBODY))
            mine = {str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}
            mine -= {"/dev/null", "anon_inode:[eventpoll]", "anon_inode:[eventfd]"}  # all such have one name
            pid = (await server.list())[0].pids[0]
            held = Path(f"/proc/{pid}/fd").iterdir()
            assert {int(fd.name) for fd in held if str(fd.readlink()) in mine} == {3, 4, 5}
            assert Path(f"/proc/{pid}/cwd").readlink() == tmp_path / "x"
            fields = procfs.stat_fields(Path(f"/proc/{pid}/stat").read_text())
            assert (fields[2], fields[3]) == (str(pid), str(pid))  # a group and a session of its own
            if kind.backend != "nginx":  # which writes its title over its environment
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                names = {entry.partition(b"=")[0] for entry in environment if entry}
                assert names <= {b"PATH", b"LC_ALL", b"LISTEN_FDS", b"LISTEN_PID", b"PWD", b"OLDPWD"}
    finally:
        os.close(leak)
        await rpc.stop(None)


@pytest.mark.parametrize("call", [process_launcher._CLOSE_RANGE, 9999], ids=["close_range", "an older kernel"])
async def test_what_a_library_left_inheritable_stays_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    monkeypatch.setattr(process_launcher, "_CLOSE_RANGE", call)
    leak = os.dup(1)
    os.set_inheritable(leak, True)
    try:
        process = await LAUNCHERS["process"].launch(Job(("/bin/sh", "-c", "ls /proc/$$/fd; sleep 60"), tmp_path))
        while not (said := (tmp_path / "log").read_text()).endswith("2\n"):
            await asyncio.sleep(0.01)
        assert said.split() == ["0", "1", "2"]
        await process.stop(signal.SIGKILL, 0)
    finally:
        os.close(leak)


async def test_files_are_for_their_owner_only(kind: Flavour, tmp_path: Path, range_: PortRange) -> None:
    session = Session()
    async with local(config(tmp_path / "d", range_, kind)) as server:
        reserved = await server.reserve(session.spec(Role.CONS, 2, id="x"))
        await server.start("x", session.bridge(reserved, Role.CONS, NOBODY))
        confinement = choose("")
        for path in (tmp_path / "d").rglob("*"):
            status = path.stat()
            assert status.st_mode & 0o027 == 0, path
            if status.st_mode & 0o050:
                assert (confinement.switches, status.st_gid) == (True, confinement.gid), path
        for secret in ("key.pem", "tunnel.json"):
            assert (tmp_path / "d" / "x" / secret).stat().st_mode & 0o077 == 0


KILLED_SERVER = """
import asyncio, json, os, sys
from pathlib import Path
from scistream.vocabulary import Endpoint, PortRange, Role
from tests.support.tunnels import Session, config, flavour, local
async def main():
    async with local(config(Path(sys.argv[1]), PortRange.parse(sys.argv[2]), flavour(sys.argv[3]))) as server:
        session = Session()
        reserved = await server.reserve(session.spec(Role.PROD, 2, id="x"))
        await server.start("x", session.bridge(reserved, Role.PROD, Endpoint("127.0.0.1", 9)))
        await server.reserve(Session().spec(Role.PROD, 1, id="reserved"))
        # One that serves may be starting more workers yet.
        processes = 1 + min(2, len(os.sched_getaffinity(0))) if sys.argv[3].startswith("nginx") else 1
        while len((await server.list("x"))[0].pids) < processes:
            await asyncio.sleep(0.01)
        listed = {status.id: status for status in await server.list()}
        listeners = {id: [str(each) for each in status.listeners] for id, status in listed.items()}
        print(json.dumps([listed["x"].pids, listeners]), flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


@asynccontextmanager
async def left_by_a_killed_server(
    kind: Flavour, directory: Path, range_: PortRange
) -> AsyncIterator[tuple[list[int], dict[str, list[str]]]]:
    """Kill a server with a running and a reserved tunnel; what it left."""
    command = [sys.executable, "-c", KILLED_SERVER, str(directory), str(range_), kind.name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        pids, listeners = json.loads(process.stdout.readline())
        with pytest.raises(FailedPrecondition, match="used by another data server"):
            await LocalDataServer(config(directory, range_, kind)).open()
        process.kill()
    left = set(processes_in(directory))
    assert left == set(pids)  # the streams outlive the server
    assert len(listening(range_)) == 2
    try:
        yield [pids[0], *left - {pids[0]}], listeners
    finally:
        async with local(config(directory, range_, kind)):
            pass
    assert processes_in(directory) == []
    assert listening(range_) == set()
    assert [path.name for path in directory.iterdir()] == ["lock"]


async def test_what_a_killed_server_left_is_taken_up(kind: Flavour, tmp_path: Path, range_: PortRange) -> None:
    async with left_by_a_killed_server(kind, tmp_path, range_) as (pids, listeners):
        for _ in range(2):  # a server that only lets go is as one that was killed
            server = LocalDataServer(config(tmp_path, range_, kind))
            await server.open()
            found = {status.id: status for status in await server.list()}
            assert {id: [str(x) for x in status.listeners] for id, status in found.items()} == listeners
            assert (found["x"].state, set(found["x"].pids)) == (TunnelState.RUNNING, set(pids))
            assert found["reserved"].state is TunnelState.RESERVED
            with pytest.raises(ResourceExhausted):
                await server.reserve(Session().spec(Role.PROD, len(range_) - 2, id="too-many"))
            server.let_go()


async def test_half_an_update_of_a_killed_server_is_cleared_away(
    kind: Flavour, tmp_path: Path, range_: PortRange
) -> None:
    async with left_by_a_killed_server(kind, tmp_path, range_) as (pids, _):
        (tmp_path / "x" / "2").mkdir()  # nothing was written there yet
        async with local(config(tmp_path, range_, kind)) as server:
            (status,) = await server.list("x")
            assert (status.state, status.pids[0]) == (TunnelState.RUNNING, pids[0])
            assert not (tmp_path / "x" / "2").exists()


async def test_a_taken_up_proxy_that_dies_is_restarted_on_its_sockets(
    kind: Flavour, tmp_path: Path, range_: PortRange
) -> None:
    async with left_by_a_killed_server(kind, tmp_path, range_) as (pids, _):
        before = listening(range_)
        async with local(config(tmp_path, range_, kind)) as server:
            events = server.watch()
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert listening(range_) == before  # never closed: a connection would wait
            assert (await anext(events)).change is Change.EXITED
            assert listening(range_) == before
            assert (await anext(events)).change is Change.RUNNING


async def test_a_proxy_that_died_unwatched_is_started_again(kind: Flavour, tmp_path: Path, range_: PortRange) -> None:
    async with left_by_a_killed_server(kind, tmp_path, range_) as (pids, listeners):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while processes_in(tmp_path):
            await asyncio.sleep(0.01)
        async with local(config(tmp_path, range_, kind)) as server:
            found = {status.id: status for status in await server.list()}
            assert found["x"].state is TunnelState.RUNNING
            assert not set(found["x"].pids) & set(pids)
            assert [str(x) for x in found["x"].listeners] == listeners["x"]
            assert len(listening(range_)) == 2


@pytest.mark.parametrize("name", ["directory", "link"])
async def test_workers_that_outlived_their_master_unwatched_are_ended(
    tmp_path: Path, range_: PortRange, name: str
) -> None:
    """By a link, as /var/run is one, too."""
    kind, directory = flavour("nginx"), tmp_path / name
    (tmp_path / "directory").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("directory")
    async with left_by_a_killed_server(kind, directory, range_) as (pids, _):
        os.kill(pids[0], signal.SIGKILL)
        while procfs.alive(pids[0]):
            await asyncio.sleep(0.01)
        async with local(config(directory, range_, kind)) as server:
            found = {status.id: status for status in await server.list()}
            assert found["x"].state is TunnelState.RUNNING
            assert set(processes_in(directory)) == set(found["x"].pids)
            assert not set(found["x"].pids) & set(pids)


async def test_a_taken_port_fails_only_its_tunnel(tmp_path: Path, range_: PortRange) -> None:
    kind = flavour("nginx")
    async with left_by_a_killed_server(kind, tmp_path, range_) as (_, listeners):
        host, port = listeners["reserved"][0].split(":")
        with socket.create_server((host, int(port))):
            async with local(config(tmp_path, range_, kind)) as server:
                assert [status.id for status in await server.list()] == ["x"]


async def test_a_handle_of_somebody_else_is_left_alone(tmp_path: Path, range_: PortRange) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        boot, fields = procfs.boot_id(), Path(f"/proc/{stranger.pid}/stat").read_text()
        later = fields.replace(f" {procfs.start_time(stranger.pid)} ", f" {procfs.start_time(stranger.pid)}1 ")
        for number, content in enumerate((f"{boot} {later}", f"another-boot {fields}", "", "garbage")):
            (tmp_path / f"{number}").mkdir()
            (tmp_path / f"{number}" / "proxy-1.handle").write_text(content)
        async with local(config(tmp_path, range_, flavour("nginx"))):
            assert [path.name for path in tmp_path.iterdir()] == ["lock"]
        assert stranger.poll() is None
        stranger.kill()


async def test_a_start_given_up_before_it_began_is_not_starting_for_ever(tmp_path: Path, range_: PortRange) -> None:
    session = Session()
    async with local(config(tmp_path, range_, flavour("nginx"))) as server:
        reserved = await server.reserve(session.spec(Role.PROD, id="x"))
        start = asyncio.create_task(server.start("x", session.bridge(reserved, Role.PROD, NOBODY)))
        await asyncio.sleep(0)  # it was asked for, and has done nothing
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        (status,) = await server.list()
        assert (status.state, status.reason, status.pids) == (TunnelState.FATAL, "its start was given up", ())


async def test_a_stop_given_up_lets_the_tunnel_go_in_the_end(tmp_path: Path, range_: PortRange) -> None:
    async with local(config(tmp_path, range_, flavour("nginx"))) as server:
        free = server.free_ports(Role.PROD)
        session = Session()
        reserved = await server.reserve(session.spec(Role.PROD, id="x"))
        await server.start("x", session.bridge(reserved, Role.PROD, NOBODY))
        stop = asyncio.create_task(server.stop("x"))
        await asyncio.sleep(0)
        stop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stop
        async with asyncio.timeout(60):
            while await server.list():
                await asyncio.sleep(0.01)
        assert server.free_ports(Role.PROD) == free
        assert (await server.logs("x", 1)).lines


async def test_a_server_that_lets_go_while_it_stops_leaves_the_rest_to_the_next(
    tmp_path: Path, range_: PortRange
) -> None:
    session, settings = Session(), config(tmp_path, range_, flavour("nginx"), grace_s=600)
    server = LocalDataServer(settings)
    await server.open()
    async with application(answering(b"app")) as target:
        reserved = await server.reserve(session.spec(Role.PROD, id="x"))
        await server.start("x", session.bridge(reserved, Role.PROD, target))
        async with calling(reserved.listeners[0], session) as stream:
            assert await stream.ask(b"1") == b"app 1"
            stop = asyncio.create_task(server.stop("x"))
            while (await server.list())[0].state is not TunnelState.STOPPING:
                await asyncio.sleep(0.01)
            server.let_go()
            async with asyncio.timeout(60):
                await asyncio.wait([stop])
            assert stop.cancelled()
            assert await stream.ask(b"2") == b"app 2"
            async with local(settings) as second:
                await second.stop("x", cut=True)
    assert processes_in(tmp_path) == []


async def test_an_update_that_takes_too_long_is_not_in_force_later(tmp_path: Path, range_: PortRange) -> None:
    session, settings = Session(), config(tmp_path, range_, flavour("nginx"), start_timeout_s=5)
    async with (
        application(answering(b"old")) as old,
        application(answering(b"new")) as new,
        local(settings) as server,
    ):
        reserved = await server.reserve(session.spec(Role.PROD, id="x"))
        await server.start("x", session.bridge(reserved, Role.PROD, old))
        *_, worker = (await server.list())[0].pids
        os.kill(worker, signal.SIGSTOP)  # which holds the listeners
        with pytest.raises(Unavailable, match="did not serve within 5 s"):
            await server.update("x", session.bridge(reserved, Role.PROD, new))
        os.kill(worker, signal.SIGCONT)
        async with asyncio.timeout(60):
            answer = b""
            while answer != b"old 1" or worker in (await server.list())[0].pids:
                with suppress(OSError):
                    async with calling(reserved.listeners[0], session) as caller:
                        answer = await caller.ask(b"1")


async def test_a_proxy_that_died_is_waited_for_and_its_tunnel_can_be_stopped_meanwhile(
    kind: Flavour, tmp_path: Path, range_: PortRange
) -> None:
    session = Session()
    async with local(config(tmp_path, range_, kind, backoff_s=600, backoff_max_s=600)) as server:
        watch = server.watch()
        reserved = await server.reserve(session.spec(Role.PROD, id="x"))
        bridge = session.bridge(reserved, Role.PROD, NOBODY)
        await server.start("x", bridge)
        kill(*(await server.list())[0].pids)
        assert (await anext(watch)).change is Change.EXITED
        assert (await server.list())[0].state is TunnelState.BACKOFF
        assert listening(range_) == {reserved.listeners[0].port}
        with pytest.raises(FailedPrecondition, match="is BACKOFF, not running; update it when it is"):
            await server.update("x", bridge)
        with pytest.raises(FailedPrecondition, match="it is BACKOFF: use update"):
            await server.start("x", bridge)
        async with asyncio.timeout(60):
            await server.stop("x")
        assert await server.list() == ()
        assert listening(range_) == set()


async def test_a_constructor_does_nothing(tmp_path: Path, range_: PortRange) -> None:
    server = LocalDataServer(config(tmp_path / "none", range_, flavour("nginx")))
    assert not (tmp_path / "none").exists()
    with pytest.raises(FailedPrecondition, match="not open"):
        await server.reserve(Session().spec(Role.PROD))


async def test_auto_takes_the_first_that_can(tmp_path: Path, range_: PortRange) -> None:
    missing = Path("/nonexistent/proxy")
    for gone, expected in ((set(), "nginx"), ({"nginx"}, "haproxy"), ({"nginx", "haproxy"}, "stunnel")):
        flavour(expected)
        settings = config(tmp_path, range_, Flavour("", "auto", dict.fromkeys(gone, missing)))
        async with local(settings) as server:
            assert (await server.reserve(Session().spec(Role.PROD))).backend == expected


async def test_a_backend_that_cannot_limit_the_rate_is_passed_over(
    tmp_path: Path, range_: PortRange, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = Session().spec(Role.PROD, rate=Rate(1))
    flavour("haproxy")
    async with local(config(tmp_path, range_, Flavour("", "auto"))) as server:
        monkeypatch.setattr(type(BACKENDS["nginx"]), "capabilities", frozenset({Capability.MUTUAL_TLS}))
        with pytest.raises(FailedPrecondition, match="nginx cannot limit the rate; ask for another backend"):
            await server.reserve(replace(spec, backend="nginx"))
        assert (await server.reserve(spec)).backend == "haproxy"


@pytest.mark.parametrize("name", BACKENDS)
async def test_a_missing_proxy_is_named_with_what_installs_it(
    name: str, tmp_path: Path, range_: PortRange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(BACKENDS[name]), "candidates", lambda _: iter(()))
    async with local(config(tmp_path, range_, Flavour("", "auto"))) as server:
        with pytest.raises(FailedPrecondition, match=f"program {name} is not .*apt-get install {name}"):
            await server.reserve(Session().spec(Role.PROD, backend=name))


@pytest.mark.parametrize(("name", "printed"), [
    ("nginx", "nginx version: nginx/1.18.0\nconfigure arguments: --with-stream --with-stream_ssl_module"),
    ("nginx", "nginx version: nginx/1.25.0\nconfigure arguments: --with-http_ssl_module"),
    ("nginx", "nginx version: nginx/1.25.0\nconfigure arguments: --with-stream"),
    ("nginx", "nginx version: nginx/1.25.0\nconfigure arguments: --with-stream=dynamic --with-stream_ssl_module "
              "--modules-path=/nonexistent"),
    ("haproxy", "HAProxy version 2.0.5\nOpenSSL library supports : TLSv1.3"),
    ("haproxy", "HAProxy version 2.6.12\nBuilt without OpenSSL"),
    ("stunnel", "stunnel 5.50 on x\nThreading:PTHREAD Sockets:POLL,IPv6,SYSTEMD"),
    ("stunnel", "stunnel 5.70 on x\nThreading:PTHREAD Sockets:POLL,IPv6"),
    ("stunnel", "something else"),
])  # fmt: skip
def test_an_unusable_proxy_says_why(name: str, printed: str, tmp_path: Path) -> None:
    program = tmp_path / name
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{printed}\nEND\n")
    program.chmod(0o700)
    found = BACKENDS[name].find(program)
    assert str(program) in found.reason
    assert found.version == ""


@pytest.mark.parametrize("package", [s2cs.s2ds.backends, s2cs.s2ds.launchers], ids=["backends", "launchers"])
def test_every_module_is_in_its_registry(package: object) -> None:
    modules = {m.name for m in pkgutil.iter_modules(package.__path__)} - {"base", "container"}  # type: ignore[attr-defined]
    registry: object = BACKENDS if package is s2cs.s2ds.backends else LAUNCHERS
    assert {type(each).__module__.rpartition(".")[2] for each in registry.values()} == modules  # type: ignore[attr-defined]


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_every_backend_has_a_template(backend: Backend) -> None:
    assert (Path(__file__).parents[2] / "templates" / backend.template).is_file()


@pytest.mark.parametrize(("bind", "advertise"), [("0.0.0.0", ""), ("::", ""), ("localhost", ""), ("127.0.0.1", "a b")])
def test_bad_interfaces(bind: str, advertise: str) -> None:
    with pytest.raises(InvalidArgument):
        Interface(bind, advertise)


def test_bad_settings(tmp_path: Path) -> None:
    lo = Interface("127.0.0.1")
    with pytest.raises(InvalidArgument, match="cipher 'RC4' is not one"):
        LocalConfig(tmp_path, lo, lo, PortRange(1, 2), ciphers=("RC4",))
    with pytest.raises(InvalidArgument, match="directory"):
        LocalConfig(tmp_path / 'a";b', lo, lo, PortRange(1, 2))


def test_a_node_that_starts_no_more_threads_starts_no_proxy_and_says_so(tmp_path: Path) -> None:
    script = """
import asyncio, os, resource, sys
from pathlib import Path
from s2cs.s2ds.launchers import LAUNCHERS
from s2cs.s2ds.launchers import process as process_launcher
from s2cs.s2ds.launchers.base import Job
from scistream.errors import Unavailable

async def main():
    if os.geteuid() == 0:  # no limit holds for root
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    try:
        await LAUNCHERS["process"].launch(Job(("/bin/true",), Path(sys.argv[1])))
    except Unavailable as error:
        print(error)
asyncio.run(main())
"""
    config(tmp_path, PortRange(1, 2), Flavour("", "auto"))  # everybody passes
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(0o777)
    run = subprocess.run([sys.executable, "-c", script, place], capture_output=True, text=True, check=False)
    assert "/bin/true could not be started: Resource temporarily unavailable" in run.stdout, run.stderr


@pytest.mark.parametrize("mode", [0o700, 0o1777])
async def test_a_directory_that_others_use_is_left_as_it_is(tmp_path: Path, range_: PortRange, mode: int) -> None:
    """As /run or /dev/shm for [server] runtime_dir."""
    others = tmp_path / "shared" / "postgresql"
    others.mkdir(parents=True)
    (others / "pid").write_text("1")
    others.parent.chmod(mode)
    settings = replace(config(tmp_path, range_, Flavour("", "auto")), directory=others.parent)
    with pytest.raises(FailedPrecondition, match=r"name (a directory of its own|one below it, which is made,) as"):
        await LocalDataServer(settings).open()
    assert (others / "pid").exists()
    assert others.parent.stat().st_mode & 0o7777 == mode
    assert not (others.parent / "lock").exists()


async def test_strangers_who_knock_do_not_fill_the_disk(
    kind: Flavour, tmp_path: Path, range_: PortRange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MOST_BYTES", 20_000)
    monkeypatch.setattr(local_module, "TIDY_S", 0.05)
    session = Session()
    async with local(config(tmp_path, range_, kind)) as server:
        reserved = await server.reserve(session.spec(Role.PROD, id="x"))
        await server.start("x", session.bridge(reserved, Role.PROD, NOBODY))
        host, port = str(reserved.listeners[0]).split(":")
        written = 0
        for _ in range(400):
            with socket.create_connection((host, int(port)), 10) as stranger:
                stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
            await asyncio.sleep(0.005)
            written = max(written, *(path.stat().st_blocks * 512 for path in (tmp_path / "x").glob("*.log")))
        assert 0 < written < 100_000
        assert (await server.list())[0].state is TunnelState.RUNNING


async def test_a_strangers_certificate_says_nothing_in_the_log(
    kind: Flavour, tmp_path: Path, range_: PortRange
) -> None:
    """Stunnel logs its subject; neither counts, nor TLS, nor what becomes of an update are read there."""
    session, key = Session(), PrivateKey.generate()
    words = (
        "Connection closed: 1234567 byte(s) sent to TLS, 7654321 byte(s)",
        "TLSv1.3 ciphersuite: NONE",
        "Configuration failed",
    )
    name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, word) for word in words])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.key.public_key())
    made = made.serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    (tmp_path / "stranger.pem").write_bytes(
        made.sign(key.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) + key.pem
    )
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
    stranger.load_cert_chain(tmp_path / "stranger.pem")

    async def knock(to: Endpoint) -> None:
        with suppress(OSError, ssl.SSLError):
            reader, writer = await asyncio.open_connection(to.host, to.port, ssl=stranger)
            try:
                await reader.read()  # until it is shown the door, and that is logged
            finally:
                await hang_up(writer)

    async with local(config(tmp_path / "d", range_, kind)) as server, application(answering(b"app")) as target:
        reserved = await server.reserve(session.spec(Role.PROD, id="x"))
        bridge = session.bridge(reserved, Role.PROD, target)
        await server.start("x", bridge)

        async def keep_knocking() -> None:
            while True:
                await knock(reserved.listeners[0])

        knocking = [asyncio.create_task(keep_knocking()) for _ in range(4)]
        try:
            await knock(reserved.listeners[0])
            for _ in range(3):
                await server.update("x", bridge)
        finally:
            for task in knocking:
                task.cancel()
            await asyncio.gather(*knocking, return_exceptions=True)
        (status,) = await server.list()
        assert (status.traffic.total, status.traffic.from_producer, status.traffic.from_consumer) == (0, 0, 0)
        assert status.tls_cipher != "NONE"
        async with calling(reserved.listeners[0], session) as caller:
            assert await caller.ask(b"1") == b"app 1"


@pytest.mark.parametrize(
    ("in_flight", "grown", "asked", "expected"),
    [
        (0, 4_000_000, 4_000_000, 0),  # nobody has said
        (2_000_000, 4_000_000, 4_000_000, 0),  # growing gives it
        (3_000_000, 4_000_000, 4_000_000, 3_000_000),
        (9_000_000, 4_000_000, 4_000_000, 4_000_000),  # not enough, and more than growing gives
        (9_000_000, 4_000_000, 212_992, 0),  # less than growing gives
        (9_000_000, 64_000_000, 64_000_000, 0),
    ],
)
def test_a_send_buffer_is_asked_for_where_that_gives_more(
    in_flight: int, grown: int, asked: int, expected: int
) -> None:
    assert buffers.to_ask_for(in_flight, grown, asked) == expected


async def test_connections_to_the_wan_have_the_buffers_that_their_way_needs(
    kind: Flavour, tmp_path: Path, range_: PortRange, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a host whose kernel lets them grow to 64 kB and lets programs ask for more."""
    for name, text in (("ipv4/tcp_wmem", "4096 16384 65536"), ("core/wmem_max", "90000")):
        (tmp_path / "net" / name).parent.mkdir(parents=True)
        (tmp_path / "net" / name).write_text(text)
    monkeypatch.setattr(buffers, "_SYSCTL", tmp_path / "net")
    session = Session()
    settings = config(tmp_path / "s", range_, kind, in_flight=80_000)
    async with local(settings) as server, application(answering(b"app")) as target:
        for role in Role:
            spec = session.spec(role)
            reserved = await server.reserve(spec)
            await server.start(spec.id, session.bridge(reserved, role, target))
            (status,) = await server.list(spec.id)
            sizes = {each.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) for each in tcp_sockets(status.pids)}
            assert (sizes == {160_000}) == (role is Role.PROD)
            if role is Role.PROD:
                async with calling(reserved.listeners[0], session) as caller:
                    assert await caller.ask(b"1") == b"app 1"
                    accepted = [
                        each.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
                        for each in tcp_sockets(status.pids)
                        if each.getsockname()[1] == reserved.listeners[0].port
                    ]
                    assert len(accepted) > 1
                    assert set(accepted) == {160_000}
