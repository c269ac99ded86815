"""Run a proxy as a process of this node, in a session and process group of its own.

Started with posix_spawn: no code of this program runs in the child, and no fork handler. A process is
known by its id, its start time and the boot: an id alone may be somebody else's by now.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import resource
import select
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from signal import Signals
from typing import Self

from s2cs.s2ds import procfs
from s2cs.s2ds.backends.base import Backend, Found
from s2cs.s2ds.config import Containers
from s2cs.s2ds.confinement import Confinement, forbid_cores
from s2cs.s2ds.launchers.base import Job, Launcher, Running
from scistream.errors import Unavailable

# What posix_spawn cannot do, with the handle's file as standard input. The process writes its handle itself, before it
# becomes the proxy: there is no moment in which it runs and a server that was killed could not find it again.
_PREAMBLE = """\
umask 077 && cd "$1" || exit 126
read -r boot </proc/sys/kernel/random/boot_id && read -r stat </proc/$$/stat || exit 126
printf '%s %s\\n' "$boot" "$stat" >&0 || exit 126
ulimit -S -n "$2"
export LISTEN_PID=$$
shift 2
exec "$@" </dev/null
"""
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
_FILES_MAX = 2**20
_LIBC = ctypes.CDLL(None)
_CLOSE_RANGE, _CLOEXEC = 436, 1 << 2  # the number of the call is the same on all architectures
_GROUP_END_S = 5.0  # how long what was killed may take to be gone


class Process:
    """A process that was started here, or by an earlier server of the same directory."""

    def __init__(self, pid: int) -> None:
        """Take charge of a process, which has to be there still (as a zombie at least)."""
        self._pid = pid
        self._started = procfs.start_time(pid)
        self._pidfd = os.pidfd_open(pid)
        self._loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[str] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._on_exit)

    @classmethod
    def adopt(cls, boot: str, pid: int, started: int) -> Self | None:
        """Take charge of a process by its handle; None when it has ended."""
        if boot != procfs.boot_id() or procfs.start_time(pid) != started or not procfs.alive(pid):
            return None
        try:
            process = cls(pid)
        except ProcessLookupError:
            return None
        if process._started != started:  # it ended, and its number was given out, between the two looks
            process._forget()
            return None
        return process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._pid

    @property
    def ended(self) -> str:
        """How it ended, in words; empty while it runs."""
        return self._exit.result() if self._exit.done() else ""

    def signal(self, signal: Signals) -> None:
        """Send it a signal; harmless when it has ended."""
        if not self._exit.done():
            with suppress(ProcessLookupError):
                _pidfd_signal(self._pidfd, signal)

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for its end, and tell whether it has come."""
        await asyncio.wait({self._exit}, timeout=timeout_s)
        return self._exit.done()

    async def stop(self, polite: Signals, grace_s: float) -> None:
        """End it and its whole group: politely, and after a grace period by KILL; return when all are gone."""
        self.signal(polite)
        if not await self.wait(grace_s):
            self._kill_group()
            await self.wait()
        deadline = self._loop.time() + _GROUP_END_S
        while self._group_there() and self._loop.time() < deadline:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)

    def let_go(self) -> None:
        """Stop watching it, and let it run."""
        if not self._exit.done():
            self._forget()

    def _on_exit(self) -> None:
        why_killed = self._why_killed()
        # Its number cannot be given out again before it is reaped: what its group still has is ours to kill.
        self._kill_group()
        try:
            ended = in_words(os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1]))
        except ChildProcessError:
            ended = "ended"  # an earlier server's child: init has its status
        self._forget()
        self._exit.set_result(why_killed if why_killed and ended in ("ended", in_words(-signal.SIGKILL)) else ended)

    def _why_killed(self) -> str:
        """Say why it was killed, if it was, where that is known; asked before anything of it is cleared away."""
        return ""

    def _forget(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)

    def _kill_group(self) -> None:
        if procfs.start_time(self._pid) in (self._started, None):
            with suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)

    def _group_there(self) -> bool:
        with suppress(ChildProcessError):
            os.waitpid(-self._pid, os.WNOHANG)  # where this program is init, its orphans come to it
        try:
            os.killpg(self._pid, 0)
        except ProcessLookupError:
            return False
        return any(procfs.group_members(self._pid))


