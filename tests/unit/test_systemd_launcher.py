"""What can be said of the launcher `systemd` where no systemd runs; the rest is in tests/engines."""

from __future__ import annotations

from pathlib import Path

import pytest

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
