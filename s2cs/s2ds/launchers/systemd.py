"""Run each proxy in a transient scope of systemd: with limits, accounts of its own, and nothing that escapes its end.

A scope, not a service: a service would be started by systemd, which could not hand down sockets that it does not
know (the property for that, ExtraFileDescriptors, is in later versions than 252). `systemd-run --scope` makes the scope
around itself and becomes the proxy, with all descriptors: there is no moment in which it runs outside of its unit.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from signal import Signals

from s2cs.s2ds import procfs
from s2cs.s2ds.config import Limits
from s2cs.s2ds.journal import Journal
from s2cs.s2ds.launchers.base import Job, Running, out_of_memory
from s2cs.s2ds.launchers.process import Process, ProcessLauncher

SLICE = "scistream.slice"
"""What all data servers of a node share, to be limited together."""

_BOOTED = Path("/run/systemd/system")  # sd_booted(3)
_HIERARCHIES = ("", "unified", "systemd")  # where systemd's own groups are: alone, hybrid, or the old way
_GROUPS = Path("/sys/fs/cgroup")
_NO_LIMIT = 2**62  # version 1 of control groups has a number for it


class Scoped(Process):
    """A process in a scope. The whole scope ends with it, also what has left its process group."""

    unit = ""
    memory_bytes = 0  # what it may use
    _kills_before = 0  # of all in the slice, when it began

    def is_in(self, unit: str, memory_bytes: int) -> None:
        """Take note of its scope."""
        self.unit, self.memory_bytes = unit, memory_bytes
        self._kills_before = _kills("") or 0

    def _why_killed(self) -> str:
        found = _kills(self.unit) if self.unit else 0
        if found is None:  # systemd clears a scope away in the moment in which it is empty; the slice counts on
            found = (_kills("") or 0) - self._kills_before
        return out_of_memory(self.memory_bytes) if found > 0 else ""

    async def stop(self, polite: Signals, grace_s: float) -> None:
        """End it and its whole scope; return when systemd knows neither any more."""
        await super().stop(polite, grace_s)
        if self.unit:
            # A scope whose process ended while it was being made stays, empty, until it is told to go.
            with suppress(OSError):
                command = ("systemctl", "stop", "--quiet", "--no-ask-password", self.unit)
                null = asyncio.subprocess.DEVNULL
                gone = await asyncio.create_subprocess_exec(*command, stdin=null, stdout=null, stderr=null)
                await gone.wait()

    def _kill_group(self) -> None:
        super()._kill_group()
        for pid in members(self.unit):
            with suppress(ProcessLookupError):
                os.kill(pid, Signals.SIGKILL)

    def _group_there(self) -> bool:
        return super()._group_there() or any(map(procfs.alive, members(self.unit)))


class SystemdLauncher(ProcessLauncher):
    """Run programs as processes of this node, each in a scope named for its session."""

    kind = Scoped

    def __init__(self) -> None:
        self._journal = Journal()

    def lacks(self) -> str:
        """Say what keeps scopes from being made here; empty when nothing does."""
        if not _BOOTED.is_dir():
            return "systemd does not run here"
        if os.geteuid():
            # polkit is not told the name of a transient unit: who may make these scopes may run anything as root.
            return (
                "systemd makes units for root only, and this is not root; "
                "run S2CS with deploy/systemd/privileged.conf, or as root"
            )
        if shutil.which("systemd-run") is None:
            return "there is no systemd-run"
        return ""

    async def launch(self, job: Job) -> Running:
        """Start a program in a scope of its own; it runs when this returns.

        Raises:
            Unavailable: the system starts no process now.
        """
        unit = f"scistream-{job.uid}-{secrets.token_hex(4)}.scope"
        running = await super().launch(replace(job, wrapper=_command(unit, job)))
        assert isinstance(running, Scoped)
        running.is_in(unit, job.limits.memory_bytes)
        return running

    def adopt(self, handle: Path) -> Running | None:
        """Find what a handle file names, and its scope; None when it has ended."""
        running = super().adopt(handle)
        if isinstance(running, Scoped):
            unit = unit_of(running.pid)
            running.is_in(unit, _memory_limit(unit))
        return running

    def passing_on(self, uid: str, program: str, running: Running | None) -> Callable[[list[str]], None] | None:
        """Give what takes the lines that a program printed to the journal, as its scope's and its session's."""
        fields = {"SCISTREAM_SESSION": uid}
        if isinstance(running, Scoped) and running.unit:
            # As systemd's own programs say whom a line is about, which journalctl believes of root.
            fields |= {"SYSLOG_PID": str(running.pid), "OBJECT_SYSTEMD_UNIT": running.unit}
        return lambda lines: self._journal.send(lines, program, fields)


def _command(unit: str, job: Job) -> tuple[str, ...]:
    """What makes a scope and becomes what follows it."""
    about = f"SciStream session {job.uid}, {Path(job.argv[0]).name}"
    command = ["systemd-run", "--scope", "--quiet", "--collect", "--no-ask-password"]
    command += ["--unit", unit, "--slice", SLICE, "--description", about]
    for assignment in properties(job.limits):
        command += ["--property", assignment]
    return (*command, "--")


def properties(limits: Limits) -> list[str]:
    """Give limits as systemd names them. It accounts for what it limits, and for the rest where it is told to."""
    found = ["MemoryAccounting=yes", "TasksAccounting=yes", "CPUAccounting=yes", f"CPUWeight={limits.cpu_weight}"]
    if limits.memory_bytes:
        found += [f"MemoryMax={limits.memory_bytes}", "MemorySwapMax=0"]
    if limits.tasks:
        found.append(f"TasksMax={limits.tasks}")
    return found


def unit_of(pid: int) -> str:
    """Tell the scope of ours that a process is in; empty when it is in none."""
    try:
        text = Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return ""
    names = {line.rpartition("/")[2] for line in text.splitlines()}
    return next((name for name in names if name.startswith("scistream-") and name.endswith(".scope")), "")


def members(unit: str) -> set[int]:
    """The processes of a scope of ours."""
    if not unit:
        return set()
    for hierarchy in _HIERARCHIES:
        with suppress(OSError, ValueError):
            return set(map(int, (_GROUPS / hierarchy / SLICE / unit / "cgroup.procs").read_text().split()))
    return set()


def _memory(unit: str, name_1: str, name_2: str) -> str:
    """Read what the kernel says of the memory of a scope of ours, or of all of them; empty when there is none such."""
    for hierarchy, name in (("memory", name_1), ("", name_2)):  # version 1 of control groups, and version 2
        with suppress(OSError):
            return (_GROUPS / hierarchy / SLICE / unit / name).read_text()
    return ""


def _kills(unit: str) -> int | None:
    """Count the processes of a scope of ours, or of all, that were killed for want of memory; None without a scope."""
    found = re.search(r"^oom_kill (\d+)$", _memory(unit, "memory.oom_control", "memory.events"), re.MULTILINE)
    return int(found[1]) if found else None


def _memory_limit(unit: str) -> int:
    """Give how much memory a scope of ours may use; 0 when there is no limit."""
    limit = _memory(unit, "memory.limit_in_bytes", "memory.max").strip() if unit else ""
    return int(limit) if limit.isdigit() and int(limit) < _NO_LIMIT else 0
