"""What a tunnel has moved: the proxies' lines, the kernel's counters, and what is known when a proxy dies."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from s2cs.s2ds import procfs
from s2cs.s2ds.backends import BACKENDS
from s2cs.s2ds.logs import MOST_BYTES, Book, SessionLog
from s2cs.s2ds.meter import MOST_MOVED, Group, Ledger, Live, Look, Meter, Moved, Resting, measure
from s2cs.s2ds.sockdiag import connections
from scistream.vocabulary import Role

_NGINX = (
    "2026-05-01T12:00:00+00:00 session 192.0.2.1:4000 {status} TLSv1.3 TLS_AES_128_GCM_SHA256 "
    "sent=70 received=30 seconds=0.1\n"
)
_LINES = {
    "nginx": _NGINX.format(status=200) + _NGINX.format(status=400),
    "haproxy": "session 192.0.2.1:4000 127.0.0.1:5000 TLSv1.3 TLS_AES_128_GCM_SHA256 -- up=30 down=70\n"
    "other up=1 down=1\n",
    "stunnel": "2026.05.01 12:00:00 LOG5[0]: Connection closed: 70 byte(s) sent to TLS, 30 byte(s) sent to socket\n"
    "2026.05.01 12:00:00 LOG5[1]: Connection reset: 0 byte(s) sent to TLS, 0 byte(s) sent to socket\n",
}


@pytest.mark.parametrize("name", _LINES)
def test_a_connection_that_ended_is_counted_once_whoever_reads(tmp_path: Path, name: str) -> None:
    file, keep = tmp_path / "proxy-1.log", tmp_path / "traffic.json"
    text = _LINES[name]
    file.write_text(text[:40])
    ledger = Ledger(keep)
    log = SessionLog(file, BACKENDS[name], Role.PROD, ledger)
    log.read()
    assert ledger.closed == Moved()
    file.write_text(text)
    log.read()
    log.read()
    assert ledger.closed == Moved(30, 70, 1)
    ledger.save()
    with file.open("a") as more:
        more.write(text)
    again = Ledger(keep)
    SessionLog(file, BACKENDS[name], Role.PROD, again).end()
    assert again.closed == Moved(60, 140, 2)
    assert Ledger(keep).closed == again.closed
    assert keep.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", _LINES)
@pytest.mark.parametrize("before", [b'2026.05.01 12:00:00 LOG4[0]: O="', b"x" * 2 * 65536], ids=["said", "long"])
def test_what_stands_further_on_in_a_line_counts_nothing(tmp_path: Path, name: str, before: bytes) -> None:
    """A stranger may have a word there: Stunnel logs the subject of a certificate that it refuses."""
    file, ledger = tmp_path / "proxy-1.log", Ledger(tmp_path / "traffic.json")
    log = SessionLog(file, BACKENDS[name], Role.PROD, ledger)
    line = _LINES[name].splitlines(keepends=True)[0].encode()
    file.write_bytes(before + line)
    log.read()
    assert (ledger.closed, ledger.tls) == (Moved(), ("", ""))
    with file.open("ab") as more:
        more.write(line)
    log.read()
    assert ledger.closed == Moved(30, 70, 1)


@pytest.mark.parametrize("name", _LINES)
def test_a_proxy_that_logs_what_it_likes_is_no_obstacle(tmp_path: Path, name: str) -> None:
    """Numbers that nothing could hold, and bytes that are no text."""
    file, ledger = tmp_path / "proxy-1.log", Ledger(tmp_path / "traffic.json")
    line = _LINES[name].splitlines(keepends=True)[0]
    huge = line.replace("70", "7" * 5000).replace("30", "3" * 60).replace("_AES_", "_\xff_").encode("latin-1") * 3
    refused = 'recv() failed (111: no) while x, udp client: x, upstream: "{}", bytes'
    lines = [f"2026/05/01 12:00:00 [error] 1#1: *1 {refused.format(peer)}\n" for peer in ("\xff", "1:99999", "no port")]
    file.write_bytes(huge + "".join(lines).encode("latin-1"))
    SessionLog(file, BACKENDS[name], Role.PROD, ledger).read()
    assert ledger.closed == Moved(MOST_MOVED, MOST_MOVED, 3)
    assert "".join(ledger.tls).isprintable()


def test_stunnels_sides_are_the_other_way_round_at_the_consumers_gateway(tmp_path: Path) -> None:
    file, ledger = tmp_path / "proxy-1.log", Ledger(tmp_path / "traffic.json")
    file.write_text(_LINES["stunnel"])
    SessionLog(file, BACKENDS["stunnel"], Role.CONS, ledger).read()
    assert ledger.closed == Moved(70, 30, 1)


def test_a_log_that_was_emptied_is_read_on(tmp_path: Path) -> None:
    file, ledger = tmp_path / "proxy-1.log", Ledger(tmp_path / "traffic.json")
    log = SessionLog(file, BACKENDS["haproxy"], Role.PROD, ledger)
    file.write_text(_LINES["haproxy"] * 3)
    log.read()
    file.write_bytes(b"\0" * 200_000 + _LINES["haproxy"].encode())  # a hole, and a line after it
    log.read()
    file.write_text(_LINES["haproxy"])  # from the beginning again
    log.read()
    assert ledger.closed.connections == 5


@pytest.mark.parametrize("appends", [True, False])
def test_nothing_is_missed_between_two_looks_at_a_log_that_is_emptied(tmp_path: Path, appends: bool) -> None:
    file, ledger = tmp_path / "proxy-1.log", Ledger(tmp_path / "traffic.json")
    log = SessionLog(file, BACKENDS["haproxy"], Role.PROD, ledger)
    with file.open("ab" if appends else "wb") as proxy:
        proxy.write(b"somebody knocked\n" * (MOST_BYTES // 16))
        proxy.flush()
        log.bound()
        proxy.write(_LINES["haproxy"].encode() + b"somebody knocked\n" * (MOST_BYTES // 15))
        proxy.flush()
        log.bound()
        proxy.write(_LINES["haproxy"].encode())
    log.read()
    assert ledger.closed.connections == 2


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_log_that_is_none_is_not_followed_emptied_or_waited_for(tmp_path: Path, kind: str) -> None:
    file, other = tmp_path / "proxy-1.log", tmp_path / "other"
    other.write_bytes(b"secret\n" * (MOST_BYTES // 6))
    if kind == "link":
        file.symlink_to(other)
    else:
        os.mkfifo(file)
    book = Book()
    log = SessionLog(file, BACKENDS["haproxy"], Role.PROD, Ledger(tmp_path / "traffic.json"), book)
    log.recall()
    log.read()
    log.bound()
    assert (log.since(), book.last(10).lines) == ("", ())
    assert other.stat().st_size > MOST_BYTES


def test_a_ledger_that_is_damaged_begins_anew(tmp_path: Path) -> None:
    for text in ("", "{}", '{"closed": 1}', '{"closed": {"up": 1, "x": 2}, "offsets": {}, "tls": []}'):
        (tmp_path / "traffic.json").write_text(text)
        assert Ledger(tmp_path / "traffic.json").closed == Moved()


def test_open_and_closed_connections_are_never_counted_twice_nor_forgotten(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "traffic.json")
    meter = Meter(ledger)
    meter.take(Look(1.0, ledger.closed), {1: Live(up=100, down=1000, open=2)})
    assert (meter.traffic.from_consumer, meter.traffic.from_producer, meter.traffic.total) == (100, 1000, 2)
    ledger.closed += Moved(60, 700, 1)  # one of them ended, by the proxy's record
    assert (meter.traffic.from_consumer, meter.traffic.from_producer) == (100, 1000)
    assert (meter.traffic.open, meter.traffic.total) == (1, 2)
    meter.take(Look(2.0, ledger.closed), {1: Live(up=50, down=400, open=1)})
    assert (meter.traffic.from_consumer, meter.traffic.from_producer, meter.traffic.total) == (110, 1100, 2)
    meter.take(Look(2.1, ledger.closed), {})  # it has just ended
    meter.lose(1)  # killed, without a word
    assert ledger.closed == Moved(110, 1100, 2)
    assert meter.traffic.open == 0
    meter.lose(1)
    meter.take(Look(3.0, ledger.closed), {2: Live(up=5, down=5, open=1)})
    ledger.closed += Moved(6, 7, 1)
    meter.lose(2)  # it had written its record
    assert ledger.closed == Moved(116, 1107, 3)
    meter.take(Look(4.0, Moved()), {2: Live(up=9, down=9, open=1)})  # a look that began before
    assert meter.traffic.from_consumer == 116


def test_a_rate_is_never_taken_over_a_moment_and_its_peak_outlives_the_server(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "traffic.json")
    meter, begun = Meter(ledger), time.monotonic()
    meter.begin()
    meter.take(Look(begun + 2, ledger.closed), {1: Live(down=2_000_000, open=1)})
    assert meter.traffic.bytes_per_s == pytest.approx(1_000_000, rel=0.01)
    meter.take(Look(begun + 2.01, ledger.closed), {1: Live(down=3_000_000, open=1)})  # 100 MB/s, if it were believed
    assert meter.traffic.bytes_per_s == pytest.approx(1_000_000, rel=0.01)
    meter.take(Look(begun + 3, ledger.closed), {1: Live(down=3_000_000, open=1)})
    meter.take(Look(begun + 4, ledger.closed), {1: Live(down=3_000_000, open=1)})
    assert meter.traffic.bytes_per_s == 0
    peak = meter.traffic.peak_bytes_per_s
    assert peak == pytest.approx(1_000_000, rel=0.01)
    ledger.save()
    later = Meter(Ledger(tmp_path / "traffic.json"))
    later.take(Look(begun + 9, ledger.closed), {1: Live(down=9_000_000, open=1)})  # how long that took nobody knows
    assert (later.traffic.bytes_per_s, later.traffic.peak_bytes_per_s) == (0, peak)


def test_what_a_drained_proxy_had_open_is_not_taken_from_the_others(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "traffic.json")
    meter = Meter(ledger)
    meter.take(Look(1.0, ledger.closed), {1: Live(up=100, open=1), 2: Live(up=50, open=1)})
    ledger.closed += Moved(120, 0, 1)  # the first one's last stream ended
    meter.forget(1)
    assert (meter.traffic.from_consumer, meter.traffic.open, meter.traffic.total) == (150, 1, 2)


def test_a_proxy_at_rest_is_not_looked_through_and_what_comes_then_is_seen_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = (
        "import socket, sys\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "print(server.getsockname()[1], flush=True)\n"
        "for line in sys.stdin:\n"
        "    one = server.accept()[0] if line == 'accept\\n' else one.close()\n"
        "    print('done', flush=True)\n"
    )
    looks = 0

    def sockets(pid: int) -> frozenset[int]:
        nonlocal looks
        looks += 1
        return frozenset(procfs.descriptors(pid))

    monkeypatch.setattr(procfs, "sockets", sockets)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as proxy:  # type: ignore[call-overload]
        port = int(proxy.stdout.readline())
        groups, resting = [Group(proxy.pid, Role.CONS, frozenset({port}))], Resting()

        def does(what: str) -> None:
            proxy.stdin.write(what + "\n")
            proxy.stdin.flush()
            assert proxy.stdout.readline() == "done\n"

        for most in (2, 0):
            looks = 0
            assert [measure(groups, resting)[proxy.pid].open for _ in range(4)] == [0] * 4
            assert looks == most or not procfs.fullness(proxy.pid)[0]  # where the kernel does not tell, all four
            with socket.create_connection(("127.0.0.1", port)):
                does("accept")
                assert [measure(groups, resting)[proxy.pid].open for _ in range(3)] == [1] * 3
                does("close")
        proxy.stdin.close()
    assert measure(groups, resting) == {}


def test_the_kernel_counts_payload_only() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            inodes = {sock.fileno(): _inode(sock) for sock in (client, accepted)}
            client.sendall(b"x" * 1000)
            accepted.sendall(b"y" * 300)
            client.shutdown(socket.SHUT_WR)
            time.sleep(0.05)
            found = {each.inode: each for each in connections(inodes.values())}
            one, other = found[inodes[client.fileno()]], found[inodes[accepted.fileno()]]
            assert (one.sent, one.received) == (1000, 300)
            assert (other.sent, other.received) == (300, 1000)
            assert other.port == server.getsockname()[1]
            assert 2 * 536 <= one.window <= 10 * 65536  # a new connection may have some segments under way
    assert not list(connections(()))


def _inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino
