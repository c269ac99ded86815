"""Stunnel: one thread per connection, buffers of a fixed size, no check of a configuration but by using it."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from signal import Signals

from s2cs.s2ds import procfs
from s2cs.s2ds.backends.base import Backend, Found, Reload, View, output_of
from s2cs.s2ds.confinement import RUN
from s2cs.s2ds.contract import Capability

_OWN = r"^\S+ \S+ LOG\d\[[a-z]+\]: "  # of a connection, and so of strangers, it logs with that one's number
_OWN_LINE = re.compile(rf"{_OWN}.*", re.MULTILINE)


class Stunnel(Backend):
    """Stunnel, told of its sockets as by systemd: the n-th section takes the n-th."""

    name = "stunnel"
    template = "stunnel.conf.j2"
    install = "apt-get install stunnel4"
    minimum = (5, 60)  # sessionResume
    # It takes POLLHUP for the end of file though there is data to read: both plain directions ended, TLS is blocked.
    known_fault = (
        (5, 69),
        "an application that ends its own direction long before it has received all may miss the end of the data; "
        "prefer nginx or haproxy for such",
    )
    capabilities = frozenset({Capability.MUTUAL_TLS, Capability.PSK, Capability.RATE_LIMIT})
    drain = Signals.SIGTERM
    reload = Reload.SIGNAL
    refusal = re.compile(rf"{_OWN}.*(Failed to (reload|bind)|Configuration failed)", re.MULTILINE)
    # One that was reset before it carried anything was no connection of the session.
    closed_line = re.compile(
        rb"^\S+ \S+ LOG\d\[\w+\]: Connection (?:closed|reset(?!: 0 byte\(s\) sent to TLS, 0 )): "
        rb"(?P<to_tls>\d+) byte\(s\) sent to TLS, (?P<to_plain>\d+) byte",
        re.MULTILINE,
    )
    session_line = re.compile(
        rb"^\S+ \S+ LOG\d\[\w+\]: (?P<version>TLSv1\S*) ciphersuite: (?P<cipher>\S+)", re.MULTILINE
    )

    def inspect(self, program: Path) -> Found:
        """Read the version and what it was built with."""
        text = output_of(str(program), "-version")
        version = re.search(r"^stunnel (\S+)", text, re.MULTILINE)
        if "SYSTEMD" not in text:
            return Found(program, reason=f"{program} was built without systemd's socket activation; {self.install}")
        options = frozenset(re.findall(r"^options = (\w+)", output_of(str(program), "-options"), re.MULTILINE))
        return replace(self.judged(program, version[1] if version else ""), options=options)

    def command(self, program: Path, config: Path) -> tuple[str, ...]:
        """Run it; that it stays in the foreground is in its configuration."""
        return (str(program), str(config))

    def serves(self, view: View) -> bool:
        """See the pid file, which it writes last of all, and the sockets; after a reload, its word."""
        if view.before is not None:
            own = "\n".join(_OWN_LINE.findall(view.log))
            return own.rpartition("Configuration successful")[2].count(") bound to ") >= len(view.inodes)
        return _written(view.directory / RUN / "stunnel.pid") == str(
            procfs.own_number(view.pid)
        ) and view.inodes <= procfs.sockets(view.pid)


def _written(path: Path) -> str:
    """Read what a proxy wrote: a plain file, and nothing that it would lead this process to instead."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with os.fdopen(fd, "rb") as file:
        return file.read(32).decode(errors="replace").strip()
