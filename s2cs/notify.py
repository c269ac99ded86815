"""What a service manager is told, where it asked for it: sd_notify(3), with no library."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

_STATUS_S = 5.0  # between looks at what the status line says


def tell(*assignments: str) -> None:
    """Send the manager a message; none where there is no manager."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                where = "\0" + address[1:] if address.startswith("@") else address
                sock.sendto("\n".join(assignments).encode(), where)
        except OSError as error:
            what = ", ".join(each.partition("=")[0] for each in assignments)
            log.warning("systemd cannot be told %s at %s: %s", what, address, error.strerror)


def reloading() -> None:
    """Say that the settings are being read again; READY=1 ends it."""
    tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_s() -> float | None:
    """How often the manager wants a sign of life, in seconds; None when it does not."""
    try:
        period, pid = int(os.environ["WATCHDOG_USEC"]), int(os.environ.get("WATCHDOG_PID", os.getpid()))
    except (KeyError, ValueError):
        return None
    return period / 1e6 if period > 0 and pid == os.getpid() else None


async def keep_telling(status: Callable[[], str]) -> None:
    """Give signs of life, and the status line whenever it is another one, until cancelled.

    From the event loop that serves the calls: when it hangs the signs stop, and the manager starts the server again.
    """
    if "NOTIFY_SOCKET" not in os.environ:
        return
    watchdog = watchdog_s()
    period = min(_STATUS_S, watchdog / 3) if watchdog else _STATUS_S
    said = ""
    while True:
        now = status()
        signs = (["WATCHDOG=1"] if watchdog else []) + ([f"STATUS={now}"] if now != said else [])
        if signs:
            tell(*signs)
        said = now
        await asyncio.sleep(period)
