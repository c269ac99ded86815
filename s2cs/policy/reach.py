"""A network, and perhaps the ports that are meant in it: what `targets` and `peers` list."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Self

from s2cs.policy.addresses import Address, Network, never
from scistream.errors import InvalidArgument
from scistream.vocabulary import PortRange, shown

_FORMS = "write 10.1.0.0/16, 10.1.0.0/16:5000-5999, 10.1.0.7:5000, or [2001:db8::/32]:5000"


@dataclass(frozen=True, slots=True)
class Reach:
    """A network and a range of ports; without one, all ports."""

    network: Network
    ports: PortRange | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `NETWORK`, `NETWORK:PORT` or `NETWORK:FIRST-LAST`; IPv6 with ports has brackets.

        Raises:
            InvalidArgument: it is none of these, or nothing could ever be forwarded there.
        """
        text = text.strip()
        network, ports = text, ""
        if match := re.fullmatch(r"\[([^\]]+)\](?::(.+))?", text):
            network, ports = match[1], match[2] or ""
        elif text.count(":") == 1:
            network, _, ports = text.partition(":")
            if not ports:
                raise InvalidArgument(f"{shown(text)} ends before its ports; {_FORMS}")
        try:
            found = ipaddress.ip_network(network, strict=False)
        except ValueError:
            raise InvalidArgument(f"{shown(text)} is not a network; {_FORMS}") from None
        if isinstance(found, ipaddress.IPv6Network) and found.prefixlen >= 96 and (low := found[0].ipv4_mapped):
            found = ipaddress.IPv4Network((low, found.prefixlen - 96))
        if (why := never(found[0])) and never(found[-1]) == why:
            raise InvalidArgument(f"{shown(text)} is {why}, and nothing is ever forwarded there; leave it out")
        return cls(found, _ports(ports) if ports else None)

    @classmethod
    def whole(cls, text: str) -> Self:
        """Read `NETWORK`, of which all ports are meant.

        Raises:
            InvalidArgument: it is none, or has ports.
        """
        if (found := cls.parse(text)).ports is not None:
            raise InvalidArgument(f"{shown(text)} has ports, and whole hosts are meant here; write 198.51.100.0/24")
        return found

    def covers(self, address: Address, port: int) -> bool:
        """Tell whether an address and port are meant.

        This host's loopback is meant only by a network that is loopback, never by `0.0.0.0/0`.
        """
        return (
            address.version == self.network.version
            and address in self.network
            and (self.network.is_loopback or not address.is_loopback)
            and (self.ports is None or self.ports.first <= port <= self.ports.last)
        )

    @property
    def one_host(self) -> bool:
        """True when it names one address."""
        return self.network.num_addresses == 1

    def __str__(self) -> str:
        if self.ports is None:
            return str(self.network)
        ports = str(self.ports.first) if len(self.ports) == 1 else str(self.ports)
        return f"[{self.network}]:{ports}" if self.network.version == 6 else f"{self.network}:{ports}"


def _ports(text: str) -> PortRange:
    return PortRange.parse(text if "-" in text else f"{text}-{text}")
