"""The control server is killed in the middle of whatever it does: the next one takes up, or clears away."""

from __future__ import annotations

import random
import signal
import threading
import time
from pathlib import Path

import grpc
import pytest

from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Uid
from scistream.x509 import SessionCA
from tests.support.gateways import gateway
from tests.support.sessions import echo, exchange, in_an_hour, open_pair

BACKENDS = ["stunnel", "haproxy", "nginx"]


def run(tmp_path: Path, rounds: int, seed: int) -> None:
    chance = random.Random(seed)
    with (
        echo() as app,
        gateway(tmp_path / "c") as consumer,
        gateway(tmp_path / "p", SCISTREAM_SERVER__ON_SHUTDOWN="keep") as producer,
        consumer.client() as c,
    ):
        for number in range(rounds):
            stop = threading.Event()

            def busy(number: int = number, stop: threading.Event = stop) -> None:
                """Open, renew and release, until the server is gone."""
                with producer.client() as p:
                    while not stop.is_set():
                        try:
                            session = open_pair(p, c, [str(app.endpoint)], 2, (BACKENDS[number % 3], "nginx"))
                            anchor = SessionCA.create(Uid(session.uid), in_an_hour()).certificate.der
                            p.renew(pb.Renew(uid=session.uid, lease_s=7200, trust_anchor=anchor), timeout=10)
                            if chance.random() < 0.7:
                                session.release()
                        except (grpc.RpcError, AssertionError):
                            time.sleep(0.01)

            worker = threading.Thread(target=busy)
            worker.start()
            time.sleep(chance.uniform(0, 0.4))
            producer.stop(signal.SIGKILL)
            stop.set()
            worker.join(60)
            producer.start()
            with producer.client() as p:
                for seen in p.list(pb.ListRequest()).sessions:
                    assert seen.state not in ("REQUESTED", "RECOVERING", "EXPIRED"), seen
                    assert seen.state != "FAILED" or "interrupted" in seen.reason, seen.reason
                session = open_pair(p, c, [str(app.endpoint)], 1, (BACKENDS[number % 3], "nginx"))
                with session.connect() as connection:
                    exchange(connection, b"all is well")
                for client in (p, c):
                    for seen in client.list(pb.ListRequest()).sessions:
                        client.release(pb.Release(uid=seen.uid))
            assert producer.leftovers() == {}
            assert consumer.leftovers() == {}
        assert "Traceback" not in producer.log
        producer.environ.clear()


def test_a_few_times(tmp_path: Path) -> None:
    run(tmp_path, 3, 1)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_a_hundred_times(tmp_path: Path) -> None:
    run(tmp_path, 100, 2)
