"""Detector frames: a producer that streams them over several connections, a consumer that checks each.

A frame is a header and a picture: rows x cols uint16. Frame k travels on channel k mod num_conn; a
header of kind END closes a channel and says how many frames it had.
"""

from __future__ import annotations

import os
import socket
import struct
import time
import zlib
from dataclasses import dataclass, field

from scistream.errors import ScistreamError, Unavailable
from scistream.vocabulary import Endpoint

_HEADER = struct.Struct("!4sBBHIIQII")  # magic, kind, dtype, channel, rows, cols, sequence, CRC of payload, of header
_MAGIC, _FRAME, _END, _UINT16 = b"SCIF", 1, 2, 16
ROUND_TRIP_BYTES = 64
_POOL = 8  # different pictures; making each anew would measure Python
_TIMEOUT_S, _CONNECT_S, _SLICE_S = 30.0, 5.0, 0.25


class BadFrame(ScistreamError):
    """A frame is missing, damaged, or not the one that is due."""


@dataclass(frozen=True, slots=True)
class Amount:
    """How much to stream: until a number of frames, or of seconds, is over; and pictures of which shape."""

    frames: int = 0
    seconds: float = 0.0
    rows: int = 1024
    cols: int = 1024


def pack(kind: int, channel: int, rows: int, cols: int, sequence: int, crc: int) -> bytes:
    """Make a header."""
    draft = _HEADER.pack(_MAGIC, kind, _UINT16, channel, rows, cols, sequence, crc, 0)
    return draft[:-4] + struct.pack("!I", zlib.crc32(draft[:-4]))


