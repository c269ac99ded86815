"""What etcd, or whatever stands in its place, may answer: S2CS says so, asks again, and goes on."""

from __future__ import annotations

import json
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from s2cs.replicas import mirror
from s2cs.replicas.etcd import Etcd
from s2cs.replicas.mirror import Mirror
from s2cs.settings import StoreSettings
from scistream.errors import TryAgain

_BAD = (b"<html>log in first</html>", b"{}", b"[]", b"7", b'{"header": {"revision": "x"}}', b'{"header"', b"")
_CUT = 7  # bytes that are announced and never come


class Server(ThreadingHTTPServer):
    """Answers each path with what it is told; the last one again and again."""

    daemon_threads = True
    answers: dict[str, list[bytes]]
    cut = 0

    def next(self, path: str) -> bytes:
        answers = self.answers.get(path) or self.answers[""]
        return answers.pop(0) if len(answers) > 1 else answers[0]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Server)
        self.rfile.read(int(self.headers["Content-Length"]))
        body = self.server.next(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + self.server.cut))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def settings(port: int) -> StoreSettings:
    return StoreSettings.model_validate({"etcd": [f"127.0.0.1:{port}"], "listen": "127.0.0.1:9", "prefix": "x"})


@pytest.mark.parametrize("cut", [0, _CUT])
@pytest.mark.parametrize("answer", _BAD)
def test_an_answer_that_is_not_etcds_is_asked_for_again(server: Server, answer: bytes, cut: int) -> None:
    server.answers, server.cut = {"": [answer]}, cut
    etcd = Etcd(settings(server.server_port))
    questions: list[Callable[[], Any]] = [
        lambda: etcd.load("x/"),
        lambda: etcd.change([], []),
        lambda: etcd.grant(3),
        lambda: etcd.refresh(1),
    ]
    for question in questions:
        with pytest.raises(TryAgain, match=r"cannot be used now \((its answer is not etcd's|it hangs up in the midst)"):
            question()
    etcd.close()


def _entries(revision: int, **values: str) -> bytes:
    kvs = [
        {"key": _text(f"x/facts/{name}"), "value": _text(value), "create_revision": "1", "mod_revision": "1"}
        for name, value in values.items()
    ]
    return json.dumps({"header": {"revision": str(revision)}, "kvs": kvs}).encode()


def _text(plain: str) -> str:
    return b64encode(plain.encode()).decode()


_FORGOTTEN = b'{"result": {"canceled": true, "compact_revision": "9"}}\n'
_NEWS = [b"<html>\n", b"[]\n", b'{"result": 7}\n', b'{"result": {"events": [{}]}}\n', b'{"result": {"events": 7}}\n']


def test_a_watch_goes_on_over_whatever_is_answered(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also over what is said instead of all that there is, when a watch has missed something."""
    monkeypatch.setattr(mirror, "_AGAIN_S", 0.01)
    server.answers = {
        "/v3/kv/range": [_entries(5, a="1"), *_BAD, _entries(9, a="2")],
        "/v3/watch": [*_NEWS, _FORGOTTEN, *(_FORGOTTEN for _ in _BAD), b""],
    }
    followed = Mirror(settings(server.server_port))
    deadline = time.monotonic() + 30
    while (entry := followed.get("facts/a")) is None or entry.value != b"2":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    followed.close()
