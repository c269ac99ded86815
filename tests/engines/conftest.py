"""What needs an engine: a booted systemd, containers, a cluster. Each is a fixture, and skips where there is none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.support.booted import Machine

_KIT = "SCISTREAM_SYSTEMD_KIT"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all of this folder, so that none runs by accident."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.engines)


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A machine with a systemd that was just booted, thrown away after the module's tests."""
    kit = os.environ.get(_KIT, "")
    if not kit:
        pytest.skip(f"{_KIT} names no program that boots a systemd")
    if os.geteuid():
        pytest.skip("only root boots a systemd")
    machine = Machine(Path(kit))
    with FileLock(Path(tempfile.gettempdir()) / "scistream-booted.lock"):  # there is one at a time
        machine.boot()
        try:
            yield machine
        finally:
            machine.stop()
