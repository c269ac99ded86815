"""What can be said of the launcher `systemd` where no systemd runs; the rest is in tests/engines."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from s2cs.s2ds.journal import Journal
from s2cs.s2ds.launchers import systemd
from s2cs.s2ds.launchers.base import Limits
from s2cs.s2ds.launchers.systemd import SystemdLauncher, members, properties, unit_of
from s2cs.s2ds.local import LocalDataServer
from scistream.errors import FailedPrecondition
from scistream.vocabulary import PortRange
from tests.support.tunnels import Flavour, config


def test_limits_are_properties_and_none_is_none() -> None:
    assert not [each for each in properties(Limits()) if "Max" in each]
    found = properties(Limits(memory_bytes=2**26, tasks=32, cpu_weight=50))
    assert {"MemoryMax=67108864", "TasksMax=32", "CPUWeight=50"} <= set(found)


@pytest.mark.parametrize(
    ("booted", "uid", "sentence"),
    [(False, 0, "systemd does not run here"), (True, 1000, "for root only"), (True, 0, "no systemd-run")],
)
async def test_what_it_lacks_is_said_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, booted: bool, uid: int, sentence: str
) -> None:
    monkeypatch.setattr(systemd, "_BOOTED", tmp_path if booted else tmp_path / "none")
    monkeypatch.setattr("os.geteuid", lambda: uid)
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert sentence in SystemdLauncher().lacks()
    server = LocalDataServer(config(tmp_path / "d", PortRange(1, 2), Flavour("", "auto"), launcher="systemd"))
    with pytest.raises(FailedPrecondition, match=sentence):
        await server.open()
    assert not (tmp_path / "d").exists()


def test_what_is_in_no_scope_has_no_members() -> None:
    assert unit_of(1) == ""
    assert unit_of(2**22) == ""
    assert members("") == members("scistream-none.scope") == set()


def test_the_journal_gets_a_line_with_its_fields_and_is_never_waited_for(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "socket")
    journal.send(["nobody is there"], "nginx", {})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there:
        there.bind(str(tmp_path / "socket"))
        there.setblocking(False)
        journal.send(["one", "two=2"], "nginx", {"SCISTREAM_SESSION": "u-1"})
        rest = "PRIORITY=7\nSYSLOG_IDENTIFIER=nginx\nSCISTREAM_SESSION=u-1\n"
        assert [there.recv(999).decode() for _ in range(2)] == [f"MESSAGE=one\n{rest}", f"MESSAGE=two=2\n{rest}"]
        journal.send(map(str, range(10_000)), "nginx", {})  # it is not read meanwhile
        taken = 0
        while True:
            try:
                there.recv(999)
            except BlockingIOError:
                break
            taken += 1
        assert 0 < taken < 10_000
        journal.send(["after"], "nginx", {})
        assert there.recv(999).startswith(f"MESSAGE=the journal did not take {10_000 - taken} lines\n".encode())
        assert there.recv(999).startswith(b"MESSAGE=after\n")


@pytest.mark.parametrize(
    ("place", "counter", "limit"),
    [("memory", "memory.oom_control", "memory.limit_in_bytes"), ("", "memory.events", "memory.max")],
    ids=["version 1", "version 2"],
)
def test_what_the_kernel_says_of_memory_is_read_in_both_versions_of_control_groups(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str, counter: str, limit: str
) -> None:
    monkeypatch.setattr(systemd, "_GROUPS", tmp_path)
    scope = tmp_path / place / systemd.SLICE / "scistream-u.scope"
    scope.mkdir(parents=True)
    (scope / counter).write_text("oom_kill_disable 0\noom 4\noom_kill 2\noom_group_kill 0\n")
    (scope.parent / counter).write_text("oom_kill 3\n")
    assert [systemd._kills(unit) for unit in (scope.name, "", "scistream-other.scope")] == [2, 3, None]
    for text, bytes_ in (("67108864\n", 2**26), ("max\n", 0), ("9223372036854771712\n", 0)):
        (scope / limit).write_text(text)
        assert systemd._memory_limit(scope.name) == bytes_
