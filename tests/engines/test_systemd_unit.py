"""The unit of the gateway in a booted systemd."""

from __future__ import annotations

from tests.support.booted import Machine


def test_a_systemd_runs(machine: Machine) -> None:
    assert machine.said("systemctl", "is-system-running") in ("running", "degraded")
