"""A user at the command line, and two facilities to use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2uc.gateway import Gateway
from scistream.vocabulary import Endpoint
from tests.support.gateways import GatewayProcess, gateway
from tests.support.programs import Finished, run


@dataclass
class User:
    """Somebody with a configuration of their own."""

    config: Path

    def s2uc(self, *arguments: str, expect: int = 0, stdin: str = "", **environ: str) -> Finished:
        """Run a command to its end and look at its exit status; never a traceback."""
        process = run("s2uc", *arguments, stdin=stdin, **self._environment(environ))
        assert process.returncode == expect, (arguments, process.returncode, process.stdout, process.stderr)
        assert "Traceback" not in process.stderr
        return process

    def json(self, *arguments: str, expect: int = 0) -> dict[str, Any]:
        """Run a command with --json; its one object."""
        found = json.loads(self.s2uc("--json", *arguments, expect=expect).stdout)
        assert isinstance(found, dict)
        return found

    def complaint(self, *arguments: str, expect: int, stdin: str = "") -> str:
        """Run a command that fails: one line on stderr, nothing on stdout."""
        process = self.s2uc("--quiet", *arguments, expect=expect, stdin=stdin)
        assert process.stdout == ""
        lines = process.stderr.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("s2uc: ")
        return lines[0]

    def start(self, *arguments: str, **environ: str) -> subprocess.Popen[str]:
        """Start a command that the test goes on beside."""
        return subprocess.Popen(
            [sys.executable, "-m", "s2uc", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment(environ),
        )

    def records(self) -> list[str]:
        """The sessions on file."""
        return sorted(path.stem for path in (self.config / "sessions").glob("*"))

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        return {**os.environ, "SCISTREAM_CONFIG_DIR": str(self.config), **more}


@dataclass
class Facilities:
    """The producer's gateway `aps` and the consumer's `alcf`, both known to a user, who is admin there."""

    aps: GatewayProcess
    alcf: GatewayProcess
    user: User
    foreign: set[int]  # ports in their ranges that were taken before they were

    def gateways(self) -> tuple[Gateway, Gateway]:
        """Both as the library takes them."""
        return known("aps", self.aps), known("alcf", self.alcf)

    def left(self) -> dict[str, Any]:
        """What is left at both of sessions; empty when nothing is. What others hold there is not theirs."""
        found = {}
        for name, running in (("aps", self.aps), ("alcf", self.alcf)):
            things = running.leftovers()
            if not set(running.listening()) - self.foreign:
                things.pop("ports", None)
            found[name] = things
        return {name: things for name, things in found.items() if things}


def known(name: str, running: GatewayProcess, token: str | None = None) -> Gateway:
    """Give a running gateway as the library takes it."""
    return Gateway(name, Endpoint.parse(running.address), running.ca, running.token if token is None else token)


def introduce(user: User, name: str, running: GatewayProcess, token: str | None = None) -> None:
    """Add a running gateway to a user's configuration."""
    ca = str(running.directory / "certs" / "ca.crt")
    token = running.token if token is None else token
    user.s2uc("gateway", "add", name, running.address, "--ca", ca, "--token-file", "-", stdin=token)


@contextmanager
def facilities(directory: Path, **alcf_environ: str) -> Iterator[Facilities]:
    """Run two gateways; the consumer's with overridden settings."""
    with gateway(directory / "aps") as aps, gateway(directory / "alcf", **alcf_environ) as alcf:
        user = User(directory / "user")
        introduce(user, "aps", aps)
        introduce(user, "alcf", alcf)
        yield Facilities(aps, alcf, user, {*aps.listening(), *alcf.listening()})
