"""What is followed of a cluster goes on, whatever its API, or what stands before it, says meanwhile."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from s2cs.s2ds.kubernetes import pods
from s2cs.s2ds.kubernetes.api import Access, Api
from s2cs.s2ds.kubernetes.pods import Pods
from scistream.errors import FailedPrecondition, ScistreamError, Unavailable
from scistream.x509 import DevelopmentCA

Answer = tuple[int, bytes]


def listed(*names: str) -> Answer:
    items = [{"metadata": {"name": name, "resourceVersion": "7"}, "spec": {}} for name in names]
    return 200, json.dumps({"metadata": {"resourceVersion": "7"}, "items": items}).encode()


class Server(ThreadingHTTPServer):
    """Answers lists and watches with what it is told; the last one again and again."""

    lists: list[Answer]
    watches: list[Answer]
    asked = 0

    def next(self, watch: bool) -> Answer:
        answers = self.watches if watch else self.lists
        self.asked += 1
        return answers.pop(0) if len(answers) > 1 else answers[0]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        status, body = self.server.next("watch=1" in self.path)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    ca = DevelopmentCA.create("cluster")
    certificate, key = ca.issue_server(["127.0.0.1"], datetime.now(UTC) + timedelta(days=1))
    for name, pem in {"ca": ca.certificate.pem, "crt": certificate.pem, "key": key.pem, "token": b"t"}.items():
        (tmp_path / name).write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "crt", tmp_path / "key")
    running = Server(("127.0.0.1", 0), Handler)
    running.socket = context.wrap_socket(running.socket, server_side=True)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def api(server: Server, tmp_path: Path) -> Api:
    return Api(Access(f"https://127.0.0.1:{server.server_port}", tmp_path / "ca", tmp_path / "token", "scistream"))


_BAD: list[Answer] = [
    (200, b"<html>log in first</html>"),
    (200, b"{}"),
    (200, b"[]"),
    (200, b'{"metadata": {"resourceVersion": "7"}, "items": [{}]}'),
    (200, b'{"metadata": 7}'),
    (429, b"slow down"),
    (500, b'{"message": 7}'),
    (401, b""),
]
_BAD_NEWS: list[Answer] = [
    (200, b"<html>\n"),
    (200, b'{"type": "ADDED"}\n'),
    (200, b"7\n"),
    (200, b'{"type": "ADDED", "object": {"metadata": {"resourceVersion": "8"}}}\n'),
    (410, b"too old"),
    (200, b'{"type": "ERROR", "object": {"message": "too old"}}\n'),
    (200, b""),
]


async def test_pods_are_followed_over_whatever_is_answered(
    server: Server, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pods, "_AGAIN_S", 0.01)
    server.lists = [listed("a"), *_BAD, listed("a"), *(listed("a") for _ in _BAD_NEWS), listed("a", "b")]
    server.watches = [*_BAD_NEWS, (200, b"")]
    api.open()
    known: set[str] = set()
    following = Pods(api, "x=y", lambda name, pod: known.add(name))
    try:
        await following.open()
        assert known == {"a"}
        assert await following.until("b", lambda pod: pod is not None, 20)
        assert server.asked >= len(_BAD) + len(_BAD_NEWS)
    finally:
        await following.close()
        await api.close()


@pytest.mark.parametrize("answer", _BAD)
async def test_what_cannot_be_understood_at_the_start_is_said(server: Server, api: Api, answer: Answer) -> None:
    server.lists = [answer]
    api.open()
    try:
        with pytest.raises(ScistreamError) as caught:
            await Pods(api, "x=y", lambda name, pod: None).open()
        assert isinstance(caught.value, (Unavailable, FailedPrecondition))
    finally:
        await api.close()
        await asyncio.sleep(0)
