"""HAProxy in TCP mode."""

from __future__ import annotations

import re
from pathlib import Path
from signal import Signals

from s2cs.s2ds import procfs
from s2cs.s2ds.backends.base import Backend, Found, Plan, Reload, View, output_of
from s2cs.s2ds.contract import Capability
from s2cs.s2ds.render import render


class HAProxy(Backend):
    """HAProxy as a TCP relay; its bandwidth filters are not used, since they come with 2.7 and cut streams' ends."""

    name = "haproxy"
    template = "haproxy.cfg.j2"
    install = "apt-get install haproxy"
    minimum = (2, 4)
    capabilities = frozenset({Capability.MUTUAL_TLS, Capability.RATE_LIMIT, Capability.GRACEFUL_STOP})
    drain = Signals.SIGUSR1
    reload = Reload.REPLACE
    log_for_each = True  # a thread that finds a descriptor in another's hands gives up, and the line is lost
    refusal = re.compile(r"^\[ALERT\]", re.MULTILINE)
    session_line = re.compile(rb"^session \S+ \S+ (?P<version>TLS\S+) (?P<cipher>\S+) ", re.MULTILINE)
    closed_line = re.compile(rb"^session .* up=(?P<up>\d+) down=(?P<down>\d+)$", re.MULTILINE)

    def inspect(self, program: Path) -> Found:
        """Read the version and the build options."""
        text = output_of(str(program), "-vv")
        version = re.search(r"^HAProxy version (\S+)", text, re.MULTILINE | re.IGNORECASE)
        if "TLSv1.3" not in text:
            return Found(program, reason=f"{program} was built without TLS 1.3; {self.install}")
        return self.judged(program, version[1] if version else "")

    def configuration(self, plan: Plan, found: Found) -> str:
        """Write its configuration file, in the words of its version."""
        by_process = re.match(r"2\.4\b", found.version) is not None
        return render(self.template, tunnel=plan, by_process=by_process)

    def command(self, program: Path, config: Path) -> tuple[str, ...]:
        """Run one process in the foreground."""
        return (str(program), "-db", "-C", str(config.parent), "-f", config.name)

    def check_command(self, program: Path, config: Path) -> tuple[str, ...]:
        """Check with `-c`."""
        return (*self.command(program, config), "-c")

    def serves(self, view: View) -> bool:
        """See it wait on all listeners."""
        return view.inodes <= procfs.watched(view.pid)
