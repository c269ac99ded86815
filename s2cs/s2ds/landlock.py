"""Landlock: what a process and all it starts may open, kept by the kernel (landlock(7), Linux 5.13 and later).

A domain belongs to a thread and is inherited by what the thread starts. So a thread that lives for nothing else takes
one on and starts a program: no helper process, and nothing of it touches the rest of this one.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_CREATE, _ADD, _RESTRICT = 444, 445, 446  # system calls, the same on every architecture
_VERSION = 1  # flag of _CREATE: tell the ABI
_PATH_BENEATH = 1
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_FIRST_ABI = (1 << 13) - 1  # the rest makes and removes what is in directories
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15  # ABI 2, 3, 5
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_BIND_TCP = 1  # ABI 4
_SCOPE_UNIX, _SCOPE_SIGNAL = 1, 2  # ABI 6


@cache
def abi() -> int:
    """Tell which version this kernel has; 0 is none."""
    return max(0, int(_LIBC.syscall(_CREATE, None, ctypes.c_size_t(0), _VERSION)))


def forbid_new_privileges() -> None:
    """See that nothing this thread starts gains privileges, from a set-uid program say."""
    if _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs cannot be set")


def forbid_tracing() -> None:
    """See that this process leaves no core, and that nobody but root reads its memory or takes its descriptors."""
    if _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "the process cannot be made undumpable")


def restrict(read: Iterable[Path], write: Iterable[Path]) -> None:
    """Let this thread, and all it starts, open these files and what is below these directories, and nothing else.

    It also binds no TCP port, and signals and traces nobody outside. What is not there is left out.

    Args:
        read: what may be read and executed.
        write: what may be read and written, and made and removed below it.

    Raises:
        OSError: the kernel has no Landlock, or refuses.
    """
    version = abi()
    if not version:
        raise OSError("this kernel has no Landlock")
    forbid_new_privileges()
    files = _FIRST_ABI | (_REFER * (version >= 2)) | (_TRUNCATE * (version >= 3)) | (_IOCTL_DEV * (version >= 5))
    ports = _BIND_TCP * (version >= 4)
    scopes = (_SCOPE_UNIX | _SCOPE_SIGNAL) * (version >= 6)
    fields = struct.pack("QQQ", files, ports, scopes)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = _call(_CREATE, fields, ctypes.c_size_t(size), 0)
    try:
        for paths, rights in ((read, _EXECUTE | _READ_FILE | _READ_DIR), (write, files & ~_EXECUTE)):
            for path in paths:
                with suppress(FileNotFoundError):
                    _allow(ruleset, path, rights & files)
        _call(_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(f"/proc/self/fd/{fd}"):  # noqa: PTH112 - of the descriptor
            rights &= _OF_FILES
        _call(_ADD, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, fd), 0)
    finally:
        os.close(fd)


def _call(number: int, *arguments: object) -> int:
    result = int(_LIBC.syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"Landlock: {os.strerror(ctypes.get_errno())}")
    return result
