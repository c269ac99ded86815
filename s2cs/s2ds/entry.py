"""Become a proxy in a container, on sockets that come from outside.

This text is what the container runs, by `python3 -c`: it needs nothing of this package, so an image may be of another
version. A container inherits no descriptors; they come over a Unix socket in the tunnel's directory, where it starts:
first the log, then the listeners, which become 3, 4, ... as in systemd's socket activation, and the log once more for
each, where the proxy wants that.
"""

import fcntl
import os
import signal
import socket
import sys

_AT_ONCE = 250  # descriptors in one message; the kernel takes 253
_PATIENCE_S = 30


def receive(path: str, count: int) -> list[int]:
    """Take descriptors from whoever listens there."""
    found: list[int] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as giver:
        giver.settimeout(_PATIENCE_S)
        giver.connect(path)
        while len(found) < count:
            data, more, _, _ = socket.recv_fds(giver, 1, _AT_ONCE)
            if not data:
                raise SystemExit("s2cs went away before it had handed its sockets over")
            found += more
    return found


def become(path: str, count: int, *argv: str) -> None:
    """Place the descriptors, and execute the program."""
    given = receive(path, count)
    # Above all targets first, so that none overwrites another.
    log, *sockets = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3 + count) for fd in given]
    for fd in given:
        os.close(fd)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for number, fd in enumerate(sockets, 3):
        os.dup2(fd, number)
    os.umask(0o077)
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python, and a program would inherit it
        signal.signal(ignored, signal.SIG_DFL)
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.execv(argv[0], argv)  # noqa: S606 - what this is for


if __name__ == "__main__":
    become(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
