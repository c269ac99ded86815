"""The app controller: applications that say Hello themselves, as processes with nothing but a key file."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ports import port_block
from tests.support.sessions import Echo, echo
from tests.support.user import Facilities, User, facilities

_PRODUCER = """
import os, socket, sys
host, port = os.environ["SCISTREAM_LISTENERS"].split(",")[0].rsplit(":", 1)
assert sys.argv[1] == f"{host}:{port}" == sys.argv[2], sys.argv
assert os.environ["SCISTREAM_ROLE"] == "PROD"
server = socket.create_server((host, int(port)))
print("listening", flush=True)
connection, _ = server.accept()
connection.sendall(b"frame " * 100_000 + os.environ["SCISTREAM_UID"].encode())
connection.close()
"""
_CONSUMER = """
import contextlib, os, socket, sys, time
host, port = sys.argv[1].rsplit(":", 1)
assert os.environ["SCISTREAM_LISTENERS"].split(",")[0] == sys.argv[1]
data = b""
while not data:  # both are started when the way is open: the producer may not listen yet
    with contextlib.suppress(ConnectionError), socket.create_connection((host, int(port))) as connection:
        data = b"".join(iter(lambda: connection.recv(65536), b""))
    time.sleep(0.05)
print(len(data), data[-36:].decode())
sys.exit(7)
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facilities]:
    with facilities(tmp_path_factory.mktemp("facilities")) as both:
        yield both


@pytest.fixture
def producer() -> Iterator[Echo]:
    with echo() as server:
        yield server


@pytest.fixture
def stranger(tmp_path: Path) -> User:
    """A batch job: somebody with no configuration at all."""
    return User(tmp_path / "nothing")


