"""What a backend is: data about one proxy, and a template for its configuration."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from signal import Signals
from typing import ClassVar, Self

from s2cs.s2ds.config import WITH_PSK, Keepalive, LocalConfig
from s2cs.s2ds.contract import Bridge, Capability, PreSharedKey, TrustedPeers, TunnelSpec
from s2cs.s2ds.render import Word, render
from scistream.vocabulary import Endpoint, Role, Transport, Uid, shown
from scistream.x509 import peer_name, way_name

_SEARCH_PATH = os.pathsep.join(
    [os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin"]
)

IDLE_S = 24 * 86400
"""How long a stream may rest, or stay half-closed: the longest that 32-bit milliseconds hold in every proxy."""

_VERSION_MAX = 64  # characters

HANDSHAKE_S = 10
"""How long a connection may take to open and to prove itself, so that silent strangers hold no place."""

STRANGERS = 4096
"""How many may stand in the door at once that have not proved themselves, and the session's own still get through."""


@dataclass(frozen=True, slots=True)
class Found:
    """A proxy's program on this node, usable when there is no reason why not."""

    program: Path
    version: str = ""
    reason: str = ""
    caution: str = ""  # a fault that this version is known to have
    module: Path | None = None  # what it has to load for streams, where that is not built in
    options: frozenset[str] = frozenset()  # what this build knows, and others do not


@dataclass(frozen=True, slots=True)
class Leg:
    """One listener: the descriptor it is handed down as, its address, and where it leads."""

    fd: int
    log: int  # a descriptor of the log that is this listener's alone, of proxies that want such
    thread: int  # from 1: whose it is, of proxies with threads
    listen: Endpoint
    target: Endpoint
    name: Word  # what its connections ask the other gateway for


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a template may print about a tunnel."""

    uid: Uid
    role: Role
    legs: tuple[Leg, ...]
    peer: Word  # the name in the other gateway's certificate
    suites: Word  # TLS 1.3 cipher suites, joined by colons
    buffer_bytes: int
    rate: int  # bytes per second for one connection; 0 is no limit
    workers: int  # processes or threads: one per connection, up to the processors there are
    streams: int  # most connections of the session at once
    places: int  # most connections at all, with those that have yet to prove themselves
    directory: Path
    generation: int  # the subdirectory with this configuration's key and certificates
    psk: bool = False  # a pre-shared key instead of certificates
    udp: bool = False  # datagrams, in plain
    peers: tuple[IPv4Address | IPv6Address, ...] = ()  # of UDP on the producer's side: whose datagrams are taken
    send_from: IPv4Address | IPv6Address | None = None  # of UDP on the consumer's side: the address in the WAN
    flow_idle_s: int = 0  # of UDP: a flow is over when nothing came for so long
    shutdown_ms: int = 0  # of UDP: what is left of the flows is ended, and counted, so long after a polite stop
    as_root: bool = False  # its process is root, and nginx would change to another user by itself
    idle_s: int = IDLE_S
    handshake_s: int = HANDSHAKE_S
    keepalive: Keepalive = Keepalive()  # of connections that the proxy opens; those it accepts have inherited it

    @classmethod
    def of(
        cls,
        spec: TunnelSpec,
        bridge: Bridge,
        listeners: tuple[Endpoint, ...],
        config: LocalConfig,
        generation: int,
        as_root: bool,
    ) -> Self:
        """Say what carries a tunnel: listener i of n is descriptor 3 + i, its log 3 + n + i; it leads to target i."""
        targets, credentials, peer = bridge.targets, bridge.credentials, Word(peer_name(spec.uid, spec.role.peer))
        psk, udp = isinstance(credentials, PreSharedKey), spec.protocol is Transport.UDP
        suites = [suite for suite in config.suites if suite in WITH_PSK or not psk]

        streams = 100 + 4 * spec.num_conn
        workers = 1 if udp else min(spec.num_conn, len(os.sched_getaffinity(0)))  # a flow stays with one

        def leg(i: int, listen: Endpoint) -> Leg:
            to, name = i % len(targets), peer
            if not isinstance(credentials, (PreSharedKey, TrustedPeers)):
                name = Word(way_name(credentials.trust_anchor, spec.uid, to))
            return Leg(3 + i, 3 + len(listeners) + i, 1 + i % workers, listen, targets[to], name)

        return cls(
            uid=spec.uid,
            role=spec.role,
            legs=tuple(leg(i, listen) for i, listen in enumerate(listeners)),
            peer=peer,
            suites=Word(":".join(suites)),
            buffer_bytes=config.buffer_bytes,
            rate=spec.pace,
            workers=workers,
            streams=streams,
            places=streams + (_strangers() if spec.role is Role.PROD and not udp else 0),
            directory=config.directory / spec.id,
            generation=generation,
            psk=psk,
            as_root=as_root,
            udp=udp,
            peers=credentials.addresses if isinstance(credentials, TrustedPeers) else (),
            send_from=config.wan.ip if udp and spec.role is Role.CONS and not config.wan.ip.is_unspecified else None,
            flow_idle_s=config.flow_idle_s,
            shutdown_ms=max(1, round(config.grace_s * 500)),
        )

    @property
    def accepts_tls(self) -> bool:
        """True on the producer's side: TLS comes in. On the consumer's side it goes out; of UDP there is none."""
        return self.role is Role.PROD and not self.udp


def _strangers() -> int:
    """Leave most descriptors to the session; a proxy that would need more than there are does not start."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return STRANGERS if hard == resource.RLIM_INFINITY else min(STRANGERS, hard // 4)


class Reload(Enum):
    """How a running proxy takes a new configuration."""

    SIGNAL = "signal"  # HUP, and it reads its files again
    REPLACE = "replace"  # a second process on the same sockets, and the first one drains


