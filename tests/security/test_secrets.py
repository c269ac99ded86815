"""Keys and tokens: where they are while a session runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from s2cs import runtime
from tests.support.gateways import Client, GatewayProcess, gateway
from tests.support.sessions import Opened, echo, open_pair

_KEY = b"PRIVATE KEY"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[GatewayProcess, GatewayProcess]]:
    with gateway(tmp_path / "p") as producer, gateway(tmp_path / "c") as consumer:
        yield producer, consumer


def opened(producer: Client, consumer: Client) -> Opened:
    with echo() as app:
        return open_pair(producer, consumer, [str(app.endpoint)])


def keys_of(running: GatewayProcess) -> list[Path]:
    """Files of sessions with a private key in them, wherever the gateway writes."""
    places = [running.directory / "state", running.tunnels]
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    return [path for path in files if _KEY in path.read_bytes()]


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
