"""Lines for systemd's journal, each with fields of its own: its native protocol, with no library."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

SOCKET = Path("/run/systemd/journal/socket")

# The journal has a limit of rate for each service, and within it for each of these levels: as DEBUG, who knocks at a
# WAN port without any right to cannot use up what the control server's own lines need.
_DEBUG = "7"
_FULL = (errno.EAGAIN, errno.ENOBUFS)


class Journal:
    """Send lines to the journal, without ever waiting for it."""

    def __init__(self, path: Path = SOCKET) -> None:
        self._path = path
        self._lost = 0

    def send(self, lines: Iterable[str], identifier: str, fields: Mapping[str, str]) -> None:
        """Send lines, printable and each without an end; what the journal does not take now is counted, and told of.

        Args:
            lines: the messages.
            identifier: what printed them.
            fields: what goes with each.
        """
        common = {"PRIORITY": _DEBUG, "SYSLOG_IDENTIFIER": identifier, **fields}
        rest = "".join(f"{name}={value}\n" for name, value in common.items())
        with (
            suppress(OSError),  # there is no journal now; the lines are in their file
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sock,
        ):
            sock.connect(str(self._path))
            if self._lost and _sent(sock, f"MESSAGE=the journal did not take {self._lost} lines\n{rest}"):
                self._lost = 0
            for line in lines:
                if not _sent(sock, f"MESSAGE={line}\n{rest}"):
                    self._lost += 1


def _sent(sock: socket.socket, entry: str) -> bool:
    try:
        sock.send(entry.encode())
    except OSError as error:
        if error.errno not in _FULL:
            raise
        return False
    return True
