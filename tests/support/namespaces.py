"""Hosts of their own for a test: network namespaces on one switch. Only root makes them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


def ip(*words: str) -> str:
    """Run `ip`, and give what it prints."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def at(prefix: str, name: str) -> tuple[str, ...]:
    """Give what a command begins with that is to run at a host."""
    return ("ip", "netns", "exec", f"{prefix}-{name}")


@contextmanager
def switched(word: str, hosts: Mapping[str, str]) -> Iterator[str]:
    """Make hosts on a switch; what the names of their namespaces begin with.

    Args:
        word: what the names begin with, for the eyes of who looks for leftovers.
        hosts: the address of each, by its name.
    """
    prefix = f"{word}{os.getpid()}"
    switch = f"{prefix}-switch"
    try:
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        for name, address in hosts.items():
            host = f"{prefix}-{name}"
            ip("netns", "add", host)
            ip("-n", host, "link", "add", "lan0", "type", "veth", "peer", "name", name, "netns", switch)
            ip("-n", switch, "link", "set", name, "master", "bridge", "up")
            ip("-n", host, "address", "add", f"{address}/24", "dev", "lan0")
            for link in ("lo", "lan0"):
                ip("-n", host, "link", "set", link, "up")
        yield prefix
    finally:
        for name in (*hosts, "switch"):
            subprocess.run(["ip", "netns", "delete", f"{prefix}-{name}"], check=False, capture_output=True)
