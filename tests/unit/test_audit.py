"""The audit log's chain and files: what was done to them is found, and named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from s2cs.audit.acts import Recorded
from s2cs.audit.calls import address
from s2cs.audit.chain import Head, read, sealed
from s2cs.audit.files import Files, Keeping, Record, files_in, opened
from s2cs.audit.flood import Flood
from s2cs.audit.log import Audit
from s2cs.audit.verify import verify
from s2cs.auth import Caller, KeyHolder
from s2cs.cli import cli
from scistream.errors import InvalidArgument, Unavailable

_PLENTY = Keeping(2**20, 10, 1e9)
_DAY = 86400.0


def records(count: int, at: float = 1.7e9) -> list[Record]:
    return [Record(at + i, "test", {"number": i}) for i in range(count)]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of five lines."""
    Files(tmp_path, _PLENTY).append(records(5))
    return tmp_path


def file_of(log: Path) -> Path:
    return log / "audit-000000000001.jsonl"


def test_a_line_says_what_happened_and_is_found_as_it_was_written() -> None:
    line, head = sealed(Head(), 1.7e9, "call.req", {"decision": "allowed", "reason": "", "targets": ("a", "b")})
    assert line.startswith(b'{"seq":1,"at":"2023-11-14T22:13:20.000000Z","event":"call.req","decision":"allowed",')
    found = read(line)
    assert found is not None
    assert (found.head, found.record["targets"], found.prev) == (head, ["a", "b"], Head().hash)
    assert "reason" not in found.record
    assert read(line.replace(b"allowed", b"refused")) is None
    assert read(line[:-5]) is None


@pytest.mark.parametrize(
    "secret",
    [
        "s2t_" + "a1B2" * 10,
        "Bearer 0123456789abcdef",
        "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.c2lnbmF0dXJl",
        "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----",
    ],
)
def test_what_looks_like_a_secret_is_not_written(secret: str) -> None:
    line, _ = sealed(Head(), 0, "test", {"reason": f"uid '{secret}' is none", "asked": [secret]})
    for part in (secret, secret[12:], "MHcC"):
        assert part.encode() not in line


def test_no_text_and_no_number_makes_a_line_without_end_or_without_meaning() -> None:
    line, _ = sealed(Head(), 0, "t", {"reason": "x" * 10**6, "a": ["y"] * 10**5, "n": float("inf"), "s": "\ud800\n"})
    assert len(line) < 3000
    assert read(line) is not None


def changed(change: Callable[[list[bytes]], object]) -> Callable[[Path], None]:
    def apply(log: Path) -> None:
        lines = file_of(log).read_bytes().splitlines(keepends=True)
        change(lines)
        file_of(log).write_bytes(b"".join(lines))

    return apply


def edit(lines: list[bytes]) -> None:
    lines[2] = lines[2].replace(b'"number":2', b'"number":7')


def hash_anew(lines: list[bytes]) -> None:
    before = read(lines[1])
    assert before is not None
    lines[2], _ = sealed(before.head, 1.7e9, "test", {"number": 7})


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (changed(edit), "audit-000000000001.jsonl line 3: it is not as it was written"),
        (changed(hash_anew), "line 4 (seq 4): it does not follow from the line before"),
        (changed(lambda lines: lines.pop(2)), "line 3 (seq 4): lines 3 to 3 are missing before it"),
        (changed(lambda lines: lines.insert(1, lines.pop(2))), "line 2 (seq 3): lines 2 to 2 are missing before it"),
        (changed(lambda lines: lines.insert(3, lines[1])), "line 4 (seq 2): it comes after line 3"),
        (changed(lambda lines: lines.pop(0)), "line 1 (seq 2): the file was begun with line 1"),
        (changed(lambda lines: lines.insert(2, b"\n")), "line 3: it is not as it was written"),
    ],
)
def test_the_first_line_that_is_not_right_is_named(log: Path, change: Callable[[Path], None], fault: str) -> None:
    assert verify(log).fault == ""
    change(log)
    assert fault in verify(log).fault


