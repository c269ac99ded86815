"""A hundred sessions with data on the move, and control servers that are killed under them."""

from __future__ import annotations

import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from scistream.proto import scistream_pb2 as pb
from tests.support.gateways import GatewayProcess, gateway
from tests.support.sessions import Opened, echo, open_pair
from tests.support.streams import Stream

pytestmark = pytest.mark.soak
BACKENDS = ["stunnel", "haproxy", "nginx"]
KEEP = {"SCISTREAM_SERVER__ON_SHUTDOWN": "keep"}


def states(running: GatewayProcess) -> dict[str, str]:
    with running.client() as client:
        return {s.uid: s.state for s in client.list(pb.ListRequest(), timeout=60).sessions}


@pytest.mark.timeout(900)
def test_no_stream_notices_ten_kills_of_both_control_servers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 100
    with (
        echo() as app,
        gateway(tmp_path / "p", blocks=2, **KEEP) as producer,
        gateway(tmp_path / "c", blocks=2, **KEEP) as consumer,
    ):
        mixed = [(BACKENDS[i % 3], BACKENDS[i // 3 % 3]) for i in range(count)]
        with producer.client() as p, consumer.client() as c, ThreadPoolExecutor(8) as pool:
            sessions = list(pool.map(lambda backends: open_pair(p, c, [str(app.endpoint)], 1, backends), mixed))
        streams = [Stream(session.connect()) for session in sessions]
        for stream in streams:
            stream.start()
        took = []
        for _ in range(10):
            for running in (producer, consumer):
                running.stop(signal.SIGKILL)
                begin = time.monotonic()
                running.start()
                took.append(time.monotonic() - begin)
                assert list(states(running).values()) == ["ACTIVE"] * count
        for stream in streams:
            stream.ending.set()
        for stream in streams:
            stream.join(120)
        assert [stream.fault for stream in streams if stream.fault] == []
        assert app.accepted == count  # no stream was made anew
        with capsys.disabled():
            print(
                f"\n{count} sessions, {sum(s.blocks for s in streams)} blocks of 16 kB each way; "
                f"start to first answer with {count} to adopt: median {sorted(took)[len(took) // 2]:.2f} s"
            )
        release_all(sessions, producer, consumer)


def release_all(sessions: list[Opened], *gateways: GatewayProcess) -> None:
    for running in gateways:
        with running.client() as client, ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda session: client.release(pb.Release(uid=session.uid), timeout=60), sessions))
        assert running.leftovers() == {}


@pytest.mark.timeout(600)
def test_proxies_that_are_killed_at_random_come_back(tmp_path: Path) -> None:
    """Listeners never refuse; each session is back, or FAILED with a reason; nothing leaks."""
    chance = random.Random(7)
    with (
        echo() as app,
        gateway(tmp_path / "p", **KEEP) as producer,
        gateway(tmp_path / "c", **KEEP) as consumer,
        producer.client() as p,
        consumer.client() as c,
        ThreadPoolExecutor(8) as pool,
    ):
        backends = [(BACKENDS[i % 3], BACKENDS[i // 3 % 3]) for i in range(12)]
        sessions = list(pool.map(lambda pair: open_pair(p, c, [str(app.endpoint)], 2, pair), backends))
        refused = 0
        end = time.monotonic() + 60
        while time.monotonic() < end:
            victim = chance.choice([*producer.proxies(), *consumer.proxies()])
            with suppress(psutil.NoSuchProcess):  # it may go with the one before
                victim.kill()
            live = {uid for uid, state in states(consumer).items() if state in ("ACTIVE", "RECOVERING")}
            for session in chance.sample(sessions, 4):
                if session.uid in live:
                    try:
                        session.connect(chance.randrange(2)).close()
                    except ConnectionRefusedError:
                        # Only a session that failed between the two looks may refuse.
                        refused += states(consumer)[session.uid] not in ("FAILED", "CLOSING")
            time.sleep(chance.uniform(0, 1))
        assert refused == 0
        deadline = time.monotonic() + 60
        while any(state == "RECOVERING" for r in (producer, consumer) for state in states(r).values()):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        for client in (p, c):
            for session in client.list(pb.ListRequest()).sessions:
                assert session.state in ("ACTIVE", "FAILED")
                assert session.state == "ACTIVE" or session.reason
        release_all(sessions, producer, consumer)
