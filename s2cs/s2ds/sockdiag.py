"""What the kernel has counted for TCP connections: one netlink dump (sock_diag) for all of them.

By hand, with `struct`: a general netlink library makes an object of each of the fifty fields of each socket, and the
sockets that are not ours are most of them.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Container, Iterator
from dataclasses import dataclass

_SOCK_DIAG = 4  # the netlink family
_BY_FAMILY, _ERROR, _DONE = 20, 2, 3  # message types
_REQUEST, _DUMP = 0x1, 0x300
_INFO = 2  # the extension and attribute with struct tcp_info
_ESTABLISHED, _FIN_WAIT1, _FIN_WAIT2, _CLOSE_WAIT, _LAST_ACK, _CLOSING = 1, 4, 5, 8, 9, 11
_STATES = sum(1 << state for state in (_ESTABLISHED, _FIN_WAIT1, _FIN_WAIT2, _CLOSE_WAIT, _LAST_ACK, _CLOSING))
_FIN_CAME = (_CLOSE_WAIT, _LAST_ACK, _CLOSING)  # the kernel counts a FIN as one byte received
_HEADER = struct.Struct("=IHHII")
_ASK = struct.Struct("=BBBBI48x")
_ATTRIBUTE = struct.Struct("=HH")
_MESSAGE = 16 + 72  # netlink's header and struct inet_diag_msg; attributes follow
_INODE_AT, _PORT_AT = 16 + 68, 16 + 4
# In struct tcp_info, as of Linux 4.19.
_MSS_AT, _RTT_AT, _WINDOW_AT, _RETRANSMITTED_AT, _RECEIVED_AT, _SENT_AT = 16, 68, 80, 100, 128, 200


@dataclass(frozen=True, slots=True)
class Connection:
    """One end of a connection as the kernel sees it. Bytes are payload: no SYN, FIN or repetition is in them."""

    inode: int
    port: int  # the local one
    sent: int
    received: int
    rtt_us: int
    retransmitted: int  # segments
    window: int = 0  # of congestion: bytes that it may have under way


def connections(inodes: Container[int]) -> Iterator[Connection]:
    """Give the connections that are open and whose socket has one of these inodes.

    Raises:
        OSError: the kernel does not tell.
    """
    for data, at, length, inode in _found(socket.IPPROTO_TCP, _STATES, inodes):
        if found := _read(data, at, length, inode):
            yield found


def flows(inodes: Container[int]) -> Iterator[int]:
    """Give the inodes of those UDP sockets among these that have a peer. The kernel counts no bytes of them.

    Raises:
        OSError: the kernel does not tell.
    """
    for _, _, _, inode in _found(socket.IPPROTO_UDP, 1 << _ESTABLISHED, inodes):
        yield inode


def _found(protocol: int, states: int, inodes: Container[int]) -> Iterator[tuple[bytes, int, int, int]]:
    """Dump a protocol's sockets; of each that is meant give the answer it is in, where and how long, and its inode."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG) as kernel:
        for family in (socket.AF_INET, socket.AF_INET6):
            ask = _ASK.pack(family, protocol, 1 << (_INFO - 1), 0, states)
            kernel.send(_HEADER.pack(_HEADER.size + len(ask), _BY_FAMILY, _REQUEST | _DUMP, 0, 0) + ask)
            yield from _answers(kernel, inodes)


def _answers(kernel: socket.socket, inodes: Container[int]) -> Iterator[tuple[bytes, int, int, int]]:
    while True:
        data = kernel.recv(1 << 18)
        at = 0
        while at < len(data):
            length, kind, _, _, _ = _HEADER.unpack_from(data, at)
            if kind == _DONE:
                return
            if kind == _ERROR:
                (error,) = struct.unpack_from("=i", data, at + _HEADER.size)
                raise OSError(-error, "the kernel does not tell of its connections")
            (inode,) = struct.unpack_from("=I", data, at + _INODE_AT)
            if inode in inodes:
                yield data, at, length, inode
            at += (length + 3) & ~3


def _read(data: bytes, start: int, length: int, inode: int) -> Connection | None:
    at, end = start + _MESSAGE, start + length
    while at + 4 <= end:
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if kind == _INFO and size >= 4 + _SENT_AT + 16:
            info = at + 4
            (mss,) = struct.unpack_from("=I", data, info + _MSS_AT)
            (window,) = struct.unpack_from("=I", data, info + _WINDOW_AT)
            (rtt,) = struct.unpack_from("=I", data, info + _RTT_AT)
            (retransmitted,) = struct.unpack_from("=I", data, info + _RETRANSMITTED_AT)
            (received,) = struct.unpack_from("=Q", data, info + _RECEIVED_AT)
            sent, repeated = struct.unpack_from("=QQ", data, info + _SENT_AT)
            (port,) = struct.unpack_from(">H", data, start + _PORT_AT)
            received -= data[start + 17] in _FIN_CAME
            return Connection(inode, port, sent - repeated, received, rtt, retransmitted, window * mss)
        at += (size + 3) & ~3
    return None
