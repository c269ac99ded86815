"""What is followed of a cluster goes on, whatever its API, or what stands before it, says meanwhile."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from s2cs.data_server import CLIENT_AUTH, configure, data_server, shape
from s2cs.s2ds.contract import TunnelSpec, TunnelState
from s2cs.s2ds.homes import Home
from s2cs.s2ds.kubernetes import manifest, pods
from s2cs.s2ds.kubernetes.api import Access, Api
from s2cs.s2ds.kubernetes.cluster import Cluster, Identity
from s2cs.s2ds.kubernetes.pods import Pods
from s2cs.settings import Settings
from s2cs.store import SqliteStore
from scistream.errors import FailedPrecondition, ScistreamError, Unavailable
from scistream.vocabulary import Role, Uid
from scistream.x509 import DevelopmentCA, pinned

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


def _pod(settings: Settings) -> dict[str, Any]:
    """One of a session on this host, where nobody answers."""
    made = manifest.pod(shape(settings), TunnelSpec("a", Uid("u"), Role.PROD, 1), "s2ds-1", 9, "")
    made["metadata"]["resourceVersion"] = "7"
    return made | {"status": {"hostIP": "127.0.0.1"}}


def _settings(state: Path, name: str) -> Settings:
    server = {"name": name, "state_dir": state}
    return Settings.model_validate({"server": server, "kubernetes": {"enabled": True}})


@pytest.fixture
async def carried(server: Server, api: Api, tmp_path: Path) -> AsyncIterator[Cluster]:
    """A session's pod of an S2CS before this one."""
    settings = _settings(tmp_path, "aps")
    pod = _pod(settings)
    server.lists = [(200, json.dumps({"metadata": {"resourceVersion": "7"}, "items": [pod]}).encode())]
    certificate, key = pinned("aps.s2cs", CLIENT_AUTH, datetime.now(UTC) + timedelta(days=1))
    running = Cluster(api, shape(settings), Identity(certificate.pem, key.pem), lambda: [Home("a", "n", 0)])
    yield running
    await running.leave()


async def test_a_pod_that_is_deleted_while_it_is_taken_up_is_gone(server: Server, carried: Cluster) -> None:
    pod = json.loads(server.lists[0][1])["items"][0]
    server.lists.append(listed())
    server.watches = [(200, json.dumps({"type": "DELETED", "object": pod}).encode() + b"\n"), (200, b"")]
    await carried.open()
    (status,) = await carried.list("a")
    assert (status.state, status.reason) == (TunnelState.FATAL, "its pod s2ds-1 was deleted from the cluster")


async def test_news_of_a_pod_whose_session_ends_makes_no_other_member(server: Server, carried: Cluster) -> None:
    pod = json.loads(server.lists[0][1])["items"][0]
    server.watches = [(200, b"")]
    await carried.open()
    member = carried._members["a"]
    member.gone, leave = "ended", member.server.leave

    async def told_meanwhile() -> None:
        carried._changed("s2ds-1", pod)
        await leave()

    member.server.leave = told_meanwhile  # type: ignore[method-assign]
    await carried.stop("a")
    await carried._background.ended()
    assert carried._members == {}


def test_pods_are_those_of_the_same_gateway_whatever_it_is_called_later(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s2cs.db")
    for name in ("aps", "aps-2"):
        settings = _settings(tmp_path, name)
        found = data_server(settings, store)
        assert isinstance(found, Cluster)
        configure(found, settings)
        assert manifest.selector(found._shape) == "scistream.org/gateway=aps"
    store.close()
