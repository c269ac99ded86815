"""`s2cs doctor`: is this host made for what its gateway is to carry? Read first, then judged by pure functions."""

from __future__ import annotations

from dataclasses import replace

from s2cs.doctor.findings import Finding, Level, Need
from s2cs.doctor.host import judge_host
from s2cs.doctor.network import judge_network
from s2cs.doctor.readings import Readings, read

__all__ = ["Finding", "Level", "Need", "Readings", "judge", "read"]


def judge(readings: Readings, need: Need) -> list[Finding]:
    """Judge what was read of a host against what is needed of it; looks at nothing else."""
    found = [*judge_network(readings, need), *judge_host(readings, need)]
    return [_outside(each) for each in found] if readings.sysctl_fixed else found


def _outside(finding: Finding) -> Finding:
    """Say where a setting of the kernel can be changed, when that is not here."""
    if "sysctl -w " not in finding.mend:
        return finding
    return replace(finding, mend=f"outside of this container, where /proc/sys can be written: {finding.mend}")
