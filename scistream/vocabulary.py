"""The words of the protocol as types.

Values are parsed once, at the door. What has one of these types is safe to print into a file name, a
configuration file or a command line: nothing in it came from the wire unchecked.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from scistream.errors import InvalidArgument

_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")
_HOST_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_QUANTITY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z/]*)")


def shown(value: object) -> str:
    """Quote a foreign value for a message: printable, and never longer than 60 characters."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:56] + "..." + text[-1]


def meant(word: str, known: Iterable[str]) -> str:
    """Ask, in the middle of a message, whether a word that is not known was meant to be one that is; else empty."""
    from difflib import get_close_matches  # noqa: PLC0415 - for faults only

    found = get_close_matches(word[:60], list(known), 1)
    return f", did you mean '{found[0]}'?" if found else ""


def printable(text: str) -> str:
    """Give a foreign text with all that a terminal would act on escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class Uid(str):
    """A session's unique id: 1 to 63 letters, digits and dashes, not starting with a dash.

    63 because the uid is one label of the DNS name in the session's certificates.

    Raises:
        InvalidArgument: the text is not a uid.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if not _UID.fullmatch(text):
            raise InvalidArgument(
                f"uid {shown(text)} is not 1 to 63 letters, digits and dashes that start with a letter "
                "or digit; name it as in scan-7, or use a UUID"
            )
        return super().__new__(cls, text)


class Role(StrEnum):
    """The side of a session that a gateway or an application stands on."""

    PROD = "PROD"
    CONS = "CONS"

    @classmethod
    def parse(cls, text: str) -> Role:
        """Read a role from the wire.

        Raises:
            InvalidArgument: the text is neither PROD nor CONS.
        """
        try:
            return cls(text)
        except ValueError:
            raise InvalidArgument(f"role {shown(text)} is unknown; use PROD or CONS") from None

    @property
    def peer(self) -> Role:
        """The other side."""
        return Role.CONS if self is Role.PROD else Role.PROD


class Transport(StrEnum):
    """What a session's two applications speak to each other."""

    TCP = "tcp"
    UDP = "udp"  # in plain between the gateways: no proxy encrypts it

    @classmethod
    def parse(cls, text: str) -> Transport:
        """Read a protocol from the wire; none is TCP.

        Raises:
            InvalidArgument: the text is neither tcp nor udp.
        """
        try:
            return cls(text or cls.TCP)
        except ValueError:
            raise InvalidArgument(f"protocol {shown(text)} is unknown; use tcp or udp") from None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a program listens: a host (name, IPv4 or IPv6 without brackets) and a port 1-65535.

    Raises:
        InvalidArgument: the host or the port could not be one.
    """

    host: str
    port: int

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise InvalidArgument(f"port {shown(self.port)} of {shown(self.host)} is not in 1-65535")
        try:
            host = str(ipaddress.ip_address(self.host))
        except ValueError:
            host = self.host
            if not _is_hostname(host):
                raise InvalidArgument(
                    f"host {shown(host)} is neither an IP address nor a host name; "
                    "write HOST:PORT, and an IPv6 address in brackets: [::1]:5000"
                ) from None
        if "%" in host:
            raise InvalidArgument(f"host {shown(host)} has a zone index; use an address without one")
        object.__setattr__(self, "host", host)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `host:port` or `[v6]:port`.

        Raises:
            InvalidArgument: the text is not of that form.
        """
        host, colon, port = text.rpartition(":")
        if not colon or not (port.isascii() and port.isdigit() and len(port) <= 5):
            raise InvalidArgument(f"address {shown(text)} has no port; write HOST:PORT, or [IPV6]:PORT")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
            try:
                ipaddress.IPv6Address(host)
            except ValueError:
                raise InvalidArgument(f"address {shown(text)} has no IPv6 address in its brackets") from None
        elif ":" in host:
            raise InvalidArgument(f"address {shown(text)} is IPv6 without brackets; write [IPV6]:PORT")
        return cls(host, int(port))

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The address, or None when the host is a name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _is_hostname(text: str) -> bool:
    labels = text.removesuffix(".").split(".")
    # A name whose last label is all digits is read as an IPv4 address by some resolvers: "127.1".
    return len(text) <= 253 and all(_HOST_LABEL.fullmatch(x) for x in labels) and not labels[-1].isdigit()


def parse_endpoints(texts: Iterable[str]) -> tuple[Endpoint, ...]:
    """Read addresses, keeping their order."""
    return tuple(Endpoint.parse(text) for text in texts)


