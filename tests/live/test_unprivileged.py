"""A gateway of a user with no privileges at all: it does the same, and is confined as far as that goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateways import gateway, restarted
from tests.support.sessions import echo, open_pair
from tests.support.tunnels import kill

_NOBODY = 65534
_PREFIX = ("setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--bounding-set=-all", "--")


@pytest.fixture
def place() -> Iterator[Path]:
    if os.geteuid() or subprocess.run([*_PREFIX, sys.executable, "-c", "import s2cs.cli"], check=False).returncode:
        pytest.skip("only root becomes nobody, and nobody has to be able to read this program")
    with tempfile.TemporaryDirectory(prefix="s2nobody") as directory:
        os.chown(directory, _NOBODY, _NOBODY)
        yield Path(directory)


def test_a_session_and_a_restart_without_privileges(place: Path) -> None:
    keep = {"SCISTREAM_SERVER__ON_SHUTDOWN": "keep"}
    producer_side = gateway(place / "p", wrapper=_PREFIX, **keep)
    consumer_side = gateway(place / "c", wrapper=_PREFIX)
    with producer_side as p, consumer_side as c, echo() as app, p.client() as at_p, c.client() as at_c:
        session = open_pair(at_p, at_c, [str(app.endpoint)])
        with session.connect() as connection:
            connection.sendall(b"before")
            assert connection.recv(100) == b"before"
            proxies = p.proxies()
            for proxy in proxies:
                assert proxy.uids().real == _NOBODY
                assert "NoNewPrivs:\t1" in Path(f"/proc/{proxy.pid}/status").read_text()
            p.stop(signal.SIGKILL)
            with restarted(p) as again, again.client() as at_again:
                connection.sendall(b"after")
                assert connection.recv(100) == b"after"
                kill(min(proxy.pid for proxy in proxies))  # mended on the sockets it had
                with session.connect() as another:
                    another.sendall(b"mended")
                    assert another.recv(100) == b"mended"
                session.producer = at_again
                session.release()
                assert again.leftovers() == {}
