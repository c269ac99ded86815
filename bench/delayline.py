"""`python -m bench.delayline A B DELAY_MS LOSS RATE_MBIT`: a wire between two TUN devices, in user space.

Whole TCP segmentation-offload frames (64 kB) go through, so that a gigabit costs little. Loss is per packet on the
wire all the same: the lost packet is cut out of its frame, and the frame goes on in two parts.
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import os
import random
import select
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass, field

_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_FLAGS = 0x0001 | 0x1000 | 0x4000  # TUN, no packet information, virtio header
_OFFLOADS = 0x01 | 0x02 | 0x04 | 0x08  # checksum, TCPv4, TCPv6, ECN
_VNET = struct.Struct("<BBHHHH")  # flags, kind, header length, segment size, checksum start and offset
_TCP4 = 1
_QUEUE_S = 0.1  # a router's buffer: at most so much may wait for the wire
_BURST = 64
_PR_SET_TIMERSLACK = 29


def open_tun(name: str) -> int:
    """Make a TUN device that takes large frames; its descriptor."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _FLAGS))
    fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _OFFLOADS)
    return descriptor


def _sum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def part_of(frame: bytes, first: int, last: int) -> bytes:
    """Cut segments `first` up to but not `last` out of a TCP/IPv4 offload frame, as a frame of its own.

    The checksum of TCP is left to the receiving kernel, as in the whole frame: what stands there is the sum of the
    pseudo header, which names the length.
    """
    flags, kind, header, size, start, offset = _VNET.unpack_from(frame)
    packet = frame[_VNET.size :]
    ip = (packet[0] & 15) * 4
    tcp = (packet[ip + 12] >> 4) * 4
    payload = packet[ip + tcp :]
    piece = payload[first * size : last * size]
    head = bytearray(packet[: ip + tcp])
    struct.pack_into("!H", head, 2, ip + tcp + len(piece))
    struct.pack_into("!H", head, 10, 0)
    struct.pack_into("!H", head, 10, 0xFFFF - _sum(bytes(head[:ip])))
    (sequence,) = struct.unpack_from("!I", head, ip + 4)
    struct.pack_into("!I", head, ip + 4, (sequence + first * size) & 0xFFFFFFFF)
    if last * size < len(payload):
        head[ip + 13] &= ~0x09  # FIN and PSH belong to the end
    struct.pack_into("!H", head, ip + 16, _sum(bytes(head[12:ip]) + struct.pack("!HH", 6, tcp + len(piece))))
    small = len(piece) <= size
    return _VNET.pack(flags, 0 if small else kind, header, 0 if small else size, start, offset) + head + piece


@dataclass
class Direction:
    """One way of the wire."""

    out: int
    delay_s: float
    loss: float
    bytes_per_s: float
    queue: deque[tuple[float, bytes]] = field(default_factory=deque)
    free_at: float = 0.0  # when the wire has sent what is before
    lost: int = 0

    def take(self, frame: bytes, now: float) -> None:
        """Put a frame onto the wire, or lose it, or a packet of it."""
        if self.free_at - now > _QUEUE_S:
            self.lost += 1
            return
        for part in self._survivors(frame) if self.loss else (frame,):
            begin = max(now, self.free_at)
            self.free_at = begin + len(part) / self.bytes_per_s if self.bytes_per_s else now
            self.queue.append((self.free_at + self.delay_s, part))

    def _survivors(self, frame: bytes) -> list[bytes]:
        _, kind, _, size, _, _ = _VNET.unpack_from(frame)
        if kind & 0x7F != _TCP4 or not size:
            if random.random() < self.loss:
                self.lost += 1
                return []
            return [frame]
        packet = memoryview(frame)[_VNET.size :]
        ip = (packet[0] & 15) * 4
        payload = len(packet) - ip - (packet[ip + 12] >> 4) * 4
        count = -(-payload // size)
        lost = [i for i in range(count) if random.random() < self.loss]
        if not lost:
            return [frame]
        self.lost += len(lost)
        edges = [-1, *lost, count]
        pairs = [(a + 1, b) for a, b in itertools.pairwise(edges) if b > a + 1]
        return [part_of(frame, first, last) for first, last in pairs]

    def deliver(self, now: float) -> float | None:
        """Hand over what has arrived; when the next one does."""
        queue = self.queue
        while queue and queue[0][0] <= now:
            try:
                os.write(self.out, queue.popleft()[1])
            except OSError:
                self.lost += 1
        return queue[0][0] if queue else None


def main(arguments: list[str]) -> None:
    """Carry packets until somebody ends this process."""
    a, b = (open_tun(name) for name in arguments[:2])
    delay_s, loss = float(arguments[2]) / 1000, float(arguments[3])
    bytes_per_s = float(arguments[4]) * 1e6 / 8
    ways = {a: Direction(b, delay_s, loss, bytes_per_s), b: Direction(a, delay_s, loss, bytes_per_s)}
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    poll = select.poll()
    for descriptor in ways:
        poll.register(descriptor, select.POLLIN)
    print("ready", flush=True)
    while True:
        now = time.monotonic()
        due = [at for way in ways.values() if (at := way.deliver(now)) is not None]
        if due:
            ready = select.select(list(ways), [], [], max(0.0, min(due) - time.monotonic()))[0]
        else:
            ready = [descriptor for descriptor, _ in poll.poll()]
        for descriptor in ready:
            for _ in range(_BURST):
                try:
                    frame = os.read(descriptor, 70_000)
                except BlockingIOError:
                    break
                ways[descriptor].take(frame, time.monotonic())


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(0)
