"""The clock of leases, with a wall clock and a boot that are ours to move."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from s2cs.clock import Clock
from s2cs.store import SqliteStore

DAY = 86400.0


class Machine:
    """Its clocks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.boot, self.up, self.wall = "boot-1", 100.0, 1_800_000_000.0
        monkeypatch.setattr("s2cs.clock.time.time", lambda: self.wall)

    def passes(self, seconds: float) -> None:
        self.up += seconds
        self.wall += seconds

    def clock(self, store: SqliteStore) -> Clock:
        return Clock.of(store, self.boot, lambda: self.up)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path / "s2cs.db")
    yield store
    store.close()


@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_a_jump_of_the_wall_clock_moves_no_lease(machine: Machine, store: SqliteStore, jump: float) -> None:
    clock = machine.clock(store)
    begin = clock.now()
    machine.passes(10)
    machine.wall += jump
    assert clock.now() == begin + 10
    again = machine.clock(store)  # nor does a restart after it
    assert again.now() == begin + 10
    assert again.wall(begin + 60) == pytest.approx(machine.wall + 50)


def test_a_new_boot_begins_at_the_wall_clock(machine: Machine, store: SqliteStore) -> None:
    machine.clock(store)
    machine.boot, machine.up, machine.wall = "boot-2", 5.0, machine.wall + 500
    assert machine.clock(store).now() == pytest.approx(machine.wall)


def test_what_is_told_does_not_tremble(machine: Machine, store: SqliteStore) -> None:
    clock = machine.clock(store)
    first = clock.wall(clock.now() + 60)
    machine.passes(3)
    machine.wall += 0.2  # NTP slews
    assert clock.wall(clock.now() - 3 + 60) == pytest.approx(first, abs=1e-3)
