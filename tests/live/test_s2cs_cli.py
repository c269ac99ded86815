"""The operator's command line, as processes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from s2cs.settings_file import load
from scistream.proto import scistream_pb2 as pb
from scistream.x509 import Certificate, DevelopmentCA, PrivateKey
from tests.support import programs
from tests.support.gateways import gateway, restarted
from tests.support.ports import port_blocks


def s2cs(*arguments: str | Path, exit_status: int = 0, **environ: str) -> subprocess.CompletedProcess[str]:
    done = programs.run("s2cs", *arguments, **environ)
    assert done.returncode == exit_status, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Path]:
    with port_blocks() as first:
        s2cs("init", tmp_path / "g", "--port", str(first), "--port-range", f"{first + 2}-{first + 20}")
        yield tmp_path / "g" / "s2cs.toml"


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_init_writes_what_it_says_and_keeps_secrets(made: Path) -> None:
    directory = made.parent
    secret = ["token", "certs/ca.key", "certs/server.key", "state/s2cs.db"]
    assert [(directory / name).stat().st_mode & 0o777 for name in secret] == [0o600] * 4
    assert directory.stat().st_mode & 0o777 == 0o700
    token = (directory / "token").read_text().strip()
    assert not any(token.encode() in path.read_bytes() for path in (directory / "state").iterdir())


def test_init_again_touches_nothing(made: Path) -> None:
    before = {path: path.read_bytes() for path in made.parent.rglob("*") if path.is_file()}
    assert "already" in s2cs("init", made.parent, exit_status=1).stderr
    assert before == {path: path.read_bytes() for path in made.parent.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--lan", "eth0"], "--lan 'eth0' is not an IP address"),
        (["--wan", "0.0.0.0"], "--wan 0.0.0.0"),
        (["--port", "0"], "--port 0"),
        (["--port", "65536"], "--port 65536"),
        (["--port-range", "9-1"], "port range"),
        (["--name", "a b"], "--name 'a b'"),
        (["--host", "a;b"], "host 'a;b'"),
        (["--backend", "squid"], "squid"),
    ],
)
def test_init_refuses(tmp_path: Path, options: list[str], says: str) -> None:
    assert says in s2cs("init", tmp_path / "g", *options, exit_status=2).stderr
    assert not (tmp_path / "g" / "s2cs.toml").exists()


def test_init_puts_state_and_audit_log_elsewhere(tmp_path: Path) -> None:
    s2cs("init", tmp_path / "etc", "--state-dir", tmp_path / "lib", "--audit-dir", tmp_path / "log")
    settings = load(tmp_path / "etc" / "s2cs.toml", {})
    assert settings.server.state_dir == tmp_path / "lib"
    assert settings.audit.directory == tmp_path / "log"
    assert (tmp_path / "lib" / "s2cs.db").stat().st_mode & 0o777 == 0o600
    said = s2cs("init", tmp_path / "other", "--state-dir", 'a"b', exit_status=2).stderr
    assert "--state-dir" in said
    assert not (tmp_path / "other").exists()


def test_init_where_nothing_can_be_written() -> None:
    assert "cannot be written" in s2cs("init", "/proc/nowhere", exit_status=1).stderr


def test_check_finds_nothing_wrong_with_a_new_gateway(made: Path) -> None:
    out = s2cs("check", "--config", made).stdout
    assert "FAULT" not in out
    assert "backend nginx" in out


def test_check_finds_every_fault_at_once(made: Path) -> None:
    (made.parent / "certs" / "server.key").unlink()
    made.parent.joinpath("state").chmod(0o755)
    edit(made, 'lan = "127.0.0.1"', 'lan = "192.0.2.77"')
    edit(made, 'backend = "auto"', 'backend = "haproxy"\nprograms = { haproxy = "/nowhere/haproxy" }')
    control = re.search(r'listen = \["127.0.0.1:(\d+)"\]', made.read_text())
    assert control
    edit(made, "[network]", f"[network]\nwan_port = {control[1]}")
    done = s2cs("check", "--config", made, exit_status=1)
    faults = [line for line in done.stdout.splitlines() if line.startswith("FAULT")]
    assert len(faults) == 5
    for words in (
        "server.key cannot be read",
        "chmod 700",
        "192.0.2.77 is not an address",
        "haproxy",
        "is the control port, too",
    ):
        assert any(words in fault for fault in faults), words


def test_check_finds_a_secret_of_old_clients_that_serve_would_not_start_with(made: Path) -> None:
    """Serve reads it whether old clients get a key from it or not."""
    made.write_text(f"{made.read_text()}\n[compat]\npsk_secret_file = 'gone'\n")
    words = f"{made.parent / 'gone'} cannot be read: No such file or directory; mend [compat] psk_secret_file"
    assert f"FAULT {words}" in s2cs("check", "--config", made, exit_status=1).stdout
    assert s2cs("serve", "--config", made, exit_status=1).stderr.endswith(f"{words}\n")


def test_check_tells_who_old_clients_without_a_token_are(made: Path) -> None:
    made.write_text(f"{made.read_text()}\n[compat]\nuser = 'old-clients'\n")
    for command, says in (
        ((), "there is no user old-clients, so nobody is served without a token; add it: s2cs user add old-clients"),
        (("add",), "whoever reaches the control port is old-clients, without a token"),
        (("disable",), "old-clients is disabled, so nobody is served without a token"),
    ):
        if command:
            s2cs("user", *command, "old-clients", "--config", made)
        assert f"warn  [compat] user: {says}\n" in s2cs("check", "--config", made).stdout


def test_check_finds_a_metrics_port_that_is_taken(made: Path) -> None:
    found = re.search(r'\[metrics\]\nlisten = \["127.0.0.1:(\d+)"\]', made.read_text())
    assert found
    with socket.create_server(("127.0.0.1", int(found[1]))):
        done = s2cs("check", "--config", made, exit_status=1)
    assert f"FAULT metrics port 127.0.0.1:{found[1]} cannot be used: Address already in use" in done.stdout


@pytest.mark.parametrize("command", [["serve"], ["check"], ["sessions"], ["user", "list"]])
def test_bad_settings_are_named(made: Path, command: list[str]) -> None:
    edit(made, "[s2ds]", "[s2ds]\nbufer = 3")
    done = s2cs(*command, "--config", made, exit_status=1)
    assert done.stderr.startswith(f"s2cs: {made}: [s2ds] bufer: unknown key")
    assert "; accepted are backend" in done.stderr


class TestServe:
    """What keeps it from starting is said in one sentence."""

    def refused(self, file: Path, says: str, exit_status: int = 1) -> None:
        done = s2cs("serve", "--config", file, exit_status=exit_status)
        assert says in done.stderr
        assert len(done.stderr.splitlines()) == 1

    def test_no_certificate(self, made: Path) -> None:
        (made.parent / "certs" / "server.crt").unlink()
        self.refused(made, "server.crt cannot be read: No such file")

    def test_expired_certificate(self, made: Path) -> None:
        certs = made.parent / "certs"
        certificate, key = DevelopmentCA.create("x").issue_server(["127.0.0.1"], datetime.now(UTC) - timedelta(days=1))
        (certs / "server.crt").write_bytes(certificate.pem)
        (certs / "server.key").write_bytes(key.pem)
        self.refused(made, "expired on")

    def test_anothers_key(self, made: Path) -> None:
        (made.parent / "certs" / "server.key").write_bytes((made.parent / "certs" / "ca.key").read_bytes())
        self.refused(made, "its key is another one's")

    def test_unreadable_key(self, made: Path) -> None:
        key = made.parent / "certs" / "server.key"
        key.unlink()
        key.mkdir()  # a mode says nothing to root
        self.refused(made, "server.key cannot be read: Is a directory")

    def test_taken_port(self, made: Path) -> None:
        port = int(made.read_text().split('listen = ["127.0.0.1:')[1].split('"')[0])
        with socket.create_server(("127.0.0.1", port)):
            self.refused(made, f"cannot listen on 127.0.0.1:{port}", 4)

    def test_state_directory_is_a_file(self, made: Path) -> None:
        edit(made, 'state_dir = "state"', 'state_dir = "token"')
        self.refused(made, "state directory")

    def test_damaged_store(self, made: Path) -> None:
        store = made.parent / "state" / "s2cs.db"
        store.write_bytes(b"not a database" * 1000)
        self.refused(made, "s2cs.db cannot be used")
        assert store.read_bytes().startswith(b"not a database")

    def test_newer_store(self, made: Path) -> None:
        import sqlite3

        store = sqlite3.connect(made.parent / "state" / "s2cs.db")
        store.execute("PRAGMA user_version=999")
        store.close()
        self.refused(made, "newer s2cs")


def test_users(made: Path) -> None:
    config = ("--config", made)
    token = s2cs("user", "add", "alice", *config).stdout.strip()
    assert token.startswith("s2t_")
    assert "already" in s2cs("user", "add", "alice", *config, exit_status=1).stderr
    assert "user name" in s2cs("user", "add", "a b", *config, exit_status=2).stderr
    names = [user["name"] for user in json.loads(s2cs("user", "list", "--json", *config).stdout)]
    assert names == ["admin", "alice"]
    assert "alice" in s2cs("user", "list", *config).stdout
    s2cs("user", "remove", "alice", *config)
    assert "no user alice" in s2cs("user", "remove", "alice", *config, exit_status=5).stderr


def test_a_gateway_without_standard_streams_keeps_their_numbers_free(made: Path) -> None:
    """What writes to them, as a crash does, must not write into a connection."""
    command = f"exec {sys.executable} -m s2cs serve --config {made} <&- >&- 2>&-"
    with subprocess.Popen(["/bin/sh", "-c", command]) as process:
        try:
            deadline = time.monotonic() + 30
            while not (made.parent / "state" / "lock").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            streams = {str(Path(f"/proc/{process.pid}/fd/{number}").readlink()) for number in range(3)}
        finally:
            process.terminate()
    assert streams == {"/dev/null"}
    assert process.returncode in (0, -15)


def test_a_name_that_is_added_again_is_somebody_else(tmp_path: Path) -> None:
    with gateway(tmp_path / "g") as running:
        with running.client(running.add_user("alice")) as alice:
            alice.req(pb.Request(uid="a-1", role="PROD", num_conn=1, immediate=True))
        s2cs("user", "remove", "alice", "--config", running.config)
        with running.client(running.add_user("alice")) as alice:
            assert not alice.list(pb.ListRequest()).sessions
            with pytest.raises(Exception, match="there is no session a-1 of yours"):
                alice.release(pb.Release(uid="a-1"))
        with running.client(running.add_user("olga", "--operator", "--group", "staff")) as olga:
            described = olga.describe(pb.DescribeRequest())
            assert (described.user, described.admin) == ("olga", False)
            assert [session.owner for session in olga.list(pb.ListRequest()).sessions] == ["alice"]
            *_, last = olga.watch(pb.WatchRequest(uid="a-1"), timeout=60)
            assert (last.session.state, last.session.reason) == ("RELEASED", "its user alice was removed")
        users = json.loads(s2cs("user", "list", "--json", "--config", running.config).stdout)
        found = [(user["name"], user["role"], user["groups"]) for user in users]
        assert found == [("admin", "admin", []), ("alice", "user", []), ("olga", "operator", ["staff"])]


def test_a_token_that_nobody_could_read_is_not_kept(made: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "s2cs", "user", "add", "alice", "--config", str(made)]
        process = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (process.returncode, process.stderr) == (1, "s2cs: the output cannot be used: No space left on device\n")
    assert "alice" not in s2cs("user", "list", "--config", made).stdout


def test_a_removed_user_is_refused_and_sessions_are_shown(tmp_path: Path) -> None:
    with gateway(tmp_path / "g") as running:
        token = running.add_user("alice")
        with running.client(token) as alice:
            alice.req(pb.Request(uid="a-1", role="PROD", num_conn=2, immediate=True))
            (row,) = json.loads(s2cs("sessions", "--json", "--config", running.config).stdout)
            assert (row["uid"], row["state"], row["owner"], len(row["listeners"])) == ("a-1", "RESERVED", "alice", 2)
            assert "a-1" in s2cs("sessions", "--config", running.config).stdout
            s2cs("user", "remove", "alice", "--config", running.config)
            with pytest.raises(Exception, match="UNAUTHENTICATED"):
                alice.list(pb.ListRequest())
        with running.client() as admin:
            admin.release(pb.Release(uid="a-1"))
        assert s2cs("sessions", "--config", running.config).stderr == "no sessions\n"


@pytest.mark.parametrize(
    "command",
    [
        "",
        "init",
        "check",
        "serve",
        "user",
        "user add",
        "user list",
        "user remove",
        "user disable",
        "user enable",
        "user change",
        "user rotate",
        "user token",
        "user token add",
        "user token list",
        "user token revoke",
        "sessions",
        "sessions list",
        "sessions kill",
        "policy",
        "policy test",
        "reload",
        "drain",
    ],
)
def test_help(command: str) -> None:
    out = s2cs(*command.split(), "--help").stdout
    assert out.startswith("Usage: ")
    assert re.search(rf"(Example|Try it): s2cs {command}", out)
    assert "..." not in out.replace("[ARGS]...", "")


def test_a_token_file_is_its_owners_alone_and_never_written_over(tmp_path: Path) -> None:
    config, file = str(tmp_path / "g/s2cs.toml"), tmp_path / "alice.token"
    s2cs("init", str(tmp_path / "g"))
    add = ("user", "add", "alice", "--config", config, "--token-file", str(file))
    added = s2cs(*add)
    assert added.stdout == ""
    assert f"the token is in {file} and is not kept here" in added.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(token := file.read_text()) > 40
    s2cs("user", "remove", "alice", "--config", config)
    assert f"{file} is there already" in s2cs(*add, exit_status=1).stderr
    assert file.read_text() == token
    assert "alice" not in s2cs("user", "list", "--config", config).stdout


class TestReload:
    """`s2cs reload` and SIGHUP."""

    def test_settings_and_certificate(self, tmp_path: Path) -> None:
        with gateway(tmp_path / "g") as running, running.client() as client:
            client.req(pb.Request(uid="a", role="PROD", num_conn=1, immediate=True))
            watch = client.watch(pb.WatchRequest(uid="a"), timeout=60)
            next(watch)
            edit(running.config, "[policy]", "[limits]\nnum_conn = 3\n\n[policy]")
            edit(running.config, 'wan = "127.0.0.1"', 'wan = "127.0.0.2"')
            certs = running.directory / "certs"
            key = PrivateKey.from_pem((certs / "ca.key").read_bytes())
            ca = DevelopmentCA(Certificate(x509.load_pem_x509_certificate(running.ca)), key)
            certificate, key = ca.issue_server(["127.0.0.1"], datetime.now(UTC) + timedelta(days=3))
            for name, pem in (("server.crt", certificate.pem), ("server.key", key.pem)):
                (certs / name).write_bytes(pem)
            before = client.describe(pb.DescribeRequest())
            done = s2cs("reload", "--config", running.config)
            assert "wait for a restart: [network] wan" in done.stderr
            host, port = running.address.split(":")
            assert ssl.get_server_certificate((host, int(port))).encode() == certificate.pem
            after = client.describe(pb.DescribeRequest())  # the channel that was there goes on
            assert (before.max_num_conn, after.max_num_conn, after.wan_address) == (128, 3, "127.0.0.1")
            client.release(pb.Release(uid="a"))
            assert [event.session.state for event in watch] == ["CLOSING", "RELEASED"]  # and what was under way

    def test_a_bad_file_leaves_the_old_in_force(self, tmp_path: Path) -> None:
        with gateway(tmp_path / "g") as running, running.client() as client:
            edit(running.config, "[s2ds]", "[s2ds]\nbufer = 3")
            assert "bufer" in s2cs("reload", "--config", running.config, exit_status=1).stderr
            running.process.send_signal(signal.SIGHUP)
            deadline = time.monotonic() + 10
            while "the old settings stay in force" not in running.log and time.monotonic() < deadline:
                time.sleep(0.05)
            assert "bufer: unknown key" in running.log
            client.describe(pb.DescribeRequest())

    def test_a_store_that_cannot_note_it_ends_nothing(self, tmp_path: Path) -> None:
        with gateway(tmp_path / "g") as running, running.client() as client:
            edit(running.config, "[policy]", "[limits]\nnum_conn = 3\n\n[policy]")
            with sqlite3.connect(running.directory / "state" / "s2cs.db") as store:
                store.execute("DROP TABLE facts")
            running.process.send_signal(signal.SIGHUP)
            deadline = time.monotonic() + 10
            while "cannot be noted" not in running.log and time.monotonic() < deadline:
                time.sleep(0.05)
            assert client.describe(pb.DescribeRequest()).max_num_conn == 3

    def test_no_gateway_runs(self, made: Path) -> None:
        assert "no gateway runs" in s2cs("reload", "--config", made, exit_status=4).stderr


def test_drain(tmp_path: Path) -> None:
    with gateway(tmp_path / "g") as running, running.client() as client:
        request = pb.Request(uid="old", role="PROD", num_conn=1, immediate=True)
        client.req(request)
        assert "1 is there now" in s2cs("drain", "--config", running.config).stderr
        client.req(request)  # what is there stays, and answers
        with pytest.raises(Exception, match="takes no new sessions"):
            client.req(pb.Request(uid="new", role="PROD", num_conn=1, immediate=True))
        running.stop()
        with restarted(running) as again, again.client() as other:
            with pytest.raises(Exception, match="takes no new sessions"):
                other.req(pb.Request(uid="new", role="PROD", num_conn=1, immediate=True))
            s2cs("drain", "--off", "--config", running.config)
            other.req(pb.Request(uid="new", role="PROD", num_conn=1, immediate=True))


def test_doctor_reads_this_host(made: Path) -> None:
    """A connection of 100 Tb/s over a second fits into no host's buffers; one of 1 kb/s over a millisecond fits all."""
    done = s2cs("doctor", "--config", made, "--bandwidth", "100Tb/s", "--rtt", "1s", "--json", exit_status=1)
    answer = json.loads(done.stdout)
    found = {finding["name"]: finding for finding in answer["findings"]}
    assert (answer["bandwidth_bytes_per_s"], answer["rtt_ms"]) == (12_500_000_000_000, 1000)
    assert answer["faults"] == sum(finding["level"] == "fault" for finding in found.values()) > 0
    buffers = Path("/proc/sys/net/ipv4/tcp_rmem").read_text().split()
    assert found["net.ipv4.tcp_rmem"]["value"].startswith(f"{buffers[2]} (")
    assert found["net.ipv4.tcp_rmem"]["mend"] == f'sysctl -w net.ipv4.tcp_rmem="{buffers[0]} {buffers[1]} 2147483647"'
    assert found["processors"]["value"] == str(len(os.sched_getaffinity(0)))
    assert found["lo (wan and lan)"]["level"] == "ok"
    edit(made, "[network]", '[network]\nbandwidth = "1kb/s"\nrtt = "1ms"')
    answer = json.loads(s2cs("doctor", "--config", made, "--json").stdout)
    assert (answer["bandwidth_bytes_per_s"], answer["rtt_ms"], answer["faults"]) == (125, 1, 0)
    assert next(f for f in answer["findings"] if f["name"] == "net.ipv4.tcp_rmem")["level"] == "ok"


def test_doctor_says_what_is_wrong_with_its_options(tmp_path: Path) -> None:
    assert "'5x' is not a rate" in s2cs("doctor", "--bandwidth", "5x", exit_status=2).stderr
    assert "'50' is not a time on a network; write 50ms" in s2cs("doctor", "--rtt", "50", exit_status=2).stderr
    assert "there.toml cannot be read" in s2cs("doctor", "--config", tmp_path / "there.toml", exit_status=1).stderr