def _waiting(running: Facilities, keys: Path) -> tuple[subprocess.Popen[str], str]:
    """Start a request that waits for its producer; gives it and its uid."""
    request = running.user.start(
        "request", "--producer", "aps", "--consumer", "alcf", "--key-dir", str(keys), "--json", "--num-conn", "2"
    )
    deadline = time.monotonic() + 30
    while len(found := sorted(keys.glob("*.key"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return request, found[0].name.split(".")[0]


def _open(running: Facilities, producer: Echo, *more: str) -> str:
    request = ("request", "--producer", "aps", "--consumer", "alcf", "--prod-listeners", str(producer.endpoint))
    return str(running.user.json(*request, *more)["uid"])


def test_both_applications_with_key_files(running: Facilities, stranger: User, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    request, uid = _waiting(running, keys)
    port = port_block()
    consumer = stranger.start(
        *("run", "--role", "consumer", "--key-file", str(keys / f"{uid}.consumer.key"), uid),
        *("--", sys.executable, "-c", _CONSUMER, "{listener}"),
    )
    producer = stranger.start(
        *("run", "--role", "PROD", "--listeners", f"127.0.0.1:{port}"),
        *("--key-file", str(keys / f"{uid}.producer.key"), uid),
        *("--", sys.executable, "-c", _PRODUCER, "{listener}", "{listener0}"),
    )
    seen, errors = consumer.communicate(timeout=60)
    assert seen.split() == ["600036", uid], errors
    assert consumer.returncode == 7
    assert producer.communicate(timeout=60)[0] == "listening\n"
    assert producer.returncode == 0
    assert request.wait(30) == 0
    request.communicate()
    assert not stranger.config.exists()
    running.user.s2uc("release", uid)
    assert running.left() == {}


def test_hello_by_its_owner_from_another_terminal(running: Facilities, producer: Echo, tmp_path: Path) -> None:
    request, uid = _waiting(running, tmp_path)
    said = running.user.json("hello", uid, "--role", "producer", "--listeners", str(producer.endpoint))
    assert said["role"] == "PROD"
    assert request.wait(30) == 0
    request.communicate()
    heard = running.user.json("hello", uid, "--role", "consumer")
    assert heard["state"] == "ACTIVE"
    assert heard["listeners"] == running.user.json("status", uid)["consumer"]["listeners"]
    running.user.s2uc("release", uid)


def test_keys_open_their_own_side_only(running: Facilities, stranger: User, tmp_path: Path) -> None:
    request, uid = _waiting(running, tmp_path)
    key = tmp_path / f"{uid}.consumer.key"
    hello = ("hello", uid, "--key-file", str(key), "--role")
    assert "the CONS side" in stranger.complaint(*hello, "producer", "--listeners", "127.0.0.1:5000", expect=2)
    stranger.s2uc(*hello, "consumer")
    bare = tmp_path / "bare.key"
    found = re.search(r'"key": "([^"]+)"', key.read_text())
    assert found
    bare.write_text(found[1] + "\n")
    bare.chmod(0o600)
    with_bare = ("hello", uid, "--role", "consumer", "--key-file", str(bare), "--gateway", "alcf")
    running.user.s2uc(*with_bare)
    bare.write_text("wrong\n")
    running.user.complaint(*with_bare, expect=3)
    key.chmod(0o644)
    assert "chmod 600" in stranger.complaint(*hello, "consumer", expect=2)
    request.send_signal(signal.SIGINT)
    assert request.wait(30) == 130
    request.communicate()
    assert running.left() == {}


def test_exit_statuses_are_passed_on(running: Facilities, producer: Echo) -> None:
    user = running.user
    uid = _open(running, producer)
    run = ("run", "--role", "consumer", uid, "--")
    assert user.s2uc(*run, sys.executable, "-c", "print('to stdout')").stdout == "to stdout\n"
    user.s2uc(*run, sys.executable, "-c", "raise SystemExit(42)", expect=42)
    user.s2uc(*run, sys.executable, "-c", "import os; os.kill(os.getpid(), 9)", expect=137)
    assert "cannot be started" in user.s2uc(*run, "no-such-program-here", expect=127).stderr
    assert "counted from 0" in user.s2uc(*run, "echo", "{listener9}", expect=2).stderr
    assert user.s2uc(*run, "echo", "{json} {listener", "--json").stdout == "{json} {listener --json\n"
    # A producer that its user has announced already need not say where it listens.
    out = user.s2uc("run", "--role", "producer", uid, "--", "printenv", "SCISTREAM_LISTENERS").stdout
    assert out.strip() == str(producer.endpoint)
    user.s2uc("release", uid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on(running: Facilities, producer: Echo, number: signal.Signals) -> None:
    uid = _open(running, producer)
    program = "import time; print('up', flush=True); time.sleep(60)"
    process = running.user.start("run", "--role", "consumer", uid, "--", sys.executable, "-c", program)
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    process.send_signal(number)
    process.communicate(timeout=30)
    # Python ends an interrupted program by the signal itself, too.
    assert process.returncode == 128 + number
    running.user.s2uc("release", uid)


def _hellos(running: Facilities, uid: str) -> int:
    """Count what was said to the consumer's gateway for a session."""
    (file,) = (running.alcf.directory / "state" / "audit").glob("*.jsonl")
    return sum('"call.hello"' in line and uid in line for line in file.read_text().splitlines())


def test_run_ends_with_the_session_it_waits_for(running: Facilities, tmp_path: Path) -> None:
    request, uid = _waiting(running, tmp_path)
    waiting = running.user.start("run", "--role", "consumer", uid, "--", "true")
    deadline = time.monotonic() + 30
    while _hellos(running, uid) < 2:  # the request has said it, too; then it waits
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.user.s2uc("release", uid)
    assert waiting.wait(30) == 1
    assert "has ended" in waiting.communicate()[1]
    assert request.wait(30) == 1
    assert "has ended" in request.communicate()[1]
    assert running.left() == {}


def test_run_waits_no_longer_than_told(running: Facilities, tmp_path: Path) -> None:
    request, uid = _waiting(running, tmp_path)
    message = running.user.complaint("--timeout", "1s", "run", "--role", "consumer", uid, "--", "true", expect=4)
    assert "not open after 1 s" in message
    request.terminate()
    assert request.wait(30) == 143
    request.communicate()
    assert running.left() == {}
