"""Streams end when the right to them does: killed, expired, without their user. Both applications see it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from scistream.proto import scistream_pb2 as pb
from scistream.wire import grpc
from tests.support import programs
from tests.support.gateways import Client, GatewayProcess, gateway, restarted
from tests.support.sessions import Opened, open_pair
from tests.support.streams import listener

BACKENDS = ["stunnel", "haproxy", "nginx"]
_ENDS_S = 60.0  # a test that waits longer has failed; how long it takes is measured elsewhere


def s2cs(running: GatewayProcess, *arguments: str, exit_status: int = 0) -> str:
    """Run a command on a gateway's settings; what it says on stderr."""
    done = programs.run("s2cs", *arguments, "--config", running.config)
    assert done.returncode == exit_status, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr


class Stream:
    """A producer that sends for ever and a consumer that takes it, each until its socket ends."""

    def __init__(self, session: Opened, server: socket.socket) -> None:
        self.ends: dict[str, float] = {}
        self.received = 0
        self._consumer = session.connect()
        self._producer, _ = server.accept()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._send, self._take)]
        for thread in self._threads:
            thread.start()
        while self.received < 2**22:
            assert not self.ends
            time.sleep(0.01)

    @property
    def runs(self) -> bool:
        """True while neither end has seen an end, and data goes on arriving."""
        before, deadline = self.received, time.monotonic() + _ENDS_S
        while self.received == before and not self.ends and time.monotonic() < deadline:
            time.sleep(0.01)
        return not self.ends and self.received > before

    def _send(self) -> None:
        block = bytes(65536)
        try:
            while True:
                self._producer.sendall(block)
        except OSError:
            self.ends["producer"] = time.monotonic()

    def _take(self) -> None:
        try:
            while data := self._consumer.recv(2**20):
                self.received += len(data)
        except OSError:
            pass
        self.ends["consumer"] = time.monotonic()

    def wait(self) -> dict[str, float]:
        """Wait until both ends have seen it; when they did, on the monotonic clock."""
        for thread in self._threads:
            thread.join(_ENDS_S)
        assert set(self.ends) == {"producer", "consumer"}, "a stream went on"
        return self.ends

    def close(self) -> None:
        """End it from outside."""
        for each in (self._producer, self._consumer):
            each.close()


class Facilities:
    """Two gateways, each with a user alice."""

    def __init__(self, producer: GatewayProcess, consumer: GatewayProcess) -> None:
        self.gateways = {"producer": producer, "consumer": consumer}
        self.tokens = {name: running.add_user("alice") for name, running in self.gateways.items()}

    @contextmanager
    def clients(self) -> Iterator[tuple[Client, Client]]:
        """Alice at both."""
        with (
            self.gateways["producer"].client(self.tokens["producer"]) as producer,
            self.gateways["consumer"].client(self.tokens["consumer"]) as consumer,
        ):
            yield producer, consumer

    @contextmanager
    def streaming(self, backend: str = "nginx", lease_s: int = 0) -> Iterator[tuple[Opened, Stream]]:
        """Open a session of alice, and a stream through both gateways."""
        with self.clients() as (producer, consumer), listener() as (server, where):
            session = open_pair(producer, consumer, [str(where)], 1, (backend, backend), lease_s=lease_s)
            stream = Stream(session, server)
            try:
                yield session, stream
            finally:
                stream.close()
                for running in self.gateways.values():
                    if running.process.poll() is not None:
                        continue
                    with running.client() as admin:
                        for each in admin.list(pb.ListRequest()).sessions:
                            admin.release(pb.Release(uid=each.uid))


@pytest.fixture(scope="module")
def facilities(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facilities]:
    directory = tmp_path_factory.mktemp("revocation")
    with gateway(directory / "p") as producer, gateway(directory / "c") as consumer:
        yield Facilities(producer, consumer)


def info(client: Client, uid: str) -> pb.SessionInfo:
    return client.list(pb.ListRequest(uid=uid)).sessions[0]  # type: ignore[no-any-return, operator]


