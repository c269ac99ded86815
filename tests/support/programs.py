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
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("s2cs", "s2uc")
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
    command = [program, *map(str, arguments)]
    order = json.dumps({"command": command, "directory": str(Path.cwd()), "environ": {**os.environ, **environ}})
    files = [os.memfd_create(name) for name in ("order", "stdin", "stdout", "stderr")]
    try:
        for file, content in zip(files, (order, stdin), strict=False):
            os.write(file, content.encode())
            os.lseek(file, 0, os.SEEK_SET)
        status = _ended(command, files, timeout)
        out, err = (os.pread(file, 2**30, 0).decode() for file in files[2:])
    finally:
        for file in files:
            os.close(file)
    return subprocess.CompletedProcess(command, status, out, err)


def _ended(command: list[str], files: list[int], timeout: float) -> int:
    """Wait for the exit status."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.settimeout(timeout)
        channel.connect(_address())
        socket.send_fds(channel, [b"run"], files)
        pid = int(channel.recv(100))
        try:
            return int(channel.recv(100))
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(command, timeout) from None


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
    sys.path[0] = order["directory"]
    sys.argv = order["command"]
    status: int | str | None = 1
    try:
        runpy.run_module(order["command"][0], run_name="__main__", alter_sys=True)
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
