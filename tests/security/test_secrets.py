"""Keys and tokens: where they are while a session runs, and that no key is left when it has ended."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator, Set
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from s2cs import runtime
from scistream.proto import scistream_pb2 as pb
from tests.support.gateways import Client, GatewayProcess, gateway, restarted
from tests.support.sessions import Opened, echo, open_pair
from tests.support.tunnels import kill
from tests.support.user import User

_KEY = b"PRIVATE KEY"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[GatewayProcess, GatewayProcess]]:
    keep = {"SCISTREAM_SERVER__ON_SHUTDOWN": "keep", "SCISTREAM_S2DS__MAX_RESTARTS": "0"}
    with gateway(tmp_path / "p", **keep) as producer, gateway(tmp_path / "c") as consumer:
        yield producer, consumer


def opened(producer: Client, consumer: Client) -> Opened:
    with echo() as app:
        return open_pair(producer, consumer, [str(app.endpoint)])


def keys_of(running: GatewayProcess) -> list[Path]:
    """Files of sessions with a private key in them, wherever the gateway writes."""
    return [path for place in (running.directory / "state", running.tunnels) for path in files_in(place) if _key(path)]


def files_in(place: Path) -> list[Path]:
    """All files in a directory: not by `rglob`, which fails where a directory goes while it is read."""
    return [Path(directory, name) for directory, _, names in os.walk(place) for name in names]


def _key(path: Path) -> bool:
    with suppress(FileNotFoundError):  # it may go, too
        return _KEY in path.read_bytes()
    return False


def test_keys_are_in_memory_for_their_proxy_and_in_no_process_or_store(
    pair: tuple[GatewayProcess, GatewayProcess],
) -> None:
    producer, consumer = pair
    with producer.client() as at_p, consumer.client() as at_c:
        session = opened(at_p, at_c)
        found = keys_of(producer)
        assert {path.name for path in found} == {"key.pem", "leaf.pem"}
        for path in found:
            assert path.stat().st_mode & 0o027 == 0
            assert runtime.in_memory(path) or not any(map(runtime.in_memory, (Path("/run"), Path("/dev", "shm"))))
        secrets = [path.read_bytes().splitlines()[1] for path in found if path.name == "key.pem"]
        secrets += [producer.token.encode(), consumer.token.encode()]
        for process in Path("/proc").glob("[0-9]*"):
            for name in ("cmdline", "environ"):
                with suppress(OSError):
                    shown = (process / name).read_bytes()
                    assert not any(secret in shown for secret in secrets), process / name
        for running in pair:
            for path in [running.directory / "serve.log", *(running.directory / "state").glob("s2cs.db*")]:
                assert not any(secret in path.read_bytes() for secret in secrets), path
        session.release()


def reserved(client: Client, lease_s: int) -> None:
    """Reserve the producer's side of a session."""
    client.req(pb.Request(uid=str(uuid.uuid4()), role="PROD", num_conn=1, immediate=True, lease_s=lease_s))


def until_left(running: GatewayProcess, wanted: Set[Path] = frozenset()) -> None:
    """Wait until there are these keys and no others."""
    deadline = time.monotonic() + 30
    while (left := set(keys_of(running))) != wanted:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_no_key_is_left_when_a_session_has_ended_in_whatever_way(pair: tuple[GatewayProcess, GatewayProcess]) -> None:
    producer, consumer = pair
    place = producer.tunnels
    with producer.client() as at_p, consumer.client() as at_c:
        session = opened(at_p, at_c)
        assert keys_of(producer)
        assert keys_of(consumer)
        session.release()
        assert not keys_of(producer)
        assert not keys_of(consumer)

        reserved(at_p, lease_s=1)
        until_left(producer)  # its lease has ended

        session = opened(at_p, at_c)
        kill(*(proxy.pid for proxy in producer.proxies()))
        until_left(producer)  # it has failed
        at_c.release(pb.Release(uid=session.uid))
        assert not keys_of(consumer)

        session = opened(at_p, at_c)
        living = set(keys_of(producer))
        reserved(at_p, lease_s=4)
        ends = time.monotonic() + 4
    producer.stop(signal.SIGKILL)
    assert set(keys_of(producer)) > living
    half = place / "half-reserved"
    half.mkdir(mode=0o700)
    (half / "key.pem").write_text("-----BEGIN PRIVATE KEY-----")  # as if it was killed before that was a tunnel
    time.sleep(max(0.0, ends - time.monotonic()))
    with restarted(producer) as again, again.client() as at_p, consumer.client() as at_c:
        until_left(again, living)
        assert again.tunnels == place
        for client in (at_p, at_c):
            client.release(pb.Release(uid=session.uid))
        assert not keys_of(again)
        assert not keys_of(consumer)
    assert not list(place.rglob("*.pem"))


class _Watched:
    """All that a running program and those below it show: files in a directory, arguments, environments."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.secrets: dict[bytes, Path] = {}
        self.shown: dict[str, bytes] = {}

    def look(self, pid: int) -> None:
        """Take in what there is now."""
        walked = os.walk(self._directory)
        links = [Path(directory, "tunnels").resolve() for directory, below, _ in walked if "tunnels" in below]
        for place in (self._directory, *links):
            for path in files_in(place):
                with suppress(OSError):
                    if path.is_file():
                        self._take(path)
        with suppress(psutil.Error):
            for process in psutil.Process(pid).children(recursive=True):
                with suppress(psutil.Error):
                    self.shown[f"arguments of {process.pid}"] = "\0".join(process.cmdline()).encode()
                    self.shown[f"environment of {process.pid}"] = "\0".join(process.environ().values()).encode()

    def _take(self, path: Path) -> None:
        content = path.read_bytes()
        if path.name == "token" or _KEY in content:
            assert path.stat().st_mode & 0o027 == 0, path
            lines = content.splitlines()
            key = next((n + 1 for n, line in enumerate(lines) if _KEY in line), 0)
            if len(lines) > key and len(lines[key]) > 30:
                self.secrets[lines[key]] = path
        else:
            self.shown[str(path)] = content


def test_a_demonstration_shows_no_secret(tmp_path: Path) -> None:
    """Gateways, users, keys and streams of `s2uc demo`, watched from the start to the end."""
    (tmp_path / "tmp").mkdir()
    demo = User(tmp_path / "config").start("--verbose", "demo", "--seconds", "4", TMPDIR=str(tmp_path / "tmp"))
    watched = _Watched(tmp_path / "tmp")
    while demo.poll() is None:
        watched.look(demo.pid)
        time.sleep(0.1)
    words, errors = demo.communicate()
    assert demo.returncode == 0, errors
    watched.shown["output"] = (words + errors).encode()
    names = {path.name for path in watched.secrets.values()}
    assert {"token", "server.key", "leaf.pem"} <= names, names  # a leaf's file has its key, too
    assert any(name.startswith("arguments") for name in watched.shown)
    for where, content in watched.shown.items():
        for secret, path in watched.secrets.items():
            assert secret not in content, (where, path)