@dataclass(frozen=True, slots=True)
class PortRange:
    """The ports a gateway may listen on, both ends included."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last <= 65535:
            raise InvalidArgument(f"port range {self} is not FIRST-LAST within 1-65535")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `FIRST-LAST`.

        Raises:
            InvalidArgument: the text is not two ports in order.
        """
        match = re.fullmatch(r"([0-9]{1,5})-([0-9]{1,5})", text)
        if not match:
            raise InvalidArgument(f"port range {shown(text)} is not of the form FIRST-LAST, as 30000-30999")
        return cls(int(match[1]), int(match[2]))

    def __len__(self) -> int:
        return self.last - self.first + 1

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


_RATE_UNITS = {
    "": 1000,  # a bare number is kB/s, as on the wire
    **{p + "B/s": 1000**i for i, p in enumerate(["", "k", "M", "G", "T"])},
    **{p + "b/s": 1000**i / 8 for i, p in enumerate(["", "k", "M", "G", "T"])},
    **{p + "bit/s": 1000**i / 8 for i, p in enumerate(["", "k", "M", "G", "T"])},
}


@dataclass(frozen=True, slots=True, order=True)
class Rate:
    """A streaming rate in bytes per second for a whole session; 0 is no limit."""

    bytes_per_s: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.bytes_per_s < 2**53:
            raise InvalidArgument(f"rate {self.bytes_per_s} bytes/s is out of range; 0 means no limit")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `10Gb/s`, `1.25 GB/s`, or a bare number of kB/s.

        Raises:
            InvalidArgument: the text is no rate.
        """
        match = _QUANTITY.fullmatch(text.strip())
        if not match or match[2] not in _RATE_UNITS:
            raise InvalidArgument(f"rate {shown(text)} is not a rate; write 10Gb/s, 1.25GB/s or a number of kB/s")
        return cls(round(float(match[1]) * _RATE_UNITS[match[2]]))

    @classmethod
    def from_wire(cls, kb_per_s: int, bytes_per_s: int) -> Self:
        """Join the wire's two fields; the finer one wins where they agree to a kB/s.

        Raises:
            InvalidArgument: a negative rate, or two that contradict each other.
        """
        if kb_per_s < 0:
            raise InvalidArgument(f"rate {kb_per_s} kB/s is negative; 0 means no limit")
        if kb_per_s and bytes_per_s and abs(bytes_per_s - kb_per_s * 1000) >= 1000:
            raise InvalidArgument(f"rate {kb_per_s} kB/s and rate_bytes_per_s {bytes_per_s} contradict each other")
        return cls(bytes_per_s or kb_per_s * 1000)

    @property
    def kb_per_s(self) -> int:
        """The wire's coarse field, rounded up so that a limit never becomes none."""
        return min(-(-self.bytes_per_s // 1000), 2**31 - 1)

    def __str__(self) -> str:
        if not self.bytes_per_s:
            return "unlimited"
        bits = self.bytes_per_s * 8
        for unit, size in (("Tb/s", 10**12), ("Gb/s", 10**9), ("Mb/s", 10**6), ("kb/s", 1000)):
            if bits >= size:
                return f"{bits / size:.4g} {unit}"
        return f"{bits} b/s"


_UNITS_OF_TIME = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def parse_duration(text: str) -> int:
    """Read `90`, `90s`, `15m`, `2h` or `1d` as whole seconds.

    Raises:
        InvalidArgument: the text is no duration of a second or more.
    """
    match = _QUANTITY.fullmatch(text.strip())
    if not match or match[2] not in _SECONDS or (seconds := round(float(match[1]) * _SECONDS[match[2]])) < 1:
        raise InvalidArgument(f"duration {shown(text)} is not a time; write 90s, 15m, 2h or 1d")
    return seconds


def duration(seconds: int) -> str:
    """Write whole seconds as `parse_duration` reads them, in the greatest unit without a rest: `90s`, `15m`, `2h`."""
    unit, length = next(each for each in _UNITS_OF_TIME if seconds % each[1] == 0)
    return f"{seconds // length}{unit}"


def parse_round_trip(text: str) -> float:
    """Read `50ms`, `0.2 ms` or `1s` as seconds.

    Raises:
        InvalidArgument: the text is no time between a microsecond and ten seconds.
    """
    match = _QUANTITY.fullmatch(text.strip())
    seconds = float(match[1]) * {"ms": 1e-3, "s": 1.0}.get(match[2], 0) if match else 0
    if not 1e-6 <= seconds <= 10:
        raise InvalidArgument(f"round trip {shown(text)} is not a time on a network; write 50ms or 0.2ms")
    return seconds
