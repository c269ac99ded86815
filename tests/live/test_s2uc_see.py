"""What list, status, watch, logs and verify say, while streams run, rest, lose their proxy and their gateway's S2CS."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from bench import gateways as bench_gateways
from bench.gateways import two_gateways
from bench.place import Missing, Place
from bench.wan import Wire, two_sites
from scistream.vocabulary import Endpoint
from tests.support.sessions import Echo, echo
from tests.support.user import Facilities, User, facilities

_ESCAPES = re.compile(r"\x1b\[[?0-9;]*[a-zA-Z]")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facilities]:
    with facilities(tmp_path_factory.mktemp("facilities")) as both:
        yield both


@contextmanager
def session(user: User, producer: Echo | Endpoint, uid: str, num_conn: int = 1) -> Iterator[list[Endpoint]]:
    request = ("request", "--producer", "aps", "--consumer", "alcf", "--uid", uid, "--num-conn", str(num_conn))
    target = producer if isinstance(producer, Endpoint) else producer.endpoint
    made = user.json(*request, "--prod-listeners", str(target))
    try:
        yield [Endpoint.parse(text) for text in made["consumer"]["listeners"]]
    finally:
        user.s2uc("release", uid)


@contextmanager
def streaming(to: Endpoint) -> Iterator[socket.socket]:
    """Stream to an echo as fast as it goes."""
    ended = threading.Event()
    with socket.create_connection((to.host, to.port), 30) as connection:

        def send() -> None:
            while not ended.is_set():
                connection.sendall(bytes(65536))

        def receive() -> None:
            while not ended.is_set() and connection.recv(1 << 20):
                pass

        def quietly(work: Callable[[], None]) -> None:
            with suppress(OSError):
                work()

        threads = [threading.Thread(target=quietly, args=(work,)) for work in (send, receive)]
        for thread in threads:
            thread.start()
        try:
            yield connection
        finally:
            ended.set()
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(20)


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, user: User, *arguments: str, columns: int = 100, **environ: str) -> None:
        self.output = ""
        self._fd, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.modes = termios.tcgetattr(slave)
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        environment |= {"SCISTREAM_CONFIG_DIR": str(user.config), "TERM": "xterm", **environ}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "s2uc", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        self._slave = slave

    @property
    def frame(self) -> str:
        """What stands there now."""
        return _ESCAPES.sub("", self.output.rpartition("\x1b[H")[2])

    def until(self, told: Callable[[str], object], seconds: float = 40) -> str:
        """Read until the frame is so."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._read(0.2) and self.output.endswith("\x1b[J") and told(self.frame):
                return self.frame
        raise AssertionError(f"it never said so:\n{self.frame}")

    def end(self, number: int | None = None) -> int:
        """Wait for its end, which a signal may bring; its exit status."""
        if number is not None:
            self.process.send_signal(number)
        deadline = time.monotonic() + 40
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.frame
            self._read(0.2)
        while self._read(0.2):
            pass
        assert termios.tcgetattr(self._slave) == self.modes
        os.close(self._slave)
        os.close(self._fd)
        return self.process.returncode

    def _read(self, seconds: float) -> bool:
        if not select.select([self._fd], [], [], seconds)[0]:
            return False
        self.output += os.read(self._fd, 65536).decode(errors="replace")
        return True


def line_of(frame: str, *words: str) -> str:
    """The line of a frame with all these words; empty where there is none."""
    return next((line for line in frame.splitlines() if all(word in line for word in words)), "")


def told(user: User, uid: str, good: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Ask for a session's status until it is so."""
    for _ in range(60):
        status = user.json("status", uid)
        if good(status):
            return status
        time.sleep(0.3)
    raise AssertionError(status)


def test_a_full_an_idle_a_crashed_and_a_restarted_one(running: Facilities) -> None:
    user = running.user
    with (
        echo() as producer,
        session(user, producer, "full") as full,
        session(user, producer, "idle") as idle,
        streaming(full[0]) as stream,
        socket.create_connection((idle[0].host, idle[0].port), 30) as resting,
    ):
        resting.sendall(b"x" * 1000)
        assert resting.recv(1000)
        watch = Terminal(user, "watch", "full", "idle")
        frame = watch.until(lambda frame: "█" in line_of(frame, "full", "aps") and "idle" in frame)
        for uid in ("full", "idle"):
            for side in ("producer", "consumer"):
                assert "ACTIVE" in line_of(frame, uid, side)
        assert "0 B/s" in watch.until(lambda frame: " 0 B/s" in line_of(frame, "idle", "alcf"))
        assert max(map(len, frame.splitlines())) <= 100

        status = told(user, "full", lambda s: all(s[side]["traffic"]["bytes_per_s"] > 10**6 for side in _SIDES))
        for side in _SIDES:
            traffic = status[side]["traffic"]
            assert traffic["peak_bytes_per_s"] >= traffic["bytes_per_s"]
            assert traffic["lan_congestion_window"] > 10_000
            assert traffic["wan_congestion_window"] > 10_000
            assert traffic["wan_rtt_us"] > 0
            assert (traffic["connections_open"], traffic["connections_total"]) == (1, 1)
            assert status[side]["since"] < status[side]["deadline"]
        status = told(user, "idle", lambda s: all(s[side]["traffic"]["bytes_from_consumer"] == 1000 for side in _SIDES))
        assert [status[side]["traffic"]["connections_open"] for side in _SIDES] == [1, 1]

        for columns in (80, 120):
            for command in (("list",), ("status", "full"), ("verify", "full"), ("list", "--all")):
                shown = user.s2uc(*command, COLUMNS=str(columns)).stdout
                assert "full" in shown or command[0] == "verify"
                assert max(map(len, shown.splitlines())) <= columns
                assert "\x1b" not in shown
        shown = user.s2uc("list", COLUMNS="80").stdout.splitlines()
        assert "STATE" in shown[0]
        assert "RATE" in shown[0]
        assert "CIPHER" not in shown[0]
        coloured, plain = Terminal(user, "list"), Terminal(user, "list", NO_COLOR="1")
        assert (coloured.end(), plain.end()) == (0, 0)
        assert "\x1b[32m" in coloured.output
        assert "\x1b" not in plain.output

        # A proxy dies: said on the screen, in the status, and in the log with its own last words.
        proxies = [p for p in running.aps.proxies() if p.cwd() == proxy_directory(running, "full")]
        min(proxies, key=lambda process: process.create_time()).kill()
        watch.until(lambda frame: "its proxy was restarted once" in " ".join(frame.split()))
        status = told(user, "full", lambda s: s["producer"]["restarts"] == 1 and s["producer"]["state"] == "ACTIVE")
        assert "was ended by SIGKILL" in status["producer"]["last_death"]
        assert status["consumer"]["restarts"] == 0
        words = user.s2uc("logs", "full", "--gateway", "aps").stdout
        assert re.search(r"RECOVERING  \w+ was ended by SIGKILL", words), words

        # S2CS of one side ends and comes again: said, and the streams go on.
        running.alcf.stop(signal.SIGKILL)
        watch.until(lambda frame: "gateway alcf has not answered since" in frame and "ACTIVE" in frame)
        running.alcf.start()
        watch.until(lambda frame: "has not answered" not in frame and "ACTIVE" in line_of(frame, "idle", "alcf"))
        resting.sendall(b"still here")
        assert resting.recv(100) == b"still here"
        stream.close()
        user.s2uc("release", "full")
        watch.until(lambda frame: "RELEASED" in line_of(frame, "full", "aps") and "ACTIVE" in line_of(frame, "idle"))
        user.s2uc("release", "idle")
        assert watch.end() == 0
        assert watch.output.count("\x1b[?1049h") == watch.output.count("\x1b[?1049l") == 1
        last = watch.output.rpartition("\x1b[?25h\x1b[?1049l")[2]  # is left on the terminal
        assert "RELEASED" in line_of(_ESCAPES.sub("", last), "idle", "alcf")


_SIDES = ("producer", "consumer")


def proxy_directory(running: Facilities, uid: str) -> str:
    """Where the producer's proxy of a session runs."""
    found = [p for p in running.aps.tunnels.glob("*/tunnel.json") if json.loads(p.read_text())["uid"] == uid]
    return str(found[0].parent)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_terminal_is_given_back(running: Facilities, number: int) -> None:
    with echo() as producer, session(running.user, producer, "short"):
        watch = Terminal(running.user, "watch", columns=80)
        watch.until(lambda frame: "ACTIVE" in line_of(frame, "short", "alcf"))
        assert watch.end(number) == 128 + number
        assert watch.output.count("\x1b[?1049h") == watch.output.count("\x1b[?25h\x1b[?1049l") == 1
        dumb = Terminal(running.user, "watch", "short", TERM="dumb")
        while "ACTIVE" not in dumb.output:
            assert dumb._read(30), dumb.output
        assert dumb.end(number) == 128 + number
        assert "\x1b" not in dumb.output


def test_lines_of_several_sessions_live_through_a_restart(running: Facilities) -> None:
    user = running.user
    with echo() as producer, session(user, producer, "one"), session(user, producer, "two"):
        plain, programs = (
            user.start("watch", "one", "two", "--every", "1s"),
            user.start("watch", "one", "two", "--json"),
        )
        follow = user.start("logs", "one", "--follow", "--gateway", "aps")
        assert plain.stdout
        assert plain.stderr
        assert programs.stdout
        assert follow.stdout
        for _ in range(4):
            assert "ACTIVE" in plain.stdout.readline()
            assert json.loads(programs.stdout.readline())["session"]["state"] == "ACTIVE"
        assert "REQUESTED" in follow.stdout.readline()
        running.aps.stop(signal.SIGKILL)
        running.aps.start()
        user.s2uc("release", "two")
        user.s2uc("release", "one")
        shown, errors = plain.stdout.read(), plain.stderr.read()
        assert plain.wait(60) == 0
        assert {uid for uid in ("one", "two") if re.search(rf"{uid} .*RELEASED", shown)} == {"one", "two"}
        assert re.search(r"one  aps +producer  ACTIVE +0 open, 0 B/s, 0 B from the producer", shown), shown
        assert "does not answer; trying again" in errors
        assert "answers again" in errors
        ends = [json.loads(line)["session"] for line in programs.stdout.read().splitlines()]
        assert programs.wait(60) == 0
        released = {(end["uid"], end["role"]) for end in ends if end["state"] == "RELEASED"}
        assert released == {(uid, role) for uid in ("one", "two") for role in ("PROD", "CONS")}
        shown = follow.stdout.read()
        assert follow.wait(60) == 0
        for process in (plain, programs, follow):
            for stream in (process.stdout, process.stderr):
                assert stream
                stream.close()
        states = re.findall(r"^aps  \S+ \S+  ([A-Z]+)", shown, re.MULTILINE)
        assert states == ["RESERVED", "ANNOUNCED", "STARTING", "ACTIVE", "CLOSING", "RELEASED"]


def test_a_session_that_has_ended_at_one_gateway_alone(running: Facilities) -> None:
    user = running.user
    with echo() as producer, session(user, producer, "halved"):
        assert "it has ended at" not in user.s2uc("status", "halved").stderr
        kill = ("sessions", "kill", "halved", "--config", running.aps.config)
        subprocess.run([sys.executable, "-m", "s2cs", *kill], check=True, capture_output=True)
        told(user, "halved", lambda status: status["producer"]["state"] == "RELEASED")
        said = user.s2uc("status", "halved")
        assert "RELEASED/ACTIVE" in said.stdout
        assert "it has ended at aps; give back what alcf holds: s2uc release halved" in said.stderr


def test_logs_outlive_the_session_and_hold_no_secret(running: Facilities) -> None:
    user = running.user
    with echo() as producer, session(user, producer, "logged") as listeners:
        with socket.create_connection((listeners[0].host, listeners[0].port), 30) as connection:
            connection.sendall(b"x")
            assert connection.recv(1)
        before = user.json("logs", "logged")
        keys = [path.read_text() for path in running.aps.tunnels.rglob("key.pem")]
    after = user.json("logs", "logged", "--lines", "1000")
    assert [one["gateway"] for one in before["gateways"]] == ["aps", "alcf"]
    for one in after["gateways"]:
        assert [change["state"] for change in one["changes"]][-2:] == ["CLOSING", "RELEASED"]
        assert one["changes"][-1]["reason"] == "released by its user"
        assert one["lines"]
        assert one["printed"] == len(one["lines"])
    assert keys
    everything = json.dumps(after)
    secrets = [running.aps.token, running.alcf.token, *(key.splitlines()[1] for key in keys), "PRIVATE KEY"]
    assert not [secret for secret in secrets if secret in everything]
    assert user.json("logs", "logged", "--lines", "0")["gateways"][0]["lines"] == []
    assert "is not known at" in user.complaint("logs", "never-was", expect=5)


def test_verify_says_what_is_wrong(running: Facilities) -> None:
    user = running.user
    with echo() as producer, session(user, producer, "sound", 2) as listeners:
        good = user.json("verify", "sound")
        assert good["ok"]
        assert {leg["kind"] for leg in good["legs"]} == {"listener", "application", "handshake", "stranger"}
        (shown,) = {json.dumps(leg["certificate"]) for leg in good["legs"] if leg["kind"] == "handshake"}
        assert json.loads(shown)["names"][0] == "prod.sound.scistream.internal"
        accepted = producer.accepted
        with streaming(listeners[0]):
            told(user, "sound", lambda s: s["consumer"]["traffic"]["connections_open"] == 1)
            legs = user.json("verify", "sound", "--passive")["legs"]
            assert {leg["note"] for leg in legs if leg["kind"] == "handshake"} == {
                "a running stream shows it",
                "our certificate was not tried",
            }
        assert producer.accepted == accepted + 1
    with session(user, Endpoint("127.0.0.1", 9), "deaf"):
        bad = user.json("verify", "deaf", expect=1)
        faults = {leg["kind"]: leg["fault"] for leg in bad["legs"] if not leg["ok"]}
        assert faults["application"] == "connection refused; start the application, or have it listen there"
        assert "look at the producer's legs" in faults["handshake"]
        assert "FAULT" in user.s2uc("verify", "deaf", expect=1).stdout
    assert "verify it while it is ACTIVE" in user.complaint("verify", "sound", expect=1)
    assert "no session" in user.complaint("verify", "never-was", expect=5)


def test_a_gateway_that_is_silent_hangs_nothing(running: Facilities, tmp_path: Path) -> None:
    """It accepts, and says nothing: the other's sessions are drawn all the same, and Ctrl-C works."""
    with socket.create_server(("127.0.0.1", 0)) as silent, echo() as producer:
        user = User(tmp_path / "user")
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with session(running.user, producer, "beside"):
            for name, at, token in (("aps", running.aps.address, running.aps.token), ("mute", address, "t")):
                ca = str(running.aps.directory / "certs" / "ca.crt")
                words = ("gateway", "add", name, at, "--ca", ca, "--token-file", "-", "--no-check")
                user.s2uc(*words, stdin=token)
            follow = user.start("logs", "beside", "--follow", "--lines", "0", "--timeout", "2s")
            watch = Terminal(user, "watch")
            watch.until(lambda frame: "ACTIVE" in line_of(frame, "beside", "aps"))
            watch.until(lambda frame: "gateway mute has not answered since" in frame)
            assert watch.end(signal.SIGINT) == 130
        shown, errors = follow.communicate(timeout=60)
        assert "RELEASED" in shown
        assert "gateway mute" in errors
        assert follow.returncode == 4


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_wide_area_network_with_delay_and_loss(tmp_path: Path) -> None:
    """What status tells of the WAN is what the wire between two namespaces was made to be."""
    try:
        with two_sites(Wire(100, 0.001), tmp_path) as place, two_gateways(place) as (near, far):
            _see_the_wire(place, bench_gateways.User(tmp_path / "user", near, far))
    except Missing as error:
        pytest.skip(str(error))


def _see_the_wire(place: Place, user: bench_gateways.User) -> None:
    with place.producer.inside():
        server = socket.create_server((place.producer.address, 0))
    with server:
        target = f"{place.producer.address}:{server.getsockname()[1]}"
        words = ("request", "--producer", "a", "--consumer", "b", "--uid", "far", "--prod-listeners", target, "--json")
        made = json.loads(user.run(*words))
        to = Endpoint.parse(made["consumer"]["listeners"][0])
        with place.consumer.inside():
            consumer = socket.create_connection((to.host, to.port), 30)
        accepted, _ = server.accept()
        ended = time.monotonic() + 12
        reading = threading.Thread(target=lambda: [None for _ in iter(lambda: consumer.recv(1 << 20), b"")])
        reading.start()
        seen = {}
        with accepted:
            while time.monotonic() < ended:
                accepted.sendall(bytes(1 << 20))
                if time.monotonic() > ended - 4 and not seen:
                    seen = json.loads(user.run("status", "far", "--json"))
            accepted.shutdown(socket.SHUT_WR)
        reading.join(120)
        consumer.close()
        traffic = seen["producer"]["traffic"]
        assert traffic["wan_rtt_us"] >= 100_000 > traffic["lan_rtt_us"]
        assert traffic["wan_retransmitted"] > 0
        assert traffic["wan_congestion_window"] > 100_000
        assert traffic["peak_bytes_per_s"] >= traffic["bytes_per_s"] > 0
        legs = json.loads(user.run("verify", "far", "--passive", "--json"))["legs"]
        took = [leg["elapsed_ms"] for leg in legs if leg["kind"] == "handshake"]
        assert min(took) >= 200  # a round trip for TCP, and one for TLS 1.3
        user.run("release", "far")
