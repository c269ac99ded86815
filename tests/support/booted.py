"""A machine with a systemd of its own, which a kit boots: `KIT start`, `KIT in COMMAND...`, `KIT stop`."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Machine:
    """A booted machine with this one's files, network `lo` only. What is written there is thrown away."""

    kit: Path

    def boot(self) -> None:
        """Start it."""
        self._kit("start")
        # The kit lays an empty /tmp over this machine's; the tree may be below it.
        if self.run("test", "-e", str(ROOT / "pyproject.toml"), check=False).returncode:
            self.run("umount", "/tmp")

    def stop(self) -> None:
        """End all of it; what its control groups leave behind for a moment is no fault."""
        self._kit("stop", check=False)

    def run(self, *command: str, check: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in it to its end."""
        more = {"text": True, **more}
        done = subprocess.run([*self._in, *command], capture_output=True, check=False, **more)
        if check and done.returncode:
            raise AssertionError(f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def said(self, *command: str) -> str:
        """Give what a command prints."""
        return self.run(*command).stdout.strip()

    def popen(self, *command: str, **more: Any) -> subprocess.Popen[str]:
        """Start a command in it, with pipes."""
        pipe = subprocess.PIPE
        return subprocess.Popen([*self._in, *command], stdin=pipe, stdout=pipe, text=True, **more)

    def show(self, unit: str, name: str) -> str:
        """Give a property of a unit."""
        return self.said("systemctl", "show", "--value", "--property", name, unit)

    @property
    def _in(self) -> list[str]:
        return ["bash", str(self.kit), "in", "env", "-i", f"PATH={PATH}", "HOME=/root", "LC_ALL=C.UTF-8"]

    def _kit(self, word: str, check: bool = True) -> None:
        # Not captured: what the kit starts would keep the pipes open.
        null = subprocess.DEVNULL
        subprocess.run(["bash", str(self.kit), word], check=check, stdout=null, stderr=None if check else null)
