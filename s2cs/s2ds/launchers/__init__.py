"""The ways to run a proxy: one module each, listed here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from s2cs.s2ds.launchers.base import Launcher
from s2cs.s2ds.launchers.docker import DockerLauncher
from s2cs.s2ds.launchers.process import ProcessLauncher
from s2cs.s2ds.launchers.systemd import SystemdLauncher

LAUNCHERS: Mapping[str, Launcher] = MappingProxyType(
    {"process": ProcessLauncher(), "systemd": SystemdLauncher(), "docker": DockerLauncher()}
)
"""Each launcher by its name."""