def test_only_a_kept_head_shows_that_the_end_was_cut_or_all_was_written_anew(log: Path) -> None:
    kept = str(Files(log, _PLENTY).head())
    assert verify(log, kept=kept).fault == ""
    assert verify(log, kept=kept.partition(":")[2]).fault == ""
    changed(lambda lines: lines.pop())(log)
    assert verify(log).fault == ""
    assert "the end is missing: the log ends with line 4, and the kept head is line 5" in verify(log, kept=kept).fault
    file_of(log).unlink()
    Files(log, _PLENTY).append(records(6, 1.8e9))
    assert "written anew" in verify(log, kept=kept).fault
    for bad in ("5", "5:12", "x:" + "a" * 64):
        with pytest.raises(InvalidArgument, match="s2cs audit head"):
            verify(log, kept=bad)


@pytest.mark.parametrize("rest", [b'{"seq":6,"at":"20', b"\0" * 40])
def test_what_was_left_of_a_line_stays_and_is_told_of(log: Path, rest: bytes) -> None:
    with file_of(log).open("ab") as file:
        file.write(rest)
    assert "unfinished" in verify(log).notes[0]
    Files(log, _PLENTY).append(records(2))
    report = verify(log)
    assert (report.fault, report.lines) == ("", 8)
    assert f"unfinished line before it, {len(rest)} bytes" in report.notes[0]
    assert rest + b"\n" in file_of(log).read_bytes()
    changed(lambda lines: lines.__setitem__(5, b'{"seq":6,"by":"me"\n'))(log)
    assert "line 6: it is not as it was written" in verify(log).fault


def test_a_last_line_that_was_edited_is_not_taken_for_an_unfinished_one(log: Path) -> None:
    changed(lambda lines: lines.__setitem__(4, lines[4].replace(b'"number":4', b'"number":9')))(log)
    Files(log, _PLENTY).append(records(1))
    assert "line 5: it is not as it was written" in verify(log).fault
    assert b"log.damaged" in file_of(log).read_bytes()


def test_a_file_that_lost_even_its_first_line_goes_on_with_the_chain(log: Path) -> None:
    head = Files(log, _PLENTY).head()
    (log / f"audit-{head.seq + 1:012}.jsonl").write_bytes(b'{"se')
    Files(log, _PLENTY).append(records(1))
    report = verify(log)
    assert (report.fault, report.lines) == ("", 7)


def test_files_follow_each_other_are_compressed_and_go(tmp_path: Path) -> None:
    files = Files(tmp_path, Keeping(2000, 4, 1e9))
    for i in range(20):
        files.append(records(10, 1.7e9 + i))
    kept = files_in(tmp_path)
    assert len(kept) == 4
    assert [path.suffix for path in kept] == [".gz", ".gz", ".gz", ".jsonl"]
    assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}
    report = verify(tmp_path)
    assert report.fault == ""
    assert "were removed as the settings have it" in report.notes[0]
    assert verify(tmp_path, start=kept[1].name).fault == ""
    with pytest.raises(InvalidArgument, match="there is no file"):
        verify(tmp_path, start="audit-000000000777.jsonl")
    kept[0].unlink()
    assert "are missing, and no record tells of a removal" in verify(tmp_path).fault
    kept[2].unlink()
    assert "are missing before it" in verify(tmp_path).fault


def test_a_file_is_not_added_to_for_more_than_a_month_and_goes_when_it_is_too_old(tmp_path: Path) -> None:
    files = Files(tmp_path, Keeping(2**20, 10, 60 * _DAY))
    files.append(records(1, 1e9))
    files.append(records(1, 1e9 + 29 * _DAY))
    assert len(files_in(tmp_path)) == 1
    files.append(records(1, 1e9 + 31 * _DAY))
    assert len(files_in(tmp_path)) == 2
    Files(tmp_path, Keeping(2**20, 10, 60)).append(records(1, 5e9))
    assert len(files_in(tmp_path)) == 1
    assert verify(tmp_path).fault == ""


def test_several_processes_append_to_one_chain(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from s2cs.audit.files import *\n"
        f"files = Files(Path({str(tmp_path)!r}), Keeping(9000, 100, 1e9))\n"
        "for i in range(40): files.append([Record(1.7e9, 'test', {'by': sys.argv[1]})])"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(n)]) for n in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    report = verify(tmp_path)
    assert report.fault == ""
    by = b""
    for path in files_in(tmp_path):
        with opened(path) as file:
            by += file.read()
    assert [by.count(f'"by":"{n}"'.encode()) for n in range(3)] == [40, 40, 40]


