"""What a gateway tells over HTTP, asked of a real one, and held against what its API says."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from scistream.proto import scistream_pb2 as pb
from scistream.wire import grpc
from tests.support.gateways import GatewayProcess, gateway
from tests.support.ports import port_block

DOCS = Path(__file__).parents[2] / "docs" / "operator" / "watching.md"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GatewayProcess, str]]:
    port = port_block()
    listen = f'["127.0.0.1:{port}", "[::1]:{port}"]'
    with gateway(tmp_path_factory.mktemp("metrics") / "g", SCISTREAM_METRICS__LISTEN=listen) as running:
        yield running, f"127.0.0.1:{port}"


def get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}/{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metrics(address: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    _, text = get(address, "metrics")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def drain(gateway: GatewayProcess, *options: str) -> None:
    subprocess.run([sys.executable, "-m", "s2cs", "drain", *options, "--config", gateway.config], check=True)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what the gateway looks at by and by."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def value(address: str, name: str, **labels: str) -> float:
    return metrics(address).get((name, frozenset(labels.items())), 0.0)


def test_sessions_and_calls_are_counted_as_they_are(served: tuple[GatewayProcess, str]) -> None:
    gateway, address = served
    ports = value(address, "scistream_ports_free", side="wan")
    uid = str(uuid.uuid4())
    with gateway.client() as client:
        client.req(pb.Request(uid=uid, role="PROD", num_conn=3, rate=5000, immediate=True))
        assert value(address, "scistream_sessions", role="PROD", state="RESERVED") == 1
        assert value(address, "scistream_connections_reserved") == 3
        assert value(address, "scistream_rate_reserved_bytes_per_second") == 5_000_000
        assert value(address, "scistream_ports_free", side="wan") == ports - 3
        client.release(pb.Release(uid=uid))
        with pytest.raises(grpc.RpcError):
            client.release(pb.Release(uid=str(uuid.uuid4())))
    with gateway.client("nobody") as stranger, pytest.raises(grpc.RpcError):
        stranger.list(pb.ListRequest())
    assert value(address, "scistream_sessions_ended_total", role="PROD", outcome="RELEASED") == 1
    assert value(address, "scistream_sessions", role="PROD", state="RESERVED") == 0
    assert value(address, "scistream_calls_total", method="req", code="OK") == 1
    assert value(address, "scistream_calls_total", method="release", code="NOT_FOUND") == 1
    assert value(address, "scistream_calls_total", method="list", code="UNAUTHENTICATED") == 1
    assert value(address, "scistream_call_duration_seconds_count", method="req") == 1


def test_both_families_are_served(served: tuple[GatewayProcess, str]) -> None:
    _, address = served
    port = address.partition(":")[2]
    assert get(address, "healthz") == get(f"[::1]:{port}", "healthz") == (200, "ok\n")
    assert get(address, "elsewhere")[0] == 404


def test_every_metric_is_in_the_docs_and_the_other_way_round(served: tuple[GatewayProcess, str]) -> None:
    _, text = get(served[1], "metrics")
    told = set(re.findall(r"^# TYPE (scistream_\w+)", text, re.MULTILINE))
    assert told == set(re.findall(r"^\| `(scistream_\w+)` \|", DOCS.read_text(), re.MULTILINE))


def test_no_label_names_anybody(served: tuple[GatewayProcess, str]) -> None:
    """Labels have few values: a gateway's memory and Prometheus' would grow with sessions otherwise."""
    gateway, address = served
    uid = str(uuid.uuid4())
    with gateway.client() as client:
        client.req(pb.Request(uid=uid, role="CONS", num_conn=1, immediate=True))
        _, text = get(address, "metrics")
        client.release(pb.Release(uid=uid))
    labels = set(re.findall(r"(\w+)=\"", text))
    assert labels == {
        "backend",
        "code",
        "direction",
        "gateway",
        "le",
        "method",
        "outcome",
        "role",
        "side",
        "state",
        "use",
        "version",
    }
    assert uid not in text
    assert "admin" not in text


def test_draining_is_not_ready_and_grpc_says_the_same(served: tuple[GatewayProcess, str]) -> None:
    gateway, address = served
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    with grpc.secure_channel(gateway.address, grpc.ssl_channel_credentials(gateway.ca)) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        def said(service: str = "scistream.Control") -> int:
            return health.Check(health_pb2.HealthCheckRequest(service=service)).status

        assert (get(address, "readyz"), said()) == ((200, "ok\n"), serving)
        drain(gateway)
        status, why = get(address, "readyz")
        assert status == 503
        assert "drained" in why
        until(lambda: said() == not_serving)
        assert said("") == serving
        assert get(address, "healthz")[0] == 200
        assert value(address, "scistream_draining") == 1
        drain(gateway, "--off")
        until(lambda: said() == serving)
        assert get(address, "readyz")[0] == 200
