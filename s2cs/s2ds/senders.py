"""The kernel as doorkeeper of a UDP socket: datagrams of others than these addresses never reach it.

What a stranger sends costs neither room in the socket's queue, nor a look by the proxy, nor a line in its log. The
filter belongs to the socket: a proxy that inherits the socket, or dies, changes nothing about it.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address

# SO_ATTACH_FILTER, SO_DETACH_FILTER: of every architecture that these proxies are packaged for.
_ATTACH_FILTER, _DETACH_FILTER = 26, 27
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # of classic BPF: a word at a fixed place, a comparison, the verdict
_NETWORK_HEADER = -0x100000  # places before that count from the datagram's own header
_SOURCE_AT = {4: 12, 6: 8}  # in the header of IP, by its version
_TAKE, _DROP = 0xFFFFFFFF, 0


def take_only(receiver: socket.socket, addresses: Iterable[IPv4Address | IPv6Address]) -> None:
    """Let a socket receive only what comes from these addresses, of its own family; of none, nothing.

    It holds from now on, in place of what was said before.
    """
    version = 6 if receiver.family == socket.AF_INET6 else 4
    program = b"".join(_taken(address) for address in addresses if address.version == version)
    program += _instruction(_RETURN, _DROP)
    code = ctypes.create_string_buffer(program, len(program))
    receiver.setsockopt(
        socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    )


def take_all(receiver: socket.socket) -> None:
    """Let a socket receive what comes, whoever sends it."""
    with suppress(FileNotFoundError):  # there is no filter
        receiver.setsockopt(socket.SOL_SOCKET, _DETACH_FILTER, 0)


def _taken(address: IPv4Address | IPv6Address) -> bytes:
    """Compare the source word by word, and take the datagram when all are equal; else go on behind this."""
    words = struct.unpack(f">{len(address.packed) // 4}I", address.packed)
    found = b""
    for number, word in enumerate(words):
        left = 2 * (len(words) - 1 - number) + 1  # instructions behind the comparison
        found += _instruction(_LOAD, (_NETWORK_HEADER + _SOURCE_AT[address.version] + 4 * number) & 0xFFFFFFFF)
        found += _instruction(_IF_EQUAL, word, otherwise=left)
    return found + _instruction(_RETURN, _TAKE)


def _instruction(code: int, value: int, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, 0, otherwise, value)
