"""What fails or is interrupted leaves nothing: not at the other gateway, not on file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import s2uc
from scistream.errors import DeadlineExceeded, ResourceExhausted, Unauthenticated, Unavailable
from tests.support.gateways import gateway
from tests.support.sessions import Echo, echo
from tests.support.user import Facilities, User, facilities, introduce, known


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facilities]:
    """The consumer's gateway gives two connections a session."""
    with facilities(tmp_path_factory.mktemp("facilities"), SCISTREAM_LIMITS__NUM_CONN="2") as both:
        yield both


@pytest.fixture
def producer() -> Iterator[Echo]:
    with echo() as server:
        yield server


_REQUEST = ("request", "--producer", "aps", "--consumer", "alcf")


def _nothing(running: Facilities, user: User | None = None) -> None:
    assert running.left() == {}
    assert running.user.json("list")["sessions"] == []
    assert (user or running.user).records() == []


def test_the_consumers_gateway_refuses(running: Facilities, producer: Echo) -> None:
    request = (*_REQUEST, "--prod-listeners", str(producer.endpoint), "--num-conn", "3")
    message = running.user.complaint(*request, expect=6)
    assert message.startswith("s2uc: gateway alcf: ")
    _nothing(running)
    # Also while the producer's side would wait for its application.
    running.user.complaint(*_REQUEST, "--num-conn", "3", expect=6)
    _nothing(running)


def test_the_consumers_gateway_refuses_at_the_last_step(tmp_path: Path, producer: Echo) -> None:
    with facilities(tmp_path, SCISTREAM_POLICY__PEERS='["192.0.2.0/24"]') as both:
        both.user.complaint(*_REQUEST, "--prod-listeners", str(producer.endpoint), expect=3)
        _nothing(both)


def test_the_consumers_gateway_is_gone(running: Facilities, tmp_path: Path, producer: Echo) -> None:
    user = User(tmp_path / "config")
    introduce(user, "aps", running.aps)
    with gateway(tmp_path / "gone") as gone:
        introduce(user, "alcf", gone)
    message = user.complaint(*_REQUEST, "--prod-listeners", str(producer.endpoint), expect=4)
    assert "refused" in message
    assert running.left() == {}
    # The gateway that could not be reached might hold something, for all that is known: it stays on file.
    (uid,) = user.records()
    user.complaint("release", uid, expect=4)


async def test_the_library_undoes_and_says_so(running: Facilities, producer: Echo) -> None:
    aps, alcf = running.gateways()
    steps: list[s2uc.StepEvent] = []
    with pytest.raises(ResourceExhausted):
        await s2uc.aio.request(aps, alcf, prod_listeners=[producer.endpoint], num_conn=3, on_step=steps.append)
    assert [(event.gateway, event.step) for event in steps if event.step is s2uc.Step.UNDONE] == [("aps", "undone")]
    with pytest.raises(Unauthenticated):
        await s2uc.aio.request(aps, known("alcf", running.alcf, "wrong"), prod_listeners=[producer.endpoint])
    with pytest.raises(DeadlineExceeded, match="has not said Hello"):
        await s2uc.aio.request(aps, alcf, hello_timeout=0.2)
    elsewhere = s2uc.Gateway("alcf", producer.endpoint, alcf.ca_pem, alcf.token)
    with pytest.raises(Unavailable, match="plain-text service"):
        await s2uc.aio.request(aps, elsewhere, prod_listeners=[producer.endpoint], timeout=2)
    _nothing(running)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(running: Facilities, tmp_path: Path, number: int, status: int) -> None:
    process = running.user.start(*_REQUEST, "--key-dir", str(tmp_path / "keys"), "--verbose")
    _read_until(process, "RESP", "RESP")
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == status
    assert errors.count("undone") == 2
    assert errors.splitlines()[-1] in ("s2uc: interrupted", "s2uc: terminated")
    assert list((tmp_path / "keys").glob("*")) == []
    _nothing(running)


@pytest.mark.parametrize("step", ["REQ", "Hello", "UpdateTargets"])
def test_interrupted_in_the_middle(running: Facilities, producer: Echo, step: str) -> None:
    process = running.user.start(*_REQUEST, "--prod-listeners", str(producer.endpoint), "--verbose")
    _read_until(process, step)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    if process.returncode == 0:  # it was faster than the signal
        running.user.s2uc("release", out.split()[1])
    else:
        assert process.returncode == 130, errors
    _nothing(running)


def _read_until(process: subprocess.Popen[str], *words: str) -> None:
    """Read progress lines until one with each of the words has come, in their order."""
    assert process.stderr
    for word in words:
        while True:
            line = process.stderr.readline()
            assert line, f"the process ended before it said {word}"
            if word in line:
                break


def test_a_waiting_program_is_interrupted(running: Facilities) -> None:
    program = (
        "import faulthandler, sys, s2uc\n"
        "faulthandler.dump_traceback_later(50)\n"  # should it hang, where
        "aps, alcf = (s2uc.known_gateway(name) for name in ('aps', 'alcf'))\n"
        "print('go', flush=True)\n"
        "try:\n"
        "    s2uc.request(aps, alcf, on_step=lambda event: print(event.step, flush=True))\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(9)\n"
    )
    environment = {**os.environ, "SCISTREAM_CONFIG_DIR": str(running.user.config)}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout
    while "Hello" not in (line := process.stdout.readline()):
        assert line
    process.send_signal(signal.SIGINT)
    try:
        out, errors = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"it did not end: {process.communicate()}") from None
    assert (process.returncode, errors) == (9, "")
    assert out.count("undone") == 2
    _nothing(running)
