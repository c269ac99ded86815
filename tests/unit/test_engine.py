"""What a container engine, or whatever listens in its place, may answer: S2CS says so, and goes on."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from types import MappingProxyType

import pytest

from s2cs.s2ds.backends import BACKENDS
from s2cs.s2ds.config import Containers
from s2cs.s2ds.engine import Engine
from s2cs.s2ds.launchers import docker
from s2cs.s2ds.launchers.base import Job
from s2cs.s2ds.launchers.docker import DockerLauncher
from scistream.errors import Unavailable

_BAD = (b"<html>log in first</html>", b"{}", b"[]", b"7", b"null", b'"x"', b'{"Id": 7}', b'{"Id"', b"")
_IMAGE = b'{"Id": "sha256:0"}'


class Server(ThreadingUnixStreamServer):
    """Answers every call alike, but for those whose path ends as is said."""

    daemon_threads = True
    answer = b""
    answers: Mapping[str, bytes] = MappingProxyType({})
    kind = "application/json"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Server)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        body = next((a for end, a in self.server.answers.items() if path.endswith(end)), self.server.answer)
        self.send_response(200)
        self.send_header("Content-Type", self.server.kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(BrokenPipeError):
            self.wfile.write(body)

    do_GET = do_DELETE = do_POST

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(str(tmp_path / "sock"), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def launcher(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DockerLauncher:
    monkeypatch.setattr(docker, "_AWAY_S", 0.1)
    return DockerLauncher(Containers(tmp_path / "sock", "scistream"))


@pytest.mark.parametrize("kind", ["application/json", "text/html"])
@pytest.mark.parametrize("answer", _BAD)
async def test_what_is_no_engine_is_told(
    server: Server, launcher: DockerLauncher, tmp_path: Path, answer: bytes, kind: str
) -> None:
    server.answer, server.kind = answer, kind
    said = f"what answers at {tmp_path}/sock is no container engine; correct [s2ds] engine"
    assert launcher.lacks() == said
    assert launcher.find(BACKENDS["nginx"], None, None).reason == said
    with pytest.raises(Unavailable, match="no container engine"):
        await launcher.launch(Job(("/bin/true",), tmp_path))
    await launcher.tidy(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["sock"]


@pytest.mark.parametrize("answer", _BAD)
async def test_an_engine_that_fails_later_is_told(
    server: Server, launcher: DockerLauncher, tmp_path: Path, answer: bytes
) -> None:
    server.answer, server.answers = answer, {"images/scistream/json": _IMAGE}
    assert launcher.lacks() == ""
    assert launcher.find(BACKENDS["nginx"], None, None).reason
    with pytest.raises(Unavailable):
        await launcher.launch(Job(("/bin/true",), tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["sock"]


def test_an_engine_that_this_user_may_not_use_is_told_of_as_that(server: Server, tmp_path: Path) -> None:
    (tmp_path / "sock").chmod(0)
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        with pytest.raises(Unavailable, match="is not open to this user; make it one of the socket's group"):
            Engine(tmp_path / "sock").image("scistream")
    finally:
        os.seteuid(user)
