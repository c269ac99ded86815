"""Our programs as processes that are forked from one that has imported what they need, which is most of a start.

What such a process does, gets and leaves is its own; only the imports are shared. A program that has to begin as a
user's does is started with `python -m` or by its name, as in the tests of the README and of the package.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import pkgutil
import re
import resource
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("s2cs", "s2uc")
_EARLY = re.compile("PYTHON[A-Z]|LD_")  # what Python itself and the loader go by
Finished = subprocess.CompletedProcess[str]


def run(program: str, *arguments: str | Path, stdin: str = "", timeout: float = 100, **environ: str) -> Finished:
    """Run `python -m PROGRAM` to its end.

    Args:
        program: s2cs or s2uc.
        arguments: Its command line.
        stdin: What it reads.
        timeout: Seconds until it is killed.
        **environ: What its environment has on top of this process's.

    Raises:
        subprocess.TimeoutExpired: It was killed.
    """
    files = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
    try:
        os.write(files[0], stdin.encode())
        os.lseek(files[0], 0, os.SEEK_SET)
        started = Started([program, *map(str, arguments)], environ, files)
        try:
            status = started.wait(timeout)
        except subprocess.TimeoutExpired:
            started.send_signal(signal.SIGKILL)
            raise
        out, err = (os.pread(file, 2**30, 0).decode() for file in files[1:])
    finally:
        for file in files:
            os.close(file)
    return Finished(started.args, status, out, err)


class Started:
    """A program that runs, with what of `subprocess.Popen` tests need."""

    def __init__(self, args: list[str], environ: Mapping[str, str], files: Sequence[int]) -> None:
        """Start `python -m ARGS`, with environ on top of this process's and files as standard streams."""
        early = [name for name in environ if _EARLY.match(name) and environ[name] != os.environ.get(name)]
        assert not early, f"{early} have been read before the fork"
        self.args = args
        self.returncode: int | None = None
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        order = {"args": args, "directory": str(Path.cwd()), "environ": {**os.environ, **environ}, "limits": limits}
        with os.fdopen(os.memfd_create("order"), "w+") as file:
            json.dump(order, file)
            file.flush()
            file.seek(0)
            self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._channel.connect(_address())
            socket.send_fds(self._channel, [b"run"], [file.fileno(), *files])
            self.pid = int(self._channel.recv(100))

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; its exit status, or the signal that ended it as a negative number."""
        if self.returncode is None:
            self._channel.settimeout(timeout)
            try:
                self.returncode = int(self._channel.recv(100))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            self._channel.close()
        return self.returncode

    def poll(self) -> int | None:
        """Say how it has ended, None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def send_signal(self, number: int) -> None:
        """Signal it, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


@cache
def _address() -> bytes:
    """Start the process that the others are forked from, and say where it listens."""
    ours, theirs = socket.socketpair()
    code = f"from tests.support import programs; programs.serve({theirs.fileno()})"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=_ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
    )
    theirs.close()
    address = ours.recv(100)
    assert address, "the process that others are forked from did not start"

    def end() -> None:
        ours.close()  # it ends when nobody is there any more
        process.wait(30)

    atexit.register(end)
    return address


def serve(parent: int) -> None:
    """Fork a process for each caller, and tell it how that one ended, until the parent has gone."""
    for package in _PACKAGES:
        _import_all(package)
    assert len([*Path("/proc/self/task").iterdir()]) == 1, "an import has started a thread, and no fork would have it"
    gc.freeze()  # nobody looks through it in each process
    as_imported = {name: value for name, value in os.environ.items() if name.startswith("GRPC_")}
    family = socket.socket(fileno=parent)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind("")  # a free name that is no file
    listener.listen(100)
    family.send(listener.getsockname())
    callers: dict[int, tuple[int, socket.socket]] = {}  # by the pidfd of who was forked for them
    with selectors.DefaultSelector() as waiting:
        for each in (family, listener):
            waiting.register(each, selectors.EVENT_READ)
        while True:
            ready = {key.fd for key, _ in waiting.select()}
            if family.fileno() in ready:
                return
            for pidfd in ready & callers.keys():
                waiting.unregister(pidfd)
                os.close(pidfd)
                pid, caller = callers.pop(pidfd)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with caller, suppress(OSError):  # it may have ceased to wait
                    caller.send(str(status).encode())
            if listener.fileno() not in ready:
                continue
            caller, _ = listener.accept()
            files = socket.recv_fds(caller, 10, 4)[1]
            pid = os.fork()
            if not pid:
                for each in (family, listener, caller, *(other for _, other in callers.values())):
                    each.close()
                for pidfd in callers:
                    os.close(pidfd)
                break
            for file in files:
                os.close(file)
            caller.send(str(pid).encode())
            pidfd = os.pidfd_open(pid)
            callers[pidfd] = pid, caller
            waiting.register(pidfd, selectors.EVENT_READ)
    _become(files, as_imported)


def _become(files: list[int], as_imported: dict[str, str]) -> None:
    """Go on as the program that was ordered."""
    with os.fdopen(files[0]) as file:
        order = json.load(file)
    for number, file in enumerate(files[1:]):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(order["environ"] | as_imported)
    os.chdir(order["directory"])
    resource.setrlimit(resource.RLIMIT_NOFILE, order["limits"])
    sys.path[0] = order["directory"]
    sys.argv = order["args"]
    status: int | str | None = 1
    try:
        runpy.run_module(order["args"][0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
    assert status is None or isinstance(status, int)
    # What Python does at an end, but for taking all modules apart: they are many here.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status or 0)


def _import_all(package: str) -> None:
    for module in pkgutil.walk_packages(import_module(package).__path__, f"{package}."):
        if not module.name.endswith("__main__"):
            with suppress(ImportError):  # an extra that is not installed is missed where it is used
                import_module(module.name)
