"""What systemd is told, at a socket that stands where its own is."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from s2cs import notify


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        monkeypatch.delenv("WATCHDOG_USEC", raising=False)
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        yield sock


def test_a_message_has_its_assignments_in_lines(manager: socket.socket) -> None:
    notify.tell("STOPPING=1", "STATUS=stops")
    assert manager.recv(1000) == b"STOPPING=1\nSTATUS=stops"
    notify.reloading()
    first, _, second = manager.recv(1000).decode().partition("\n")
    assert first == "RELOADING=1"
    assert second.removeprefix("MONOTONIC_USEC=").isdecimal()


@pytest.mark.parametrize(
    ("usec", "pid", "period"),
    [
        ("30000000", "", 30.0),
        ("30000000", "own", 30.0),
        ("30000000", "1", None),
        ("0", "", None),
        ("x", "", None),
    ],
)
def test_the_watchdog_is_this_process(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch, usec: str, pid: str, period: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    if pid:
        monkeypatch.setenv("WATCHDOG_PID", pid.replace("own", str(os.getpid())))
    assert notify.watchdog_s() == period


async def test_signs_of_life_come_in_time_and_a_status_only_when_it_is_another(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    said = iter(("0 sessions", "0 sessions", "1 session", *["1 session"] * 1000))
    telling = asyncio.create_task(notify.keep_telling(lambda: next(said)))
    try:
        messages = [await asyncio.to_thread(manager.recv, 1000) for _ in range(4)]
    finally:
        telling.cancel()
    first, second, third, fourth = messages
    assert first == b"WATCHDOG=1\nSTATUS=0 sessions"
    assert third == b"WATCHDOG=1\nSTATUS=1 session"
    assert second == fourth == b"WATCHDOG=1"


async def test_nothing_is_told_where_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify.tell("READY=1")
    await asyncio.wait_for(notify.keep_telling(lambda: "never"), 5)
