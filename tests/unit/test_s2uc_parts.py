"""Parts of s2uc that need no gateway: terms, placeholders, running an application, frames."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from s2uc.app import Way, run
from s2uc.frames import Amount, BadFrame, Producer, check, check_stream, pack
from s2uc.gateway import Gateway
from s2uc.saga import OpenSide, Plan
from s2uc.session import Session
from s2uc.side import Step, StepEvent, Terms, new_key, new_uid
from scistream.errors import InvalidArgument
from scistream.vocabulary import Endpoint, Role, Uid

_APS, _ALCF = Gateway("aps", Endpoint("a.example", 1)), Gateway("alcf", Endpoint("b.example", 1))
_WAY = Way(Uid("u"), Role.CONS, (Endpoint("127.0.0.1", 5), Endpoint("::1", 6)))


@pytest.mark.parametrize("num_conn", [0, -1, 65536, 10**12])
def test_num_conn(num_conn: int) -> None:
    with pytest.raises(InvalidArgument, match="num_conn"):
        Terms(num_conn=num_conn)


def test_plans() -> None:
    plan = Plan(_APS, _ALCF, Terms())
    assert set(plan.keys) == set(Role)
    assert len(set(plan.keys.values()) | {new_key()}) == 3
    assert all(len(key) >= 43 for key in plan.keys.values())
    assert not any(key in repr(plan) for key in plan.keys.values())
    assert new_uid() != new_uid()
    with pytest.raises(InvalidArgument, match="one gateway for each side"):
        Plan(_APS, replace(_ALCF, endpoint=_APS.endpoint), Terms())


def test_what_request_prints() -> None:
    listeners, targets = (Endpoint("1.2.3.4", 5),), (Endpoint("::1", 6),)
    end = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    session = Session(Uid("u"), end, OpenSide(_APS, listeners, targets), OpenSide(_ALCF, targets, listeners), {})
    assert session.as_dict() == {
        "uid": "u",
        "state": "ACTIVE",
        "expires_at": "2030-01-02T03:04:05+00:00",
        "producer": {"gateway": "aps", "listeners": ["1.2.3.4:5"], "targets": ["[::1]:6"]},
        "consumer": {"gateway": "alcf", "listeners": ["[::1]:6"]},
    }


def test_a_step_is_a_line() -> None:
    line = str(StepEvent(Step.UPDATE_TARGETS, Role.PROD, "aps", 0.0123, "to x"))
    assert line.split() == ["12.3", "ms", "PROD", "aps", "UpdateTargets", "to", "x"]


def test_placeholders() -> None:
    assert _WAY.fill(["{listener}", "a={listener0},{listener1}", "{", "{listenerX}", "{}"]) == [
        *("127.0.0.1:5", "a=127.0.0.1:5,[::1]:6", "{", "{listenerX}", "{}")
    ]
    with pytest.raises(InvalidArgument, match="counted from 0"):
        _WAY.fill(["{listener2}"])
    assert _WAY.environment()["SCISTREAM_LISTENERS"] == "127.0.0.1:5,[::1]:6"


def test_running_a_command(capfd: pytest.CaptureFixture[str]) -> None:
    program = "import os, sys; print(os.environ['SCISTREAM_UID'], os.environ['SCISTREAM_ROLE'], sys.argv[1])"
    assert run([sys.executable, "-c", program, "{listener1}"], _WAY) == 0
    assert capfd.readouterr().out == "u CONS [::1]:6\n"
    assert run([sys.executable, "-c", "raise SystemExit(3)"], _WAY) == 3
    assert run([sys.executable, "-c", f"import os; os.kill({os.getpid()}, 0); os.abort()"], _WAY) == 134
    assert run(["no-such-program-here"], _WAY) == 127
    assert run(["/"], _WAY) == 126


def test_a_signal_that_the_system_gives_to_another_thread_is_passed_on(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ready")
    ended = threading.Event()

    def elsewhere() -> None:
        (tmp_path / "ready").read_bytes()
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        ended.wait(10)

    program = (
        "import os, signal, sys; signal.signal(10, lambda *_: os._exit(7)); open(sys.argv[1], 'w'); signal.pause()"
    )
    thread = threading.Thread(target=elsewhere)
    thread.start()
    assert run([sys.executable, "-c", program, str(tmp_path / "ready")], _WAY) == 7
    ended.set()
    thread.join(10)


_SMALL = Amount(frames=7, rows=4, cols=8)


def test_frames_arrive() -> None:
    producer = Producer(2, _SMALL)
    sent: list[int] = []
    threads = [threading.Thread(target=lambda i=i: sent.append(producer.serve(i))) for i in range(2)]
    for thread in threads:
        thread.start()
    tallies = [check(producer.listeners[i], i, 2) for i in range(2)]
    for thread in threads:
        thread.join(10)
    producer.close()
    assert [tally.frames for tally in tallies] == [4, 3]
    assert sorted(sent) == [3, 4]


def _frame(sequence: int, payload: bytes = bytes(64), channel: int = 0, crc: int | None = None) -> bytes:
    import zlib

    return pack(1, channel, 4, 8, sequence, zlib.crc32(payload) if crc is None else crc) + payload


_END = pack(2, 0, 0, 0, 1, 0)


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (_frame(0) + _frame(2) + _END, "frame 2 came and 1 was due"),
        (_frame(1), "frame 1 came and 0 was due"),
        (_frame(0) + _frame(0), "frame 0 came and 1 was due"),
        (_frame(0, crc=1), "is damaged"),
        (_frame(0)[:-1], "breaks off after 0 frames"),
        (_frame(0), "breaks off after 1 frames"),
        (_END, "had 1 frames and 0 came"),
        (_frame(0, channel=3), "a frame of channel 3"),
        (b"x" * 100, "something else than a header"),
        (bytes([*_frame(0)[:10], 9, *_frame(0)[11:]]), "something else than a header"),
    ],
)
def test_bad_frames_are_found(stream: bytes, words: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(stream)
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(BadFrame, match=words):
            check_stream(theirs, 0, 1)


def test_a_good_stream() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(_frame(0) + _END)
        assert check_stream(theirs, 0, 1).frames == 1
