"""What a launcher does: start a program on inherited sockets, find again what an earlier server started."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from typing import Protocol

from s2cs.s2ds.backends.base import Backend, Found
from s2cs.s2ds.config import Containers, Limits
from s2cs.s2ds.confinement import Confinement, own


@dataclass(frozen=True, slots=True)
class Job:
    """A program to run. The sockets are its descriptors 3, 4, ... as in systemd's socket activation."""

    argv: tuple[str, ...]  # the program by its full path
    directory: Path  # where it runs; log and handle are relative to it
    confinement: Confinement = field(default_factory=own)  # whom it runs as, and what it may open
    sockets: tuple[socket.socket, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    log: Path = Path("log")  # stdout and stderr go there
    handle: Path = Path("handle")  # tells a later server which process this was
    uid: str = "none"  # of the session that it is for
    limits: Limits = field(default_factory=Limits)
    logs: int = 0  # further descriptors of the log, after the sockets
    wrapper: tuple[str, ...] = ()  # a command that becomes the program, before that changes its user


class Running(Protocol):
    """A program that was started."""

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    @property
    def ended(self) -> str:
        """How it ended, in words; empty while it runs."""
        ...

    def signal(self, signal: Signals) -> None:
        """Send it a signal; harmless when it has ended."""
        ...

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for its end, and tell whether it has come."""
        ...

    async def stop(self, polite: Signals, grace_s: float) -> None:
        """End it and all it started: politely, and after a grace period by KILL."""
        ...

    def let_go(self) -> None:
        """Stop watching it, and let it run."""
        ...


class Launcher(Protocol):
    """A way to run programs."""

    def using(self, containers: Containers) -> Launcher:
        """Give a launcher for one data server, with the engine and image of its settings, where it needs such."""
        ...

    def lacks(self) -> str:
        """Say what keeps it from running anything on this host; empty when nothing does."""
        ...

    def find(self, backend: Backend, explicit: Path | None, confinement: Confinement | None) -> Found:
        """Find a proxy's program where it will run: the operator's choice, else the first usable one.

        Args:
            backend: which proxy.
            explicit: the operator's choice, if any.
            confinement: whom it will run as, if that is known.
        """
        ...

    async def launch(self, job: Job) -> Running:
        """Start a program; it runs when this returns, and nothing is left when it is cancelled.

        Raises:
            Unavailable: the system starts no program now.
        """
        ...

    def adopt(self, handle: Path) -> Running | None:
        """Find what a handle file names, started by an earlier server; None when it has ended."""
        ...

    def passing_on(self, uid: str, program: str, running: Running | None) -> Callable[[list[str]], None] | None:
        """Give what takes the lines that a program printed to where this host keeps such; None where it has no place.

        Args:
            uid: of the session.
            program: its name.
            running: which it is; None when it has ended unwatched.
        """
        ...

    async def tidy(self, directory: Path) -> None:
        """Clear away what is left of programs that have ended, of the data server with this directory."""
        ...


def out_of_memory(memory_bytes: int) -> str:
    """Say of a program that it was ended for the memory it took, beyond its limit or, where that is 0, its host's."""
    limit = f"[s2ds] memory_bytes = {memory_bytes}" if memory_bytes else "what this node has"
    return f"was ended for want of memory: it needed more than {limit}"
