"""Two facilities in one booted machine: two gateways that are services, a user, and streams between them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from subprocess import Popen
from typing import Any

from tests.support.booted import ROOT, Machine

PRODUCER, CONSUMER = "scistream.service", "consumer.service"
_USER = "/srv/user"
_app_ports = count(6101)


def setup(machine: Machine, *options: str, check: bool = True) -> Any:
    """Run deploy/setup.sh there."""
    return machine.run(str(ROOT / "deploy/setup.sh"), *options, check=check)


def install(machine: Machine) -> None:
    """Make the machine the producer's facility by setup.sh, and put the consumer's gateway beside it."""
    setup(machine, "--find-links", str(ROOT / "dist/wheelhouse"), "--", "--name", "producer")
    add_consumer(machine)


def add_consumer(machine: Machine) -> None:
    """Put another gateway beside the installed one, and a user who knows both."""
    machine.run(
        "sh",
        "-euc",
        f"""
        s2cs init /etc/consumer --name consumer --port 5010 --port-range 31000-31999 --state-dir /var/lib/consumer
        chown -R scistream:scistream /etc/consumer /var/lib/consumer
        unit=$(systemctl show --property FragmentPath --value {PRODUCER})
        sed -E 's,Directory=scistream,Directory=consumer,; s,/etc/scistream,/etc/consumer,' "$unit" \\
            >/etc/systemd/system/{CONSUMER}
        systemctl daemon-reload
        systemctl start {CONSUMER}
        s2uc --config {_USER} gateway add producer 127.0.0.1:5000 --ca /etc/scistream/certs/ca.crt \\
            --token-file /etc/scistream/token
        s2uc --config {_USER} gateway add consumer 127.0.0.1:5010 --ca /etc/consumer/certs/ca.crt \\
            --token-file /etc/consumer/token
        """,
    )


def user(machine: Machine, *command: str, check: bool = True) -> Any:
    """Do what a user does."""
    return machine.run("s2uc", "--config", _USER, *command, check=check)


@dataclass
class Stream:
    """A session with a stream through it."""

    machine: Machine
    uid: str
    backend: str
    listener: str
    program: Popen[str]
    report: dict[str, Any] = field(default_factory=dict)

    def say(self, line: str) -> Any:
        """Give its program an order."""
        assert self.program.stdin is not None
        assert self.program.stdout is not None
        self.program.stdin.write(f"{line}\n")
        self.program.stdin.flush()
        answer = self.program.stdout.readline()
        assert answer, "the program of the stream has ended"
        return json.loads(answer)

    def goes_on(self) -> None:
        """See that bytes arrive, now."""
        before, deadline = self.say("count"), time.monotonic() + 20
        while self.say("count") <= before + 10 * 65536:
            assert time.monotonic() < deadline, f"the stream through {self.backend} stands still"
            time.sleep(0.02)

    def ends_whole(self) -> None:
        """End it, and see that all that was sent has come."""
        report = self.say("end")
        assert report["equal"], report
        assert report["got"] == report["sent"] > 0

    def release(self) -> None:
        """End the session."""
        user(self.machine, "release", self.uid)


@contextmanager
def streaming(machine: Machine, backend: str) -> Iterator[Stream]:
    """Open a session through both gateways, and send data through it; a test that fails does not leave it open."""
    port = next(_app_ports)
    uid = ""
    program = machine.popen("python3", str(ROOT / "tests/engines/stream.py"), str(port))
    try:
        request = ("request", "--json", "--producer", "producer", "--consumer", "consumer", "--backend", backend)
        answer = json.loads(user(machine, *request, "--prod-listeners", f"127.0.0.1:{port}").stdout)
        uid = answer["uid"]
        stream = Stream(machine, uid, backend, answer["consumer"]["listeners"][0], program)
        assert stream.say(f"connect {stream.listener}") == "connected"
        stream.goes_on()
        yield stream
    except BaseException:
        if uid:
            user(machine, "release", uid, check=False)
        raise
    finally:
        program.kill()
        program.communicate()


def processes(machine: Machine, unit: str) -> set[int]:
    """All processes of a unit's control group."""
    group = machine.show(unit, "ControlGroup")
    text = machine.run("cat", f"/sys/fs/cgroup/systemd{group}/cgroup.procs", check=False).stdout if group else ""
    return set(map(int, text.split()))


def proxies(machine: Machine, unit: str) -> set[int]:
    """The processes of a unit but for its own: its proxies."""
    return processes(machine, unit) - {int(machine.show(unit, "MainPID"))}


def wait_for(what: str, true: Any, timeout_s: float = 30) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.05)
