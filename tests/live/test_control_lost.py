"""A control server whose port has closed under it ends, so that it can be started again; streams go on."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Endpoint
from scistream.wire import grpc
from tests.support import http2
from tests.support.gateways import GatewayProcess, gateway, restarted
from tests.support.http2 import END_HEADERS, END_STREAM, Connection, Type, frame
from tests.support.sessions import echo, exchange, open_pair

# With gRPC's server as it comes: one call of a name that is no text ends its loop, and it does not tell.
_UNGUARDED = """
import s2cs.unknown
from scistream.wire import grpc
s2cs.unknown.server = grpc.aio.server
import s2cs.cli
s2cs.cli.main()
"""


def test_a_lost_port_ends_the_control_server_and_no_stream(tmp_path: Path) -> None:
    keep = {"SCISTREAM_SERVER__ON_SHUTDOWN": "keep"}
    with gateway(tmp_path / "aps", **keep) as aps, gateway(tmp_path / "alcf") as alcf, echo() as app:
        aps.stop()
        serve = [sys.executable, "-c", _UNGUARDED, "serve", "--config", str(aps.config)]
        with (tmp_path / "log").open("w") as log:
            aps.process = subprocess.Popen(serve, stderr=log)
        _wait(aps)
        with aps.client() as producer, alcf.client() as consumer:
            session = open_pair(producer, consumer, [str(app.endpoint)], 1, ("nginx", "nginx"))
            with session.connect() as stream:
                with Connection(Endpoint.parse(aps.address), aps.ca) as attacker:
                    path = http2.header(b":path", b"/scistream.Control\x80hello")
                    block = http2.headers("hello", "").replace(
                        http2.header(b":path", b"/scistream.Control/hello"), path
                    )
                    attacker.send(frame(Type.HEADERS, END_HEADERS | END_STREAM, 1, block))
                    assert aps.process.wait(60) == 4
                last = (tmp_path / "log").read_text().splitlines()[-1]
                assert last.startswith(f"s2cs: control port {aps.address} closed by itself; streams go on")
                with restarted(aps):
                    exchange(stream, b"still there")
                    session.release()


def _wait(running: GatewayProcess) -> None:
    deadline = time.monotonic() + 60
    with running.client() as client:
        while True:
            try:
                client.describe(pb.DescribeRequest(), timeout=1)
                return
            except grpc.RpcError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
