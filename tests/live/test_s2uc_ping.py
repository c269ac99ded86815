"""`s2uc ping` of real gateways, and of what is none."""

from __future__ import annotations

import shutil
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

from click.testing import CliRunner

from s2cs.cli import cli
from tests.support.ports import port_block
from tests.support.user import facilities


def test_ping_says_how_far_and_how_a_gateway_is(tmp_path: Path) -> None:
    with facilities(tmp_path) as both:
        user = both.user
        alcf, aps = user.json("ping", "--count", "3")["gateways"]
        assert (alcf["gateway"], aps["gateway"]) == ("alcf", "aps")  # by name
        for found in (aps, alcf):
            assert found["address"] == "127.0.0.1"
            assert found["tls"]["version"] == "TLSv1.3"
            assert found["calls"] == 3
            call = found["call_ms"]
            assert 0 < call["min"] <= call["median"] <= call["max"]
            assert min(found["connect_ms"], found["handshake_ms"]) > 0
            assert datetime.fromisoformat(found["certificate_until"]) > datetime.now(UTC) + timedelta(days=300)
            assert found["user"] == "admin"
            assert found["free_ports"] > 10
        words = user.s2uc("ping", "aps").stdout
        assert "you are admin" in words
        assert "not taken now" not in words
        assert all(name in words for name in ("nginx", "haproxy", "stunnel") if shutil.which(name))

        CliRunner().invoke(cli, ["drain", "--config", str(both.aps.config)], catch_exceptions=False)
        assert "new sessions are not taken now: the gateway is being drained" in user.s2uc("ping", "aps").stdout

        files = [both.aps.directory / "certs" / name for name in ("server.crt", "server.key")]
        mine = [shutil.copy(file, tmp_path / file.name) for file in files]
        at = both.aps.address
        user.s2uc("gateway", "add", "lost", at, "--no-check", "--cert", str(mine[0]), "--key", str(mine[1]))
        mine[0].unlink()
        assert f"certificate {mine[0]} cannot be read" in user.s2uc("list", expect=2).stderr
        both.alcf.stop()
        process = user.s2uc("ping", expect=4)
        assert f"lost: certificate {mine[0]} cannot be read" in process.stdout
        assert "aps: " in process.stdout
        assert "alcf: " in process.stdout
        assert "the connection was refused" in process.stdout


def test_ping_says_which_of_several_addresses_serve(tmp_path: Path) -> None:
    with facilities(tmp_path) as both:
        user, at, nowhere = both.user, both.aps.address, f"127.0.0.1:{port_block()}"
        same = at.replace("127.0.0.1", "localhost")
        files = ("--ca", str(both.aps.directory / "certs/ca.crt"), "--token-file", str(both.aps.directory / "token"))
        user.s2uc("gateway", "add", "several", f"{nowhere},{at},{same}", *files)
        (found,) = user.json("ping", "several")["gateways"]
        assert found["address"] == "127.0.0.1"
        assert found["others"][same] == ""
        assert "the connection was refused" in found["others"][nowhere]
        words = user.s2uc("ping", "several").stdout
        assert f"  {same}: serves, too" in words
        assert f"  {nowhere}: the connection was refused" in words


def test_ping_of_a_silent_port_ends(tmp_path: Path) -> None:
    with facilities(tmp_path) as both, socket.create_server(("127.0.0.1", port_block())) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        both.user.s2uc("gateway", "add", "silent", address, "--no-check")
        assert "does not answer" in both.user.s2uc("--timeout", "2s", "ping", "silent", expect=4).stdout
