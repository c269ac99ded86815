"""Whom proxies run as and what they may open: their own session's files, and what any program of this node needs."""

from __future__ import annotations

import os
import pwd
import resource
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from s2cs.s2ds import landlock
from scistream.errors import FailedPrecondition
from scistream.vocabulary import shown

OWN_USER = "scistream-s2ds"
"""The system user that is taken where there is one."""

RUN = "run"
"""The directory of a tunnel's that its proxy may write to."""

# To become another user, to give it files, and to see, signal and end what runs as it.
_NEEDED = {"CHOWN": 0, "DAC_OVERRIDE": 1, "KILL": 5, "SETGID": 6, "SETUID": 7, "SETPCAP": 8, "SYS_PTRACE": 19}
_READ = tuple(
    map(
        Path,
        (
            *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt", "/nix/store"),
            *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload", "/etc/localtime"),
            *("/etc/ssl/openssl.cnf", "/etc/pki/tls/openssl.cnf", "/etc/crypto-policies"),
            *("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/hosts", "/etc/resolv.conf"),
            *("/proc", "/sys/devices/system", "/dev/urandom", "/dev/random"),
        ),
    )
)
_WRITE = (Path("/dev/null"), Path("/dev/zero"))


@dataclass(frozen=True, slots=True)
class Confinement:
    """How proxies are kept in bounds."""

    user: str
    uid: int
    gid: int
    switches: bool = False  # they run as another user than this process
    caution: str = ""  # why that is less than it could be

    @property
    def as_root(self) -> bool:
        """True when they run as root."""
        return self.uid == 0

    @property
    def reader(self) -> int | None:
        """The group that has to be able to read their files; None when they are this user's own."""
        return self.gid if self.switches else None

    def prefix(self) -> tuple[str, ...]:
        """What a command is run with, to be run as their user and with no capability."""
        if not self.switches:
            return ()
        ids = ("--reuid", str(self.uid), "--regid", str(self.gid), "--clear-groups")
        none = ("--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all", "--no-new-privs")
        return ("setpriv", *ids, *none, "--")

    def give(self, path: Path) -> None:
        """Make a file or directory the proxies' own."""
        if self.switches:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def enter(self, program: Path, directory: Path, log: Path) -> None:
        """Confine this thread, and the proxy of a tunnel that it will start."""
        landlock.forbid_new_privileges()
        if landlock.abi():
            programs = {program.parent, program.resolve().parent}  # what is named may be a link
            landlock.restrict((*_READ, *programs, directory), (*_WRITE, directory / RUN, log))

    def closed(self, path: Path) -> Path | None:
        """Find the first directory on the way to a path that they cannot pass."""
        if not self.switches:
            return None
        for directory in reversed(path.resolve().parents):
            status = directory.stat()
            shift = 6 if status.st_uid == self.uid else 3 if status.st_gid == self.gid else 0
            if not status.st_mode >> shift & 1:
                return directory
        return None


def own() -> Confinement:
    """Run proxies as this process's own user."""
    return Confinement(_name(os.geteuid()), os.geteuid(), os.getegid())


def choose(user: str) -> Confinement:
    """Decide whom proxies run as.

    Args:
        user: a name; empty leaves the choice: scistream-s2ds, else nobody, when this process is root and can
            change to another user, else its own.

    Raises:
        FailedPrecondition: there is no such user, or proxies cannot be run as it.
    """
    self = own()
    if os.geteuid() and user in ("", self.user):
        return self
    found = _user(user) if user else _user(OWN_USER) or _user("nobody")
    if user and found is None:
        raise FailedPrecondition(
            f"[s2ds] user {shown(user)} is not known here; make it with: useradd --system --no-create-home {user}"
        )
    if found is not None and found.pw_uid == os.geteuid():
        return replace(self, caution=f"proxies run as {self.user}, as [s2ds] user has it")
    lacking = _lacking(found)
    if user and lacking:
        raise FailedPrecondition(f"proxies cannot run as [s2ds] user {user}: {lacking}; leave the key out")
    if found is None or lacking:
        return replace(self, caution=f"proxies run as {self.user}: {lacking}")
    caution = ""
    if not user and found.pw_name != OWN_USER:
        caution = (
            f"proxies run as {found.pw_name}, whom other services may be, too; "
            f"make a user for them: useradd --system --no-create-home {OWN_USER}"
        )
    return Confinement(found.pw_name, found.pw_uid, found.pw_gid, switches=True, caution=caution)


def forbid_cores() -> bool:
    """Let neither this process nor what it starts leave a core, which would hold keys; tell whether that worked.

    The limit is 1 byte: 0 does not keep the kernel from piping a core to a program, 1 does (core(5), fs/coredump.c).
    """
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    except (ValueError, OSError):
        return resource.getrlimit(resource.RLIMIT_CORE)[0] == 1
    return True


def keep_keys_in() -> None:
    """Leave no core of this process, let others of its user not look into its memory, and make files its own."""
    forbid_cores()
    landlock.forbid_tracing()
    os.umask(0o077)


def _lacking(found: pwd.struct_passwd | None) -> str:
    """Say why this process cannot run programs as a user; empty when it can."""
    if found is None:
        return f"there is neither a user {OWN_USER} nor nobody"
    capable = next(
        int(line.split()[1], 16) for line in Path("/proc/self/status").read_text().splitlines() if "CapEff" in line
    )
    missing = [name for name, bit in _NEEDED.items() if not capable >> bit & 1]
    if missing:
        return f"this process has no {', '.join('CAP_' + name for name in missing)}"
    maps = (line.split() for line in Path("/proc/self/uid_map").read_text().splitlines())
    if not any(int(first) <= found.pw_uid < int(first) + int(count) for first, _, count in maps):
        return f"user {found.pw_name} is not mapped in this user namespace"
    if shutil.which("setpriv") is None:
        return "there is no setpriv; install util-linux"
    return ""


def _user(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
