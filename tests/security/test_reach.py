"""Attacks on what a gateway can reach and its host has: loopback services, metadata addresses, names, files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Role, Uid
from scistream.wire import grpc
from scistream.x509 import SessionCA
from tests.support.gateways import Client, GatewayProcess, gateway
from tests.support.sessions import echo, exchange, in_an_hour, open_pair
from tests.support.siege import APPLICATIONS, Siege, echoes
from tests.support.tunnels import kill
from tests.support.user import User

Code = grpc.StatusCode

# Ways to write an address of the gateway's own host, of a metadata service, and others that nobody named.
_HOSTS = [
    *("127.0.0.1", "127.0.0.2", "127.255.255.254", "localhost", "LOCALHOST", "localhost.", "127.1", "127.0.1"),
    *("0x7f000001", "0x7f.1", "2130706433", "017700000001", "0177.0.0.1", "127.0.0.1.", "127.000.000.001"),
    *("[::1]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]"),
    *(
        "[2002:7f00:1::1]",
        "[::1%lo]",
        "0.0.0.0",
        "0",
        "[::]",
        "127\u30020\u30020\u30021",
        "\uff11\uff12\uff17.0.0.1",
        "\u2460\u2461\u2466.0.0.1",
    ),
    *("169.254.169.254", "[::ffff:169.254.169.254]", "[fd00:ec2::254]", "0xa9fea9fe", "2852039166", "[fe80::1]"),
    *("metadata.google.internal", "224.0.0.1", "255.255.255.255", "192.168.0.1", "[ff02::1]", "127.0.0.7@127.0.0.1"),
    *(
        "127.0.0.7 127.0.0.1",
        "127.0.0.7,127.0.0.1",
        "127.0.0.7#@127.0.0.1",
        "127.0.0.6",
        "127.0.0.8",
        "127.0.0.7.nip.io",
    ),
]


def _code(call: Any) -> Code:
    with pytest.raises(grpc.RpcError) as error:
        call()
    assert error.value.details().isprintable()
    return error.value.code()


@contextmanager
def _session(client: Client, role: Role, **more: Any) -> Iterator[tuple[str, pb.UpdateTargets]]:
    """Reserve a side of a session; its uid, and an update for it that lacks only the targets."""
    uid = str(uuid.uuid4())
    csr = client.req(pb.Request(uid=uid, role=role, num_conn=1, immediate=True, **more)).csr
    leaf = SessionCA.create(Uid(uid), in_an_hour()).issue(csr, role)
    update = pb.UpdateTargets(uid=uid, role=role)
    update.certificate, update.trust_anchor = leaf.certificate.der, leaf.trust_anchor.der
    yield uid, update
    client.release(pb.Release(uid=uid))


def test_ssrf(besieged: Siege) -> None:
    """A service on the gateway's loopback, and the address where clouds keep credentials, are not to be reached."""
    refusals = {Code.PERMISSION_DENIED, Code.INVALID_ARGUMENT}
    with besieged.aps.client(besieged.mallory[0]) as mallory, echo() as service:
        ports = service.endpoint.port, int(besieged.aps.address.rpartition(":")[2])
        with _session(mallory, Role.PROD) as (uid, update), _session(mallory, Role.CONS) as (other, outward):
            for host in _HOSTS:
                for port in ports:
                    address = f"{host}:{port}"
                    hello = pb.Hello(uid=uid, role="PROD", prod_listeners=[address])
                    assert _code(partial(mallory.hello, hello)) in refusals, address
            mallory.hello(pb.Hello(uid=uid, role="PROD", prod_listeners=[f"{APPLICATIONS}:9"]))
            mallory.hello(pb.Hello(uid=other, role="CONS"))
            for host in _HOSTS:
                del update.remote_listeners[:], outward.remote_listeners[:]
                update.remote_listeners.append(f"{host}:{ports[0]}")
                assert _code(partial(mallory.update, update)) in refusals, host
                # The other side's gateways are at 127.0.0.1 here: of that host it is the control port that is shut.
                outward.remote_listeners.append(f"{host}:{ports[1]}")
                assert _code(partial(mallory.update, outward)) in refusals, host
        assert service.accepted == 0
    assert echoes(besieged.session.connect())


# Names


