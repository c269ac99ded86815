"""Names at a real gateway, with the system's resolver and a name server that changes its mind."""

from __future__ import annotations

import shlex
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Role, Uid
from scistream.wire import grpc
from scistream.x509 import SessionCA
from tests.support.gateways import GatewayProcess, gateway
from tests.support.sessions import in_an_hour

_SERVER = "127.77.0.53"  # a loopback address that nobody else has
_A, _IN = 1, 1


class NameServer:
    """Answer every name with the next address, for no longer than this moment; the last one for ever."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((_SERVER, 53))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            query, sender = self._socket.recvfrom(512)
            if len(query) < 12:
                return
            with suppress(OSError):
                self._socket.sendto(self._answer(query), sender)

    def _answer(self, query: bytes) -> bytes:
        labels, at = [], 12
        while length := query[at]:
            labels.append(query[at + 1 : at + 1 + length].decode())
            at += 1 + length
        question, kind = query[12 : at + 5], int.from_bytes(query[at + 1 : at + 3])
        record = b""
        if kind == _A:
            self.asked.append(".".join(labels))
            address = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            record = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x04" + socket.inet_aton(address)
        counts = b"\x00\x01" + len(record[:1]).to_bytes(2) + b"\x00\x00\x00\x00"
        return query[:2] + b"\x81\x80" + counts + question + record

    def close(self) -> None:
        """Stop answering."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
            own.sendto(b"", (_SERVER, 53))
        self._thread.join(10)
        self._socket.close()


@contextmanager
def name_server(*answers: str) -> Iterator[NameServer]:
    """Run a name server."""
    try:
        server = NameServer(*answers)
    except OSError as error:
        pytest.skip(f"no name server can listen on {_SERVER}:53: {error}")
    try:
        yield server
    finally:
        server.close()


@contextmanager
def asking(directory: Path, server: str) -> Iterator[GatewayProcess]:
    """Run a gateway whose system asks that name server, in a mount namespace of its own."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mount namespaces are for root")
    with gateway(directory / "g") as running:
        running.stop()
        resolv = directory / "resolv.conf"
        resolv.write_text(f"nameserver {server}\noptions timeout:1 attempts:1\n")
        bind = f'mount --bind {shlex.quote(str(resolv))} /etc/resolv.conf && exec "$@"'
        running.wrapper = ["unshare", "-m", "sh", "-c", bind, "sh"]
        running.start()
        yield running


def test_a_name_is_looked_up_once_and_its_address_is_what_the_proxy_has(tmp_path: Path) -> None:
    with (
        name_server("127.0.0.9", "127.0.0.66", "169.254.169.254") as names,
        asking(tmp_path, _SERVER) as running,
        running.client() as client,
    ):
        uid = str(uuid.uuid4())
        wanted = {"role": "PROD", "num_conn": 2, "immediate": True, "backend": "nginx", "producer": "daq.rebind.test:7"}
        answer = client.req(pb.Request(uid=uid, **wanted))  # type: ignore[operator, arg-type]
        assert names.asked == []  # what is only said is not looked up
        listeners = ["daq.rebind.test:7000", "daq.rebind.test:7001"]
        client.hello(pb.Hello(uid=uid, role="PROD", prod_listeners=listeners))  # type: ignore[operator]
        (seen,) = client.list(pb.ListRequest(uid=uid)).sessions  # type: ignore[operator]
        assert list(seen.prod_listeners) == ["127.0.0.9:7000", "127.0.0.9:7001"]
        leaf = SessionCA.create(Uid(uid), in_an_hour()).issue(answer.csr, Role.PROD)
        update = pb.UpdateTargets(
            uid=uid,
            role="PROD",
            remote_listeners=seen.prod_listeners,
            certificate=leaf.certificate.der,
            trust_anchor=leaf.trust_anchor.der,
        )
        assert client.update(update).state == "ACTIVE"  # type: ignore[operator]
        (config,) = (running.directory / "state" / "tunnels").glob("*/nginx.conf")
        assert "127.0.0.9:7000" in config.read_text()
        assert "rebind" not in config.read_text()
        (proxy, *_) = [p for p in running.proxies() if "nginx" in p.name()]
        proxy.kill()  # a proxy that is started again asks nobody either
        psutil.wait_procs([proxy], 10)
        assert names.asked == ["daq.rebind.test"]
        other = {**wanted, "producer": ""}
        client.req(pb.Request(uid="two", **other))  # type: ignore[operator, arg-type]
        hello = pb.Hello(uid="two", role="PROD", prod_listeners=["daq.rebind.test:7000"])
        client.hello(hello)  # type: ignore[operator]
        hello.prod_listeners[:] = ["metadata.rebind.test:80"]
        with pytest.raises(grpc.RpcError) as refused:
            client.hello(hello)  # type: ignore[operator]
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "metadata.rebind.test:80 (169.254.169.254)" in refused.value.details()
        assert names.asked == ["daq.rebind.test", "daq.rebind.test", "metadata.rebind.test"]