class Producer:
    """Stream frames to who connects: one listener, and one connection, a channel."""

    def __init__(self, num_conn: int, amount: Amount, host: str = "127.0.0.1", round_trips: int = 0) -> None:
        """Listen.

        Args:
            num_conn: channels.
            amount: what to stream.
            host: this computer's address to listen on.
            round_trips: messages of ROUND_TRIP_BYTES that are sent back on channel 0 before it streams.
        """
        self._amount = amount
        self._round_trips = round_trips
        self._num_conn = num_conn
        pictures = [os.urandom(amount.rows * amount.cols * 2) for _ in range(_POOL)]
        self._pool = [(picture, zlib.crc32(picture)) for picture in pictures]
        self._sockets = [socket.create_server((host, 0), family=_family(host)) for _ in range(num_conn)]
        self._stopped = False

    @property
    def listeners(self) -> tuple[Endpoint, ...]:
        """Where it listens, channel by channel."""
        return tuple(Endpoint(*sock.getsockname()[:2]) for sock in self._sockets)

    def serve(self, channel: int) -> int:
        """Stream one channel to its end; gives the frames sent. Blocks."""
        with self._accept(self._sockets[channel]) as connection:
            connection.settimeout(_TIMEOUT_S)
            if channel == 0:
                self._send_back(connection)
            sent = self._stream(connection, channel)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)  # until the consumer has seen it all
        return sent

    def _send_back(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        message = bytearray(ROUND_TRIP_BYTES)
        for count in range(self._round_trips):
            _fill(connection, memoryview(message), count, 0)
            connection.sendall(message)

    def _accept(self, listener: socket.socket) -> socket.socket:
        """Wait for the one connection, in slices: a socket that is closed meanwhile does not end a wait everywhere."""
        listener.settimeout(_SLICE_S)
        end = time.monotonic() + _TIMEOUT_S
        while True:
            try:
                return listener.accept()[0]
            except TimeoutError:
                if self._stopped or time.monotonic() > end:
                    raise

    def _stream(self, connection: socket.socket, channel: int) -> int:
        amount, sent = self._amount, 0
        end = time.monotonic() + amount.seconds
        sequence = channel
        while not self._stopped and (sequence < amount.frames if amount.frames else time.monotonic() < end):
            picture, crc = self._pool[sequence % _POOL]
            connection.sendall(pack(_FRAME, channel, amount.rows, amount.cols, sequence, crc))
            connection.sendall(picture)
            sent += 1
            sequence += self._num_conn
        connection.sendall(pack(_END, channel, 0, 0, sent, 0))
        return sent

    def close(self) -> None:
        """Stop listening and streaming."""
        self._stopped = True
        for sock in self._sockets:
            sock.close()


@dataclass(slots=True)
class RoundTrips:
    """How long small messages took there and back, in seconds."""

    count: int
    seconds: list[float] = field(default_factory=list)

    def make(self, connection: socket.socket) -> None:
        """Send them one after another. Blocks."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        message = bytearray(ROUND_TRIP_BYTES)
        for count in range(self.count):
            begin = time.perf_counter()
            connection.sendall(message)
            _fill(connection, memoryview(message), count, 0)
            self.seconds.append(time.perf_counter() - begin)


@dataclass(frozen=True, slots=True)
class Tally:
    """What a channel's consumer has seen and found right."""

    frames: int
    bytes: int
    begin: float  # of the first byte, on the monotonic clock
    end: float


def check(endpoint: Endpoint, channel: int, num_conn: int, trips: RoundTrips | None = None) -> Tally:
    """Connect, take one channel's frames to the end, and check each. Blocks.

    Args:
        endpoint: the consumer's listener.
        channel: which one.
        num_conn: channels in all.
        trips: on channel 0, the round trips to make before; they are noted there.

    Raises:
        BadFrame: the first one that is wrong.
        Unavailable: it cannot be connected to.
        OSError: the connection breaks.
    """
    try:
        connection = socket.create_connection((endpoint.host, endpoint.port), timeout=_CONNECT_S)
    except OSError as error:
        raise Unavailable(
            f"this computer does not reach {endpoint}, where the consumer's gateway listens for applications "
            f"({error.strerror or 'no answer'}); run this on a host of that facility's network"
        ) from None
    with connection:
        connection.settimeout(_TIMEOUT_S)
        if trips is not None:
            trips.make(connection)
        return check_stream(connection, channel, num_conn)


def check_stream(connection: socket.socket, channel: int, num_conn: int) -> Tally:
    """Check the frames that come on a connection; see `check`."""
    header = bytearray(_HEADER.size)
    payload = bytearray()
    begin, count, size = 0.0, 0, 0
    while True:
        _fill(connection, memoryview(header), count, channel)
        begin = begin or time.monotonic()
        kind, rows, cols, sequence, crc = _open(header, count, channel)
        if kind == _END:
            if sequence != count:
                raise BadFrame(f"channel {channel} had {sequence} frames and {count} came")
            return Tally(count, size, begin, time.monotonic())
        if sequence != channel + count * num_conn:
            raise BadFrame(f"channel {channel}: frame {sequence} came and {channel + count * num_conn} was due")
        if len(payload) != rows * cols * 2:
            payload = bytearray(rows * cols * 2)
        _fill(connection, memoryview(payload), count, channel)
        if zlib.crc32(payload) != crc:
            raise BadFrame(f"channel {channel}: frame {sequence} is damaged: its checksum differs")
        count += 1
        size += len(payload) + len(header)


def _open(header: bytearray, count: int, channel: int) -> tuple[int, int, int, int, int]:
    magic, kind, dtype, number, rows, cols, sequence, crc, header_crc = _HEADER.unpack(header)
    if magic != _MAGIC or zlib.crc32(header[:-4]) != header_crc or dtype != _UINT16 or kind not in (_FRAME, _END):
        raise BadFrame(f"channel {channel}: after {count} frames comes something else than a header")
    if number != channel:
        raise BadFrame(f"channel {channel}: a frame of channel {number} came")
    return kind, rows, cols, sequence, crc


def _fill(connection: socket.socket, view: memoryview, count: int, channel: int) -> None:
    """Read as much as the view holds."""
    got = 0
    while got < len(view):
        try:
            more = connection.recv_into(view[got:])
        except OSError as error:
            raise BadFrame(f"channel {channel} breaks off after {count} frames: {error}") from None
        if not more:
            raise BadFrame(f"channel {channel} breaks off after {count} frames")
        got += more


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