class ProcessLauncher:
    """Run programs as processes of this node."""

    kind = Process

    def using(self, containers: Containers) -> Launcher:
        """Give this: it needs no containers."""
        return self

    def lacks(self) -> str:
        """Say what keeps processes from being run here: nothing."""
        return ""

    def find(self, backend: Backend, explicit: Path | None, confinement: Confinement | None) -> Found:
        """Find a proxy's program on this node, where its user can run it."""
        found = backend.find(explicit)
        closed = confinement.closed(found.program) if confinement and not found.reason else None
        if confinement is None or closed is None:
            return found
        reason = f"program {found.program} is behind {closed}, which {confinement.user}, whom proxies run as, cannot"
        return replace(found, reason=f"{reason} pass; install it: {backend.install}")

    async def launch(self, job: Job) -> Running:
        """Start a program; it runs when this returns.

        Raises:
            Unavailable: the system starts no process now.
        """
        start = (str(job.directory), str(files_limit()), *job.wrapper, *job.confinement.prefix())
        argv = ["/bin/sh", "-c", _PREAMBLE, "sh", *start, *job.argv]
        environment = {**ENVIRONMENT, **job.environment, "LISTEN_FDS": str(len(job.sockets))}
        opened: list[int] = []
        try:
            for name, how in ((job.log, os.O_APPEND), (job.handle, os.O_TRUNC)):
                flags = how | os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                opened.append(os.open(job.directory / name, flags, 0o600))
            job.confinement.give(job.directory / job.log)  # nginx opens it again
            log, handle = opened
            first_free = 3 + len(job.sockets) + job.logs
            # Sources above all targets, so that no mapping overwrites the source of a later one.
            for each in (handle, log, *(s.fileno() for s in job.sockets)):
                opened.append(fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, first_free))
            actions: list[tuple[int, ...]] = [
                (os.POSIX_SPAWN_DUP2, opened[2], 0),
                (os.POSIX_SPAWN_DUP2, opened[3], 1),
                (os.POSIX_SPAWN_DUP2, opened[3], 2),
                *((os.POSIX_SPAWN_DUP2, source, 3 + i) for i, source in enumerate(opened[4:] + [opened[3]] * job.logs)),
            ]
            forbid_cores()
            _hand_down_nothing_else()
            pid = _confined(job, lambda: _spawn(argv, environment, actions))
        except OSError as error:
            raise Unavailable(
                f"{job.argv[0]} could not be started: {error.strerror}; look at this node's load"
            ) from None
        finally:
            for each in opened:
                os.close(each)
        try:
            return self.kind(pid)
        except OSError as error:  # nobody would hear of its end
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)  # noqa: ASYNC222 - it was killed
            raise Unavailable(
                f"{job.argv[0]} could not be watched: {error.strerror}; look at this node's load"
            ) from None

    def adopt(self, handle: Path) -> Running | None:
        """Find what a handle file names; None when it has ended."""
        try:
            boot, _, stat = handle.read_text().partition(" ")
            pid, started = int(stat.split()[0]), int(procfs.stat_fields(stat)[19])
        except (OSError, ValueError, IndexError):
            return None  # killed before it had written it, that is before it was a proxy
        process = self.kind.adopt(boot, pid, started)
        if process is None and boot == procfs.boot_id():
            _end_orphans(pid, handle.parent)
        return process

    def passing_on(self, uid: str, program: str, running: Running | None) -> Callable[[list[str]], None] | None:
        """Give none: what they print is read from their files alone."""
        return None

    async def tidy(self, directory: Path) -> None:
        """Do nothing: of a process nothing is left."""


def _spawn(argv: list[str], environment: dict[str, str], actions: list[tuple[int, ...]]) -> int:
    return os.posix_spawn(
        argv[0],
        argv,
        environment,
        file_actions=actions,
        setsid=True,
        setsigmask=(),
        setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
    )


def _confined(job: Job, start: Callable[[], int]) -> int:
    """Start a process from a thread that was confined for it, and ends with that."""
    started: list[int | OSError] = []

    def run() -> None:
        try:
            job.confinement.enter(Path(job.argv[0]), job.directory, job.directory / job.log)
            started.append(start())
        except OSError as error:
            started.append(error)

    thread = threading.Thread(target=run, name="launch")
    try:
        thread.start()
    except RuntimeError:  # all that Python says of it
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
    thread.join()
    match started:
        case [int(pid)]:
            return pid
        case [OSError() as error]:
            raise error
    raise OSError(errno.EPERM, "its confinement failed")


def _end_orphans(group: int, directory: Path) -> None:
    """End what outlived the leader of a group, as nginx's workers do: its sockets are needed.

    The number may be another group's by now, so each is known by where it runs.
    """
    for pid in procfs.group_members(group):
        with suppress(OSError):
            pidfd = os.pidfd_open(pid)
            try:
                if directory.samefile(f"/proc/{pid}/cwd"):  # its name may lead through a link
                    _pidfd_signal(pidfd, Signals.SIGKILL)
                    gone = select.poll()
                    gone.register(pidfd)
                    gone.poll(_GROUP_END_S * 1000)  # its sockets are free then
            finally:
                os.close(pidfd)


def _hand_down_nothing_else() -> None:
    """Take back what a library of this program left inheritable. Python's own descriptors never are.

    In one call, where the kernel has it (Linux 5.11): there are some for every session.
    """
    if _LIBC.syscall(_CLOSE_RANGE, 3, ctypes.c_uint(-1), _CLOEXEC):
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names, and fast
            with suppress(OSError):
                if int(name) >= 3:
                    os.set_inheritable(int(name), False)


def files_limit() -> int:
    """How many files a proxy may open: as many as the system lets this service raise it to."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return _FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, _FILES_MAX)


def in_words(code: int) -> str:
    return f"was ended by {Signals(-code).name}" if code < 0 else f"exited with status {code}"


def _pidfd_signal(pidfd: int, number: Signals) -> None:
    signal.pidfd_send_signal(pidfd, number)
