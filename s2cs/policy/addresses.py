"""What an address stands for: what is written in it, and whether anything may ever be forwarded there.

An IPv6 address can carry an IPv4 one that a translator or a tunnel on the way takes out of it. Such an address is
as bad as the worst that it can be read as.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import psutil

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_METADATA = frozenset(
    map(
        ipaddress.ip_address,
        (
            "169.254.169.254",  # nearly all clouds; the rest of 169.254.0.0/16 is link-local
            "100.100.100.200",  # Alibaba
            "168.63.129.16",  # Azure
            "192.0.0.192",  # Oracle
            "fd00:ec2::254",  # Amazon
            "fd00:ec2::23",
            "fd20:ce::254",  # Google
            "fd00:42::42",  # Scaleway
            "fd00:c1::a9fe:a9fe",  # Oracle
        ),
    )
)
_THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")
_BROADCAST = ipaddress.ip_address("255.255.255.255")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052
_NAT64_LOCAL = ipaddress.ip_network("64:ff9b:1::/48")  # RFC 8215: prefixes of any length within
_COMPATIBLE = ipaddress.ip_network("::/96")
_TRANSLATED = ipaddress.ip_network("::ffff:0:0:0/96")  # RFC 2765
_ISATAP = (0x00005EFE, 0x02005EFE)  # RFC 5214: the third quarter


def plain(address: Address) -> Address:
    """Give an IPv4 address that is written as IPv6 as what it is: the kernel takes it for IPv4."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def embedded(address: Address) -> Iterator[ipaddress.IPv4Address]:
    """Give each IPv4 address that somebody on the way could read out of an address."""
    if isinstance(address, ipaddress.IPv4Address):
        return
    number = int(address)
    low, high = number & 0xFFFFFFFF, number >> 96
    if address.ipv4_mapped:
        yield address.ipv4_mapped
    if address.sixtofour:
        yield address.sixtofour
    if address.teredo:
        yield from address.teredo
    if address in _NAT64 or address in _TRANSLATED or (address in _COMPATIBLE and low > 1):
        yield ipaddress.IPv4Address(low)
    if address in _NAT64_LOCAL:
        yield ipaddress.IPv4Address(low)  # /96
        yield ipaddress.IPv4Address(number >> 24 & 0xFFFFFFFF)  # /64
        yield ipaddress.IPv4Address((number >> 64 & 0xFF) << 24 | number >> 32 & 0xFFFFFF)  # /56
        yield ipaddress.IPv4Address((number >> 64 & 0xFFFF) << 16 | number >> 40 & 0xFFFF)  # /48
    if (number >> 32) & 0xFFFFFFFF in _ISATAP and high != 0:
        yield ipaddress.IPv4Address(low)


def never(address: Address) -> str:
    """Say why nothing is ever forwarded to an address, whatever is allowed; empty where something may be."""
    address = plain(address)
    if reason := _bad(address):
        return reason
    for inner in embedded(address):
        reason = "a loopback address" if inner.is_loopback else _bad(inner)
        if reason:
            return f"{reason} ({inner}) in another form"
    return ""


def _bad(address: Address) -> str:
    if address in _METADATA:
        return "a cloud's metadata service"
    if address.is_link_local or (isinstance(address, ipaddress.IPv6Address) and address.is_site_local):
        return "a link-local address"
    if address.is_multicast or address == _BROADCAST:
        return "a multicast address"
    if address.is_unspecified or (address.version == 4 and address in _THIS_NETWORK):
        return "no host's address"
    return ""


def own_addresses() -> frozenset[Address]:
    """Find the addresses of this host's interfaces; all of loopback are its own, too."""
    found = set()
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            try:
                found.add(ipaddress.ip_address(each.address.partition("%")[0]))
            except ValueError:
                continue  # of another family
    return frozenset(found)


def is_own(address: Address, own: frozenset[Address]) -> bool:
    """Tell whether an address is this host."""
    return address.is_loopback or address in own
