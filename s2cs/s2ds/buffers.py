"""Socket buffers for a long way, where the kernel by itself would not let them grow far enough."""

from __future__ import annotations

from pathlib import Path

_SYSCTL = Path("/proc/sys/net")


def send_buffer(in_flight: int) -> int:
    """Say what to ask for with SO_SNDBUF on this host; 0 is to leave it to the kernel.

    Args:
        in_flight: bytes on the way when the WAN is full; 0 where nobody has said.
    """
    try:
        grown = int((_SYSCTL / "ipv4/tcp_wmem").read_text().split()[2])
        asked = int((_SYSCTL / "core/wmem_max").read_text())
    except (OSError, ValueError, IndexError):
        return 0
    return to_ask_for(in_flight, grown, asked)


def to_ask_for(in_flight: int, grown: int, asked: int) -> int:
    """Decide on a send buffer.

    The kernel doubles what is asked for, since half of a buffer is its own; and what was asked for does not grow
    any more. So it is asked for only where that gives more than growing would.

    Args:
        in_flight: bytes that have to fit.
        grown: how large the kernel lets a buffer grow (the last of tcp_wmem).
        asked: what may be asked for at most (wmem_max).

    Returns:
        Bytes for SO_SNDBUF; 0 is to leave it to the kernel.
    """
    most = min(in_flight, asked)
    return most if 2 * in_flight > grown and 2 * most > grown else 0