@contextmanager
def _with_names(directory: Path) -> Iterator[tuple[GatewayProcess, Path]]:
    """Run a gateway that looks names up in a file of ours; only root may make such a place."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("only root can give a process names of its own")
    names = directory / "hosts"
    names.write_text("127.0.0.1 localhost\n")
    policy = {
        "SCISTREAM_POLICY__TARGETS": f'["{APPLICATIONS}/32"]',
        "SCISTREAM_POLICY__PEERS": '["127.0.0.1/32"]',
    }
    with gateway(directory / "g", **policy) as running:
        running.stop()
        mount = 'mount --bind "$1" /etc/hosts && shift && exec "$@"'
        running.wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh", str(names)]
        running.start()
        yield running, names


def test_dns_rebinding(tmp_path: Path) -> None:
    """A name leads where it led when it was allowed; what it means later is refused, or means nothing."""
    with _with_names(tmp_path) as (running, names), echo(APPLICATIONS) as app, echo() as service, ExitStack() as stack:
        client, other = (
            stack.enter_context(running.client()),
            stack.enter_context(running.client(running.add_user("u"))),
        )
        name = "rebind.example"
        names.write_text(f"{APPLICATIONS} {name}\n")
        opened = open_pair(client, other, [f"{name}:{app.endpoint.port}"])
        names.write_text(f"127.0.0.1 {name}\n")
        # What is open goes on to the address that was looked at, also when its proxy begins anew.
        with opened.connect() as connection:
            exchange(connection, b"x" * 1000)
        kill(*(proxy.pid for proxy in running.proxies()))
        with opened.connect() as connection:
            exchange(connection, b"x" * 1000)
        # What is asked now is judged by what the name means now.
        with _session(client, Role.PROD) as (uid, update):
            hello = pb.Hello(uid=uid, role="PROD", prod_listeners=[f"{name}:{service.endpoint.port}"])
            assert _code(partial(client.hello, hello)) is Code.PERMISSION_DENIED
            names.write_text(f"{APPLICATIONS} {name}\n")
            client.hello(hello)
            names.write_text(f"127.0.0.1 {name}\n169.254.169.254 {name}\n")
            update.remote_listeners.append(f"{name}:{service.endpoint.port}")
            assert _code(partial(client.update, update)) is Code.PERMISSION_DENIED
            # Of several addresses it takes one that is allowed, and that one alone.
            names.write_text(f"127.0.0.1 {name}\n{APPLICATIONS} {name}\n")
            client.update(update)
            assert client.list(pb.ListRequest(uid=uid)).sessions[0].targets == [
                f"{APPLICATIONS}:{service.endpoint.port}"
            ]
        opened.release()
        assert service.accepted == 0
        assert app.accepted >= 2


# Files


def _files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


_PATHS = [
    *("..", ".", "/", "../x", "../../x", "/tmp/x", "x/y", "x/../y", "..%2fx", "%2e%2e/x", "..\\x", "~", "~root", "-x"),
    *(
        "x\0y",
        "x\n",
        " x",
        "\u2024\u2024/x",
        "\uff0e\uff0e/x",
        "x" * 300,
        "con/../../x",
        "file:///etc/passwd",
        "*",
        "x.json",
    ),
]


def test_path_traversal_in_uids(besieged: Siege) -> None:
    """A uid that is a path names nothing: on every method, and no file comes of it."""
    with besieged.aps.client(besieged.mallory[0]) as mallory:
        before = _files(besieged.aps.directory)
        for path in _PATHS:
            for call, message in (
                (mallory.req, pb.Request(uid=path, role="PROD", num_conn=1, immediate=True)),
                (mallory.hello, pb.Hello(uid=path, role="PROD", prod_listeners=[f"{APPLICATIONS}:9"])),
                (mallory.update, pb.UpdateTargets(uid=path, role="PROD", remote_listeners=[f"{APPLICATIONS}:9"])),
                (mallory.renew, pb.Renew(uid=path)),
                (mallory.release, pb.Release(uid=path)),
                (mallory.list, pb.ListRequest(uid=path)),
                (lambda message: list(mallory.watch(message)), pb.WatchRequest(uid=path)),
            ):
                assert _code(partial(call, message)) is Code.INVALID_ARGUMENT, (path, message)
        # As a label it is a text like any other.
        with _session(mallory, Role.PROD, labels={"path": "../../x"}, producer="../../x", consumer="/etc/passwd"):
            assert "x" not in {Path(file).name for file in _files(besieged.aps.directory)}
        assert {Path(file).parts[0] for file in _files(besieged.aps.directory) - before} <= {"state"}


def test_path_traversal_at_the_command_lines(besieged: Siege, tmp_path: Path) -> None:
    """Names of users, groups, gateways and sessions make no file outside of where they belong."""
    user, ca = User(tmp_path / "home" / "config"), str(besieged.aps.directory / "certs" / "ca.crt")
    user.s2uc("gateway", "add", "aps", besieged.aps.address, "--ca", ca, "--token-file", "-", stdin=besieged.mallory[0])
    before, at_gateway = _files(tmp_path), _files(besieged.aps.directory)
    for path in ("../../x", "/tmp/x"):
        user.s2uc("gateway", "add", "--", path, besieged.aps.address, expect=2)
        for command in ("status", "release"):
            user.s2uc(command, "--", path, expect=2)
        command = [sys.executable, "-m", "s2cs", "user", "add", "--config", str(besieged.aps.config), "--", path]
        assert subprocess.run(command, check=False, capture_output=True).returncode == 2, path
    assert _files(tmp_path) == before
    assert {file for file in _files(besieged.aps.directory) - at_gateway if not file.startswith("state")} == set()


def test_a_ticket_file_that_is_a_link(besieged: Siege, tmp_path: Path) -> None:
    """A ticket is not written through a link that somebody put there, to what is there or could be."""
    user, ca = User(tmp_path / "config"), str(besieged.aps.directory / "certs" / "ca.crt")
    user.s2uc("gateway", "add", "aps", besieged.aps.address, "--ca", ca, "--token-file", "-", stdin=besieged.mallory[0])
    precious, ticket, dangling = tmp_path / "precious", tmp_path / "ticket", tmp_path / "dangling"
    precious.write_text("mine")
    ticket.symlink_to(precious)
    dangling.symlink_to(tmp_path / "elsewhere")
    request = ("inbound-request", "--gateway", "aps", "--prod-listeners", f"{APPLICATIONS}:9", "--ticket")
    for link in (ticket, dangling):
        process = user.start("--json", *request, str(link))
        answer, _ = process.communicate(timeout=60)
        if process.returncode == 0:
            user.s2uc("release", json.loads(answer)["uid"])
        else:
            assert process.returncode == 2
    assert precious.read_text() == "mine"
    assert not (tmp_path / "elsewhere").exists()