@pytest.mark.parametrize("where", ["producer", "consumer"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_killed_session_ends_at_both_sides(facilities: Facilities, backend: str, where: str) -> None:
    with facilities.streaming(backend) as (session, stream):
        client = {"producer": session.producer, "consumer": session.consumer}[where]
        events = client.watch(pb.WatchRequest(uid=session.uid), timeout=100)
        assert stream.runs
        said = s2cs(facilities.gateways[where], "sessions", "kill", session.uid, "--reason", "searched")
        assert facilities.gateways[where].leftovers() == {}  # the command waits for it
        assert f"session {session.uid} of alice has ended: killed by " in said
        stream.wait()
        seen = [(e.session.state, e.session.reason) for e in events]
        assert [state for state, _ in seen] == ["ACTIVE", "CLOSING", "RELEASED"]
        assert seen[-1][1].startswith("killed by ")
        assert seen[-1][1].endswith(" at the gateway: searched")


def test_only_the_one_that_is_named_is_killed(facilities: Facilities) -> None:
    with facilities.streaming() as (first, one), facilities.streaming() as (second, other):
        s2cs(facilities.gateways["producer"], "sessions", "kill", first.uid, "--owner", "alice")
        one.wait()
        assert other.runs
        assert info(second.producer, second.uid).state == "ACTIVE"


def test_a_removed_user_has_no_streams_and_neither_has_a_disabled_one(facilities: Facilities) -> None:
    for command in ("remove", "disable"):
        producer = facilities.gateways["producer"]
        with facilities.streaming() as (session, stream):
            s2cs(producer, "user", command, "alice")
            stream.wait()
            with producer.client() as admin:
                deadline = time.monotonic() + _ENDS_S
                while (seen := info(admin, session.uid)).state != "RELEASED" and time.monotonic() < deadline:
                    time.sleep(0.05)
            assert (seen.state, seen.reason) == ("RELEASED", f"its user alice was {command.removesuffix('e')}ed")
        if command == "remove":
            facilities.tokens["producer"] = producer.add_user("alice")
        else:
            s2cs(producer, "user", "enable", "alice")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_end_of_the_lease_cuts(facilities: Facilities, backend: str) -> None:
    with ExitStack() as stack:
        for lease_s in (4, 12, 36):  # a busy machine may need longer than the first until data moves
            try:
                session, stream = stack.enter_context(facilities.streaming(backend, lease_s=lease_s))
                break
            except (OSError, grpc.RpcError, AssertionError):
                if lease_s == 36:
                    raise
        stream.wait()
        for client in (session.producer, session.consumer):
            events = list(client.watch(pb.WatchRequest(uid=session.uid), timeout=60))
            assert (events[-1].session.state, events[-1].session.reason) == ("EXPIRED", "its lease ended")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_release_ends_a_stream_that_does_not_end_itself(facilities: Facilities, backend: str) -> None:
    with facilities.streaming(backend) as (session, stream):
        session.release()
        stream.wait()


def test_there_is_nothing_to_kill(facilities: Facilities) -> None:
    running = facilities.gateways["producer"]
    assert "no running session nobodys" in s2cs(running, "sessions", "kill", "nobodys", exit_status=5)
    with facilities.clients() as (alice, _), running.client() as admin:
        for client in (alice, admin):
            client.req(pb.Request(uid="same", role="PROD", num_conn=1, immediate=True))
        said = s2cs(running, "sessions", "kill", "same", exit_status=2)
        assert "several users have a session same (admin, alice)" in said
        assert "no running session same of bob" in s2cs(
            running, "sessions", "kill", "same", "--owner", "bob", exit_status=5
        )
        assert "--reason" in s2cs(
            running, "sessions", "kill", "same", "--owner", "alice", "--reason", "a\nb", exit_status=2
        )
        s2cs(running, "sessions", "kill", "same", "--owner", "alice")
        assert [info(client, "same").state for client in (alice, admin)] == ["RELEASED", "RESERVED"]
        admin.release(pb.Release(uid="same"))
        assert "no running session" in s2cs(running, "sessions", "kill", "same", exit_status=5)


def test_an_order_while_no_gateway_runs_is_carried_out_by_the_next(tmp_path: Path) -> None:
    with gateway(tmp_path / "p") as producer, gateway(tmp_path / "c") as consumer:
        producer.environ["SCISTREAM_SERVER__ON_SHUTDOWN"] = "keep"
        producer.stop()
        producer.start()
        both = Facilities(producer, consumer)
        with both.streaming() as (session, stream):
            producer.stop()
            assert stream.runs
            said = s2cs(producer, "sessions", "kill", session.uid, exit_status=4)
            assert "no gateway runs on these settings" in said
            assert stream.runs
            with restarted(producer) as again, again.client(both.tokens["producer"]) as alice:
                stream.wait()
                events = list(alice.watch(pb.WatchRequest(uid=session.uid), timeout=60))
                assert events[-1].session.state == "RELEASED"
                assert again.leftovers() == {}


def test_others_sessions_by_rank(facilities: Facilities) -> None:
    """A user sees its own; an operator sees, watches and releases all, and changes none; an admin may everything."""
    running = facilities.gateways["producer"]
    tokens = {"mallory": running.add_user("mallory"), "olga": running.add_user("olga", "--operator")}
    with (
        facilities.clients() as (alice, _),
        running.client(tokens["mallory"]) as mallory,
        running.client(tokens["olga"]) as olga,
    ):
        alice.req(pb.Request(uid="hers", role="PROD", num_conn=1, immediate=True))
        changing = {
            "hello": pb.Hello(uid="hers", role="PROD", prod_listeners=["127.0.0.1:9"]),
            "update": pb.UpdateTargets(
                uid="hers", role="PROD", remote_listeners=["127.0.0.1:9"], certificate=b"x", trust_anchor=b"x"
            ),
            "renew": pb.Renew(uid="hers", lease_s=60, trust_anchor=b"x"),
        }
        looking = {
            "list": pb.ListRequest(uid="hers"),
            "logs": pb.LogsRequest(uid="hers"),
            "verify": pb.VerifyRequest(uid="hers"),
            "release": pb.Release(uid="hers"),
        }
        for method, request in (changing | looking).items():
            with pytest.raises(grpc.RpcError) as refused:
                getattr(mallory, method)(request)
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND, method
        with pytest.raises(grpc.RpcError) as refused:
            next(mallory.watch(pb.WatchRequest(uid="hers"), timeout=10))
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        assert [s.uid for s in mallory.list(pb.ListRequest()).sessions] == []
        for method, request in changing.items():
            with pytest.raises(grpc.RpcError) as refused:
                getattr(olga, method)(request)
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED, method
        assert "hers" in [s.uid for s in olga.list(pb.ListRequest()).sessions]
        assert next(olga.watch(pb.WatchRequest(uid="hers"), timeout=10)).session.owner == "alice"
        olga.release(pb.Release(uid="hers"))
        seen = info(alice, "hers")
        assert (seen.state, seen.reason) == ("RELEASED", "released by operator olga")


def test_options_of_the_group_are_not_lost_on_its_way_to_a_command(facilities: Facilities) -> None:
    done = programs.run("s2cs", "sessions", "--config", "x.toml", "kill", "scan-7")
    assert (done.returncode, "write the options after kill" in done.stderr) == (2, True)


def test_sessions_alone_lists(facilities: Facilities) -> None:
    running = facilities.gateways["producer"]
    with facilities.clients() as (alice, _):
        alice.req(pb.Request(uid="shown", role="PROD", num_conn=1, immediate=True))
        for command in (["sessions"], ["sessions", "list"]):
            done = programs.run("s2cs", *command, "--json", "--config", running.config)
            assert [row["uid"] for row in json.loads(done.stdout)] == ["shown"]
        alice.release(pb.Release(uid="shown"))