@dataclass(frozen=True, slots=True)
class View:
    """A process seen from outside, to tell whether it serves."""

    pid: int
    directory: Path
    inodes: frozenset[int]  # of the listening sockets
    before: frozenset[int] | None  # its children before the reload; None at a start
    log: str  # what it has said since then


class Backend(ABC):
    """One proxy. Stateless: whatever belongs to a tunnel is passed in."""

    name: ClassVar[str]
    template: ClassVar[str]  # in templates/
    install: ClassVar[str]  # the command that installs it
    minimum: ClassVar[tuple[int, ...]]  # oldest version that does all this needs
    below: ClassVar[tuple[int, ...]] = (1000,)  # first version that it is not known to work with
    known_fault: ClassVar[tuple[tuple[int, ...], str]] = ((), "")  # versions before, and what is to be known of them
    capabilities: ClassVar[frozenset[Capability]]
    paces: ClassVar[bool] = False  # limits what its own connections send; the kernel does that of those it accepts
    drain: ClassVar[Signals]  # stop accepting, exit when the last stream has ended
    reload: ClassVar[Reload]
    log_for_each: ClassVar[bool] = False  # gets a descriptor of its log for each listener
    # All these match a line from its beginning, where it says itself what it is about: further on in a line a stranger
    # may have a word, in the subject of a certificate for one.
    refusal: ClassVar[re.Pattern[str]]  # what it logs when it refuses a new configuration
    session_line: ClassVar[re.Pattern[bytes]]  # what it logs of a TLS session: groups `version` and `cipher`
    # What it logs of a connection that has ended, with the bytes of the applications: groups `up` (towards the
    # producer) and `down`, or `to_plain` and `to_tls`.
    closed_line: ClassVar[re.Pattern[bytes]]
    # What it logs when an application refuses a datagram: group `peer`, as HOST:PORT.
    refused_line: ClassVar[re.Pattern[bytes] | None] = None

    @property
    def config(self) -> str:
        """Its configuration's file name."""
        return self.template.removesuffix(".j2")

    @abstractmethod
    def inspect(self, program: Path) -> Found:
        """Look at a program: version, and whether it has all that is needed. Runs it."""

    @abstractmethod
    def command(self, program: Path, config: Path) -> tuple[str, ...]:
        """Say how to run it in the foreground with a configuration file."""

    def check_command(self, program: Path, config: Path) -> tuple[str, ...] | None:
        """Say how to check a configuration file; None where the proxy cannot."""
        return None

    def environment(self, sockets: int) -> Mapping[str, str]:
        """Say what tells it of the inherited sockets, beside LISTEN_FDS."""
        return {}

    @abstractmethod
    def serves(self, view: View) -> bool:
        """Tell whether it serves all listeners, after a start or a reload."""

    def configuration(self, plan: Plan, found: Found) -> str:
        """Write its configuration file."""
        return render(self.template, tunnel=plan, found=found)

    def lacks(self, spec: TunnelSpec) -> str:
        """Say why it cannot carry a session; empty when it can."""
        if spec.protocol is Transport.UDP and Capability.UDP not in self.capabilities:
            return f"backend {self.name} carries no UDP; ask for nginx, or leave the backend to the gateway"
        if spec.rate.bytes_per_s and Capability.RATE_LIMIT not in self.capabilities:
            return f"backend {self.name} cannot limit the rate; ask for another backend, or for no rate"
        return ""

    def find(self, explicit: Path | None) -> Found:
        """Find its program: the operator's choice, else the first usable one where programs are."""
        if explicit is not None:
            if not explicit.is_file():
                return Found(explicit, reason=f"program {explicit} is not there; correct [s2ds] programs.{self.name}")
            return self._inspected(explicit)
        first: Found | None = None
        for candidate in self.candidates():
            found = self._inspected(candidate)
            if not found.reason:
                return found
            first = first or found
        missing = f"program {self.name} is not on this node; install it: {self.install}"
        return first or Found(Path(self.name), reason=missing)

    def candidates(self) -> Iterator[Path]:
        """Where the program may be, the preferred place first."""
        if path := shutil.which(self.name, path=_SEARCH_PATH):
            yield Path(path)

    def _inspected(self, program: Path) -> Found:
        try:
            return _inspect(self, program, program.stat().st_mtime_ns)
        except (OSError, subprocess.SubprocessError) as error:
            return Found(program, reason=f"program {program} cannot be run: {error}; install it anew: {self.install}")

    def judged(self, program: Path, version: str, module: Path | None = None) -> Found:
        """Accept a version, or say why not."""
        sound = len(version) <= _VERSION_MAX and version.isprintable()  # people read it, and other gateways' users
        numbers = tuple(map(int, re.findall(r"\d+", version)[:3])) if sound else ()
        if not numbers:
            return Found(program, reason=f"program {program} does not tell its version; is it {self.name}?")
        if not self.minimum <= numbers < self.below:
            wanted = ".".join(map(str, self.minimum)) + " or later"
            if self.below[0] < 1000:
                wanted += ", before " + ".".join(map(str, self.below))
            return Found(
                program, reason=f"{program} is {self.name} {shown(version)}, and {wanted} is needed; {self.install}"
            )
        below, caution = self.known_fault
        return Found(program, version, caution=caution if numbers < below else "", module=module)


@lru_cache(maxsize=64)
def _inspect(backend: Backend, program: Path, mtime_ns: int) -> Found:
    """Look at a program once, and again only when its file has changed."""
    return backend.inspect(program)


def output_of(*command: str) -> str:
    """Run a program that tells its version, and give all it prints."""
    run = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=10, check=False
    )
    return run.stdout.decode(errors="replace")
