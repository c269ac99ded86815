"""What an S2CS that follows answers; among others and on an etcd it is seen in tests/engines/test_replicas.py."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from s2cs.credentials import credentials_of
from s2cs.replicas.forwarder import Forwarder
from s2cs.replicas.identity import identity
from s2cs.settings_file import load
from scistream.proto import scistream_pb2 as pb
from scistream.proto.scistream_pb2_grpc import ControlStub
from scistream.wire import OWN_WORDS, grpc
from tests.support import programs
from tests.support.ports import port_blocks


async def test_where_a_leader_that_cannot_be_reached_is_stays_here(tmp_path: Path) -> None:
    """And the answer is not for the one that leads, so that the caller goes on to another S2CS."""
    with port_blocks() as first:
        programs.run("s2cs", "init", tmp_path / "g", "--port", first)
        settings = load(tmp_path / "g/s2cs.toml")
        settings.server.state_dir.mkdir(exist_ok=True)
        own = identity(settings.server.state_dir)
        leader = own.about | {"address": f"127.0.0.1:{first + 9}", "serving": "yes"}
        forwarder = Forwarder(settings, own, lambda: leader, lambda: "")
        await forwarder.start(credentials_of(settings))
        ca = grpc.ssl_channel_credentials((tmp_path / "g/certs/ca.crt").read_bytes())
        async with grpc.aio.secure_channel(f"127.0.0.1:{first}", ca) as channel:
            for ask in (ControlStub(channel).list(pb.ListRequest(), timeout=1), _first(channel)):
                with pytest.raises(grpc.aio.AioRpcError) as fault:
                    await ask
                assert fault.value.code() is grpc.StatusCode.UNAVAILABLE
                assert fault.value.details() == "the S2CS that leads does not answer; ask again"
                assert OWN_WORDS not in dict(fault.value.trailing_metadata() or ())
        await forwarder.stop(0)


async def test_one_that_could_not_lead_does_not_begin_to_follow(tmp_path: Path) -> None:
    """As with a copy of the other one's settings: that would be seen when the other one dies."""
    with port_blocks() as first:
        programs.run("s2cs", "init", tmp_path / "g", "--port", first)
        config, bundle, other = tmp_path / "g/s2cs.toml", tmp_path / "n1.toml", "192.0.2.1:5002"
        programs.run("s2cs", "nodes", "add", "n1", f"127.0.0.1:{first + 9}", "--bundle", bundle, "--config", config)
        shared = {"SCISTREAM_STORE__ETCD": f"['127.0.0.1:{first + 8}']", "SCISTREAM_STORE__LISTEN": other}
        run = programs.run("s2cs", "serve", "--config", config, **shared, SCISTREAM_S2DS__LOCAL="false", timeout=30)
        assert run.returncode == 4
        assert f"other S2CS cannot be served on {other}" in run.stderr


def test_settings_are_taken_anew_while_the_store_cannot_be_reached(tmp_path: Path) -> None:
    """They may be what keeps it from being reached."""
    with port_blocks() as first:
        programs.run("s2cs", "init", tmp_path / "g", "--port", first)
        config, bundle, log = tmp_path / "g/s2cs.toml", tmp_path / "n1.toml", tmp_path / "log"
        programs.run("s2cs", "nodes", "add", "n1", f"127.0.0.1:{first + 9}", "--bundle", bundle, "--config", config)
        shared = f'[store]\netcd = ["127.0.0.1:{first + 8}"]\nlisten = "127.0.0.1:{first + 7}"\n'
        config.write_text(config.read_text().replace("[s2ds]\n", "[s2ds]\nlocal = false\n", 1) + shared)
        command = [sys.executable, "-m", "s2cs", "serve", "--config", config]
        with log.open("wb") as out, subprocess.Popen(command, stderr=out) as serving:
            try:
                for times in (1, 2):
                    _until(lambda: log.read_text().count("for the S2CS that leads") == times, serving)  # noqa: B023
                    serving.send_signal(signal.SIGHUP)
                _until(lambda: log.read_text().count("for the S2CS that leads") == 3, serving)
            finally:
                serving.terminate()
        assert serving.returncode == 0
        assert "Traceback" not in log.read_text()


def _until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def _first(channel: grpc.aio.Channel) -> pb.SessionEvent:
    async for event in ControlStub(channel).watch(pb.WatchRequest(uid="u")):
        return event
    raise AssertionError("it has ended")