def test_a_disk_without_room_leaves_no_half_line_and_the_log_goes_on(tmp_path: Path) -> None:
    script = (
        "import resource; from pathlib import Path; from s2cs.audit.files import *\n"
        f"files = Files(Path({str(tmp_path)!r}), Keeping(2**20, 9, 1e9))\n"
        "files.append([Record(1.7e9, 'before', {})])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))\n"
        "try: files.append([Record(1.7e9, 'lost', {})]); raise SystemExit('it fitted')\n"
        "except OSError: pass\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "files.append([Record(1.7e9, 'after', {})])"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    report = verify(tmp_path)
    assert (report.fault, report.lines, report.notes) == ("", 2, [])


def test_a_flood_is_counted(tmp_path: Path) -> None:
    now = [0.0]
    flood = Flood(3, lambda: now[0])
    assert [flood.admits("login", "192.0.2.1", "") for _ in range(5)] == [True, True, True, False, False]
    assert flood.admits("login", "192.0.2.2", "")
    assert [flood.admits("login", f"[2001:db8::{n}]", "") for n in range(1, 6)].count(True) == 3
    assert flood.due() == []
    now[0] = 61
    assert flood.due() == [
        {"of": "login", "peer": "192.0.2.1", "user": "", "count": 2},
        {"of": "login", "peer": "2001:db8::/64", "user": "", "count": 2},
    ]
    assert not flood.counting
    for n in range(3000):
        flood.admits("login", f"10.{n % 200}.{n // 200}.1", "")
    assert len(flood.due(ending=True)) == 1  # those beyond a thousand addresses, together


def test_a_log_that_cannot_be_written_refuses_sessions_and_loses_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "audit"
    directory.write_text("in the way")
    audit = Audit(Files(directory, _PLENTY), refusals_per_minute=2)
    audit.start()
    audit.write("first", caller=Caller("alice", "local:1"), peer="192.0.2.1:4000")
    assert not audit.flush(0.3)
    with pytest.raises(Unavailable, match="audit log"):
        audit.require()
    directory.unlink()
    assert audit.flush(5) or audit.flush(5)
    audit.require()
    for _ in range(5):
        audit.write("login", caller=KeyHolder(b"k"), peer="192.0.2.1:4000", decision="refused")
    audit.close()
    events = [json.loads(line)["event"] for line in file_of(directory).read_text().splitlines()]
    assert events == ["first", "log.resumed", "login", "login", "refusals"]
    assert verify(directory).fault == ""
    lenient = Audit(Files(tmp_path / "no" / "\0", _PLENTY), strict=False)
    lenient.start()
    lenient.write("anything")
    lenient.flush(0.2)
    lenient.require()
    lenient.close()


def test_records_that_found_no_room_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s2cs.audit.log._MOST_WAITING", 3)
    audit = Audit(Files(tmp_path / "audit", _PLENTY))
    for number in range(10):  # nobody writes yet
        audit.write(f"event {number}")
    audit.start()
    audit.close()
    lines = [json.loads(line) for line in file_of(tmp_path / "audit").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["event 0", "event 1", "event 2", "log.resumed"]
    assert lines[-1]["lost"] == 7


_UNRECORDED = {  # they tell and change nothing, or the gateway itself records what they do
    *("init", "check", "serve", "reload", "doctor", "audit verify", "audit head", "audit show"),
    *("nodes", "nodes list", "s2ds"),
    *("sessions", "sessions list", "user", "user list", "user token", "user token list", "policy", "policy test"),
}


def commands(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{path}{name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path}{name} ")


def test_every_command_that_changes_something_is_recorded() -> None:
    found = dict(commands(cli))
    telling = {name for name, command in found.items() if not isinstance(command, Recorded) or command.tells}
    assert telling - _UNRECORDED == {"audit"}
    assert {"drain", "user add", "user remove", "user disable", "user token revoke", "sessions kill"} <= set(found)


def test_a_peer_is_its_address() -> None:
    assert address("ipv4:192.0.2.1:40000") == "192.0.2.1:40000"
    assert address("ipv6:%5B2001:db8::1%5D:40000") == "[2001:db8::1]:40000"
    assert address("unix:") == "unix:"
