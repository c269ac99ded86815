"""What an operator decides about the data server of this node."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from s2cs.s2ds.render import printed
from scistream.errors import InvalidArgument
from scistream.vocabulary import Endpoint, PortRange, Role, shown

CIPHERS = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
WITH_PSK = ("TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256")  # whose hash is that of pre-shared keys
_CHACHA_FIRST = ("TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384")


@dataclass(frozen=True, slots=True)
class Keepalive:
    """When TCP asks a silent peer for a sign of life: keeps idle streams in firewalls' tables, and ends dead ones."""

    idle_s: int = 60
    interval_s: int = 15
    count: int = 8


@dataclass(frozen=True, slots=True)
class Interface:
    """A network of this node: the IP address to bind, and the host that others reach it by.

    Raises:
        InvalidArgument: no IP address, or a wildcard without a host to advertise.
    """

    bind: str
    advertise: str = ""
    port: int = 0  # that all listeners are reached by; 0: each by its own

    def __post_init__(self) -> None:
        try:
            address = ipaddress.ip_address(self.bind)
        except ValueError:
            raise InvalidArgument(
                f"interface {shown(self.bind)} is not an IP address; give the address that this node has there"
            ) from None
        if address.is_unspecified and not self.advertise:
            raise InvalidArgument(f"interface {address} is a wildcard; say which host to advertise to others")
        object.__setattr__(self, "bind", str(address))
        object.__setattr__(self, "advertise", Endpoint(self.advertise or str(address), 1).host)

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        """The address to bind."""
        return ipaddress.ip_address(self.bind)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one proxy may use, where the launcher can hold it to that."""

    memory_bytes: int = 0  # 0 is no limit
    tasks: int = 0  # processes and threads; 0 is no limit
    cpu_weight: int = 100  # its share beside others, when all want more than there is


@dataclass(frozen=True, slots=True)
class Containers:
    """What runs containers, where the launcher makes some."""

    engine: Path = Path("/run/docker.sock")  # where it answers
    image: str = "scistream"  # with the proxies


@dataclass(frozen=True, slots=True)
class LocalConfig:
    """Settings of the data server in S2CS's own process.

    Raises:
        InvalidArgument: a cipher that is not of TLS 1.3, or a directory that proxies could not be told of.
    """

    directory: Path  # a subdirectory per tunnel: configuration, key, certificates, log, handle
    lan: Interface
    wan: Interface
    ports: PortRange
    wan_port: int = 0  # one for all sessions, by way of the router; 0: a port of the range for each connection
    backend: str = "auto"
    launcher: str = "process"
    limits: Limits = Limits()  # of one proxy, where the launcher keeps them
    containers: Containers = Containers()
    user: str = ""  # whom proxies run as; empty: see `confinement.choose`
    programs: Mapping[str, Path] = field(default_factory=dict)  # by backend; the others are looked for
    buffer_bytes: int = 256 * 1024
    in_flight: int = 0  # bytes on the way when the WAN is full; 0 where nobody has said
    ciphers: tuple[str, ...] = ()  # TLS 1.3 suites in order; empty: what suits this CPU
    grace_s: float = 1.0  # from the polite stop to KILL
    flow_idle_s: int = 600  # a flow of UDP is over when nothing came for so long, and counted then
    start_timeout_s: float = 10.0
    count_s: float = 5.0  # between looks at the kernel's counters
    max_restarts: int = 5  # deaths within the window that are mended; one more is FATAL
    restart_window_s: float = 60.0
    backoff_s: float = 0.1  # before the first restart in a window; doubles with each
    backoff_max_s: float = 5.0

    def __post_init__(self) -> None:
        for name in self.ciphers:
            if name not in CIPHERS:
                raise InvalidArgument(f"cipher {shown(name)} is not one of TLS 1.3; use {', '.join(CIPHERS)}")
        object.__setattr__(self, "directory", self.directory.absolute())
        try:
            printed(self.directory)
        except ValueError:
            raise InvalidArgument(
                f"directory {shown(str(self.directory))} cannot be written into a proxy's configuration; "
                "use one without quotes, braces, dollars, semicolons and control characters"
            ) from None

    def interface(self, role: Role, wan_port: int) -> Interface:
        """Say where a tunnel listens: the producer's side in the WAN, or on loopback behind the one WAN port."""
        if role is Role.CONS:
            return self.lan
        return Interface("127.0.0.1", self.wan.advertise, wan_port) if wan_port else self.wan

    @property
    def suites(self) -> tuple[str, ...]:
        """The cipher suites to offer, the preferred one first."""
        return self.ciphers or (CIPHERS if _cpu_has_aes() else _CHACHA_FIRST)


@cache
def _cpu_has_aes() -> bool:
    """Tell whether AES costs next to nothing here; without the instructions ChaCha20 is several times faster."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return True
    return re.search(r"^(flags|Features)\s*:.*\baes\b", text, re.MULTILINE) is not None
