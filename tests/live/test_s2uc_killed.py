"""S2UC is killed with -9 at each step of a request: the gateways' own time-outs clean up after it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from scistream.proto import scistream_pb2 as pb
from tests.support.gateways import GatewayProcess, gateway

KILLED = """
import os, signal, sys
from pathlib import Path
import s2uc
from scistream.vocabulary import Endpoint
at, uid, *sides = sys.argv[1:]
def on_step(event):
    if f"{event.role} {event.step}" == at:
        os.kill(os.getpid(), signal.SIGKILL)
gateways = [
    s2uc.Gateway(name, Endpoint.parse(address), Path(ca).read_bytes(), token)
    for name, address, ca, token in (side.split("|") for side in sides)
]
s2uc.request(*gateways, uid=uid, prod_listeners=["127.0.0.1:9"], num_conn=2, lease_s=4, on_step=on_step)
"""
STEPS = [f"{role} {step}" for step in ("REQ", "RESP", "Hello", "UpdateTargets", "ACTIVE") for role in ("PROD", "CONS")]
SHORT = {"SCISTREAM_LIMITS__HELLO_WAIT": "2", "SCISTREAM_LIMITS__UPDATE_WAIT": "2"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[GatewayProcess]]:
    directory = tmp_path_factory.mktemp("killed")
    with gateway(directory / "p", **SHORT) as producer, gateway(directory / "c", **SHORT) as consumer:
        yield [producer, consumer]


@pytest.mark.parametrize("step", STEPS)
def test_killed_at(pair: list[GatewayProcess], step: str) -> None:
    sides = [f"{g.directory.name}|{g.address}|{g.directory / 'certs' / 'ca.crt'}|{g.token}" for g in pair]
    for attempt in range(5):  # on a busy machine a session may end by the short waits before it is so far
        uid = f"{step.replace(' ', '-')}-{attempt}"
        done = subprocess.run([sys.executable, "-c", KILLED, step, uid, *sides], check=False, timeout=60)
        if done.returncode == -signal.SIGKILL:
            break
    assert done.returncode == -signal.SIGKILL
    for running in pair:
        with running.client() as client:
            for session in client.list(pb.ListRequest()).sessions:
                ends = [event.session.state for event in client.watch(pb.WatchRequest(uid=session.uid), timeout=30)]
                assert ends[-1] == "EXPIRED" or session.uid != uid
        assert running.leftovers() == {}
