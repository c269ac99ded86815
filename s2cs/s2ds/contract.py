"""The S2DS contract: six verbs between the control server and whatever carries the data.

S2CS knows nothing below this. A data server owns its sockets, processes and their files; S2CS owns
sessions. All verbs take the id of a tunnel, which S2CS chooses and never uses twice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

from scistream.vocabulary import Endpoint, Rate, Role, Transport, Uid
from scistream.x509 import Credentials

NO_UDP_AT_ONE_PORT = (
    "udp has no names by which one WAN port could tell sessions apart; use tcp, or a gateway without [network] wan_port"
)
NO_PSK_AT_ONE_PORT = (
    "pre-shared keys have no names by which one WAN port could tell sessions apart; send credentials, as s2uc does, "
    "or leave [network] wan_port out where the session is placed"
)


class Capability(StrEnum):
    """What a backend may be able to do."""

    MUTUAL_TLS = "mutual-tls"
    PSK = "psk"  # TLS with a pre-shared key, for clients without credentials
    UDP = "udp"
    RATE_LIMIT = "rate-limit"
    GRACEFUL_STOP = "graceful-stop"  # lets running streams end before it exits


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """A backend as found on this node."""

    name: str
    capabilities: frozenset[Capability]
    version: str = ""  # empty when it cannot be used
    reason: str = ""  # why not, and what mends it
    caution: str = ""  # a fault that this version is known to have

    @property
    def available(self) -> bool:
        """True when tunnels can be opened with it."""
        return not self.reason


@dataclass(frozen=True, slots=True)
class TunnelSpec:
    """One side of one session, as its data server needs to know it."""

    id: str
    uid: Uid
    role: Role  # PROD: TLS on the WAN address to plain; CONS: plain on the LAN address to TLS
    num_conn: int
    backend: str = "auto"
    rate: Rate = Rate()
    protocol: Transport = Transport.TCP  # UDP: plain on both sides

    @property
    def pace(self) -> int:
        """Each connection's share of the rate, in bytes per second, rounded up so that a limit never becomes none."""
        return -(-self.rate.bytes_per_s // self.num_conn)


@dataclass(frozen=True, slots=True)
class Reservation:
    """What `reserve` took: bound sockets, and a key whose request is to be signed."""

    backend: str
    listeners: tuple[Endpoint, ...]  # as the other side is to reach them
    csr: bytes  # PKCS#10, DER
    node: str = ""  # where, if there are several
    wan_host: str = ""  # of UDP: the host that its datagrams to the other gateway come from


@dataclass(frozen=True, slots=True)
class PreSharedKey:
    """What two gateways prove themselves with whose clients know of no certificates."""

    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class TrustedPeers:
    """Nothing that proves anything, for UDP: the other gateway is who sends from one of its addresses.

    The producer's side takes datagrams of these alone; the consumer's has the bridge's targets, and needs none.
    """

    addresses: tuple[IPv4Address | IPv6Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Bridge:
    """Where listener i leads (targets[i % len]; IP addresses, never names), and the credentials."""

    targets: tuple[Endpoint, ...]
    credentials: Credentials | PreSharedKey | TrustedPeers


class TunnelState(StrEnum):
    """The process behind a tunnel."""

    RESERVED = "RESERVED"  # no process yet, sockets bound
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    BACKOFF = "BACKOFF"  # died; will be started again on the same sockets
    STOPPING = "STOPPING"
    FATAL = "FATAL"  # died too often; stop() gives back what is left
    LOST = "LOST"  # its node is out of sight; what it carries may go on


@dataclass(frozen=True, slots=True)
class Leg:
    """The open connections of a tunnel on one side."""

    rtt_us: int = 0  # their mean
    retransmitted: int = 0  # segments
    window: int = 0  # of congestion: bytes that they may have under way, all together


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a tunnel has moved since it was started. Bytes are the applications', without TLS."""

    from_producer: int = 0  # bytes from the producer's application towards the consumer's
    from_consumer: int = 0
    open: int = 0  # connections, or flows of UDP
    total: int = 0  # those that ended among them
    bytes_per_s: int = 0  # both directions, lately
    peak_bytes_per_s: int = 0  # the highest that was ever
    lan: Leg = Leg()
    wan: Leg = Leg()


@dataclass(frozen=True, slots=True)
class TunnelStatus:
    """One tunnel, as `list` sees it."""

    id: str
    state: TunnelState
    backend: str
    backend_version: str
    listeners: tuple[Endpoint, ...]
    pids: tuple[int, ...] = ()  # in a long list only of the leading processes
    restarts: int = 0
    reason: str = ""  # the last death, with the end of the proxy's log
    tls_version: str = ""  # as last negotiated on the WAN leg, from the proxy's own log
    tls_cipher: str = ""
    traffic: Traffic = Traffic()


@dataclass(frozen=True, slots=True)
class Printed:
    """What a tunnel's proxies have printed."""

    count: int = 0  # lines, in all
    lines: tuple[str, ...] = ()  # the last of them, the oldest first; printable


class LegKind(StrEnum):
    """What is tried of a tunnel."""

    LISTENER = "listener"  # one of its own is served by its proxy
    APPLICATION = "application"  # the producer's accepts a connection
    HANDSHAKE = "handshake"  # the producer's gateway proves itself, and takes this one's certificate
    STRANGER = "stranger"  # it refuses who has no certificate
    PLAIN = "plain"  # UDP to the other gateway: nothing can be tried of it


@dataclass(frozen=True, slots=True)
class LegCheck:
    """What was found of one leg of a tunnel."""

    kind: LegKind
    address: Endpoint
    fault: str = ""  # what is wrong, and what mends it; empty: it is as promised
    note: str = ""  # how it is known, where nothing was tried
    elapsed_us: int = 0
    tls_version: str = ""
    tls_cipher: str = ""
    certificate: bytes = b""  # X.509, DER: what the other side showed


class Change(StrEnum):
    """What `watch` reports. A first start or a stop that was asked for is no news."""

    EXITED = "EXITED"  # died, is being restarted
    RUNNING = "RUNNING"  # back
    FATAL = "FATAL"  # given up
    LOST = "LOST"  # its node is out of sight; what it carries may go on
    FOUND = "FOUND"  # its node is in sight again, and it does not run: it was not started, or is being stopped


@dataclass(frozen=True, slots=True)
class TunnelEvent:
    """Something happened to a tunnel that nobody asked for."""

    id: str
    change: Change
    reason: str = field(default="")


class DataServer(Protocol):
    """Carry the bytes of sessions."""

    async def reserve(self, spec: TunnelSpec) -> Reservation:
        """Bind `num_conn` listeners and make the tunnel's key.

        Raises:
            ResourceExhausted: fewer free ports than asked for; nothing is kept.
            FailedPrecondition: the backend is missing, or cannot do what is asked.
            InvalidArgument: no backend of that name.
            AlreadyExists: the id is in use.
        """
        ...

    async def start(self, id: str, bridge: Bridge) -> None:
        """Open the way; return when connections are served. Given up, it ends what it has begun, unless it was done.

        Raises:
            NotFound: no such tunnel.
            FailedPrecondition: it was started before.
            Unavailable: the proxy does not come up; the message ends with its last words. Or it is being stopped.
        """
        ...

    async def update(self, id: str, bridge: Bridge) -> None:
        """Lead new connections elsewhere or with new credentials; running streams go on untouched.

        Raises:
            NotFound: no such tunnel.
            FailedPrecondition: it is not running.
            Unavailable: the proxy refuses the new configuration; the old one goes on. Or it is being stopped.
        """
        ...

    async def stop(self, id: str, cut: bool = False) -> Traffic | None:
        """End the tunnel and give everything back: processes, sockets, files; say what it has moved in all.

        Unknown ids are no error. Running streams get a grace period to end by themselves, unless they are to be cut.
        Asked to cut while that period runs, it ends.
        """
        ...

    async def list(self, *ids: str) -> tuple[TunnelStatus, ...]:
        """All tunnels there are, or those there are of these ids: each is looked at, which takes time."""
        ...

    def watch(self) -> AsyncIterator[TunnelEvent]:
        """Follow what happens to tunnels, from now on."""
        ...

    async def logs(self, id: str, lines: int) -> Printed:
        """What a tunnel's proxies printed last: so many lines at most, each bounded in length; nothing of unknown ids.

        Of tunnels that were stopped lately, too.
        """
        ...

    async def verify(self, id: str, bridge: Bridge, passive: bool = False) -> tuple[LegCheck, ...]:
        """Try each leg of a tunnel that is open, in bounded time; running streams are not touched.

        Args:
            id: the tunnel.
            bridge: where it leads.
            passive: open nothing that the producer's application would see.

        Raises:
            NotFound: no such tunnel.
            ResourceExhausted: too many are under way.
            Unavailable: it is being stopped.
        """
        ...

    def backends(self) -> tuple[BackendInfo, ...]:
        """The backends of this node, usable or not."""
        ...

    def most_ports(self) -> int:
        """How many ports there are for each role, held or free, where sessions are taken."""
        ...

    def free_ports(self, role: Role) -> int:
        """How many listeners could still be reserved for a role."""
        ...
