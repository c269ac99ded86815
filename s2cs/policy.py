"""Where this gateway forwards to: only networks its operator named.

Names are resolved here, once, and the address is used from then on, so that a name that resolves
differently a moment later changes nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket

from s2cs.settings import Policy
from scistream.errors import DeadlineExceeded, InvalidArgument, PermissionDenied
from scistream.vocabulary import Endpoint, Role

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NEVER = [ipaddress.ip_network("fd00:ec2::254/128")]  # a cloud's metadata service on IPv6
_RESOLVE_S = 5.0


async def resolve(endpoint: Endpoint) -> list[_Address]:
    """Find an endpoint's addresses, with IPv4 inside IPv6 unwrapped.

    Raises:
        InvalidArgument: the name does not resolve.
        DeadlineExceeded: the resolver does not answer.
    """
    if endpoint.ip is not None:
        return [_plain(endpoint.ip)]
    loop = asyncio.get_running_loop()
    try:
        found = await asyncio.wait_for(
            loop.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM), _RESOLVE_S
        )
    except TimeoutError:
        raise DeadlineExceeded(f"host {endpoint.host} was not resolved within {_RESOLVE_S:.0f} s") from None
    except (OSError, UnicodeError):
        raise InvalidArgument(
            f"host {endpoint.host} does not resolve here; check the name, or give an address"
        ) from None
    return [_plain(ipaddress.ip_address(str(sockaddr[0]).partition("%")[0])) for *_, sockaddr in found]


def _plain(address: _Address) -> _Address:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


async def admit(policy: Policy, role: Role, endpoint: Endpoint) -> Endpoint:
    """Resolve a target and give it back with its address, if this gateway may forward there.

    Args:
        policy: the operator's networks.
        role: PROD forwards to applications in the LAN, CONS to other facilities' gateways.
        endpoint: where to.

    Raises:
        InvalidArgument: the name does not resolve.
        PermissionDenied: it is outside of the networks the operator named.
    """
    networks, table = (policy.targets, "targets") if role is Role.PROD else (policy.peers, "peers")
    addresses = await resolve(endpoint)
    for address in addresses:
        if _never(address):
            continue
        if any(address.version == net.version and address in net for net in networks if _covers(net, address)):
            return Endpoint(str(address), endpoint.port)
    shown = str(endpoint) if endpoint.ip else f"{endpoint} ({addresses[0]})"
    raise PermissionDenied(
        f"this gateway does not forward to {shown}; its operator allows it in [policy] {table} of s2cs.toml"
    )


def _never(address: _Address) -> bool:
    return (
        address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or any(address.version == net.version and address in net for net in _NEVER)
    )


def _covers(network: ipaddress.IPv4Network | ipaddress.IPv6Network, address: _Address) -> bool:
    """The gateway's own loopback is meant only by a network that is loopback, never by `0.0.0.0/0`."""
    return network.is_loopback or not address.is_loopback
