"""The control channel: the fixed names and numbers, statuses as errors, TLS 1.3 only."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from scistream import errors
from scistream.errors import BY_STATUS, ScistreamError, TryAgain, Unavailable
from scistream.proto import scistream_pb2 as pb
from scistream.wire import AGAIN, CHANNEL_OPTIONS, error_from, grpc, marks_of, status_of
from scistream.x509 import DevelopmentCA

ROOT = Path(__file__).parents[2]

# What clients in the field speak


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("Request", {"uid": 1, "role": 2, "num_conn": 3, "rate": 4}),
        ("Hello", {"uid": 1, "prod_listeners": 2, "role": 3}),
        ("AppResponse", {"message": 1, "listeners": 2}),
        ("UpdateTargets", {"uid": 1, "remote_listeners": 2, "role": 3}),
        ("Response", {"listeners": 1, "prod_listeners": 2}),
        ("Release", {"uid": 1}),
    ],
)
def test_the_fixed_fields(message: str, fields: dict[str, int]) -> None:
    found = pb.DESCRIPTOR.message_types_by_name[message].fields
    assert {f.name: f.number for f in found if f.number < 10} == fields


def test_the_fixed_methods() -> None:
    methods = pb.DESCRIPTOR.services_by_name["Control"].methods
    signatures = {m.name: (m.input_type.name, m.output_type.name) for m in methods}
    assert pb.DESCRIPTOR.package == "scistream"
    assert signatures["req"] == ("Request", "Response")
    assert signatures["hello"] == ("Hello", "AppResponse")
    assert signatures["update"] == ("UpdateTargets", "Response")
    assert signatures["release"] == ("Release", "Response")


def test_bytes_of_an_old_client_are_read() -> None:
    old = bytes.fromhex("0a03612d31120450524f4418022064")  # uid, role, num_conn = 2, rate = 100, as protoc 3 wrote it
    assert pb.Request.FromString(old) == pb.Request(uid="a-1", role="PROD", num_conn=2, rate=100)


# Errors


@pytest.mark.parametrize("error", BY_STATUS.values())
def test_an_error_survives_the_wire(error: type[ScistreamError]) -> None:
    back = error_from(status_of(error("sentence")), "sentence")
    assert type(back) is error
    assert str(back) == "sentence"


def test_an_unknown_status_is_still_one_of_ours() -> None:
    assert type(error_from(grpc.StatusCode.DATA_LOSS, "x")) is ScistreamError


def test_every_error_has_a_status_of_its_own_and_an_exit_status() -> None:
    found = [x for x in vars(errors).values() if isinstance(x, type) and issubclass(x, ScistreamError)]
    found.remove(TryAgain)  # an Unavailable, marked
    assert len({x.status for x in found}) == len(found) == len(BY_STATUS)
    assert marks_of(TryAgain("x")) == (*marks_of(Unavailable("x")), (AGAIN, "yes"))
    assert all(1 <= x.exit_status <= 6 for x in found)


# TLS


@pytest.fixture(scope="module")
def channel() -> Iterator[tuple[int, ssl.SSLContext]]:
    """Start a bare gRPC server with a gateway's certificate."""
    ca = DevelopmentCA.create("test")
    certificate, key = ca.issue_server(["127.0.0.1"], datetime.now(UTC) + timedelta(hours=1))
    server = grpc.server(ThreadPoolExecutor(1), options=CHANNEL_OPTIONS)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key.pem, certificate.pem)]))
    server.start()
    context = ssl.create_default_context(cadata=ca.certificate.pem.decode())
    context.set_alpn_protocols(["h2"])
    yield port, context
    server.stop(None).wait()


def test_the_control_channel_speaks_tls_1_3(channel: tuple[int, ssl.SSLContext]) -> None:
    port, context = channel
    with (
        socket.create_connection(("127.0.0.1", port), 10) as sock,
        context.wrap_socket(sock, server_hostname="127.0.0.1") as tls,
    ):
        assert tls.version() == "TLSv1.3"


@pytest.mark.parametrize("ciphers", ["DEFAULT", "ALL:@SECLEVEL=0"])
def test_the_control_channel_refuses_tls_1_2(channel: tuple[int, ssl.SSLContext], ciphers: str) -> None:
    port, _ = channel
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers(ciphers)
    context.set_alpn_protocols(["h2"])
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", port), 10) as sock, pytest.raises(ssl.SSLError):
        context.wrap_socket(sock)


# Generated code


@pytest.mark.parametrize("proto", [Path("scistream/proto/scistream.proto"), Path("s2cs/s2ds/remote/s2ds.proto")])
def test_the_generated_code_is_not_stale(tmp_path: Path, proto: Path) -> None:
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    plugins = [
        f"--plugin={name}={Path(sys.executable).parent / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
    ]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *plugins, *outputs, str(proto)]
    subprocess.run(command, cwd=ROOT, check=True)
    made = sorted(path for path in (tmp_path / proto.parent).iterdir())
    assert len(made) == 4
    for path in made:
        assert path.read_text() == (ROOT / proto.parent / path.name).read_text(), f"{path.name}: run make proto"


def test_new_fields_are_numbered_from_ten() -> None:
    text = (ROOT / "scistream/proto/scistream.proto").read_text()
    for message in ("Request", "Response", "Hello", "AppResponse", "UpdateTargets", "Release"):
        body = re.search(rf"message {message} {{(.*?)\n}}", text, re.DOTALL)
        assert body
        numbers = [int(n) for n in re.findall(r"= (\d+);", body[1])]
        assert numbers == sorted(set(numbers))
