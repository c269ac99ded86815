"""The app controller: says Hello for ProdApp or ConsApp, and starts it when the way is open."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from s2uc.gateway import TIMEOUT_S, Gateway, GatewayClient, wait_until
from scistream.errors import DeadlineExceeded, InvalidArgument, Unavailable
from scistream.machine import State
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Endpoint, Role, Uid, parse_endpoints

_PLACEHOLDER = re.compile(r"\{listener([0-9]{0,9})\}")
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # as shells say it


@dataclass(frozen=True, slots=True)
class Way:
    """An open way: where ProdApp listens, or where ConsApp connects to."""

    uid: Uid
    role: Role
    listeners: tuple[Endpoint, ...]

    def environment(self) -> dict[str, str]:
        """Give what the application finds in its environment."""
        return {
            "SCISTREAM_UID": self.uid,
            "SCISTREAM_ROLE": self.role,
            "SCISTREAM_LISTENERS": ",".join(map(str, self.listeners)),
        }

    def fill(self, arguments: Sequence[str]) -> list[str]:
        """Put addresses in for `{listener}` (the first), `{listener0}`, `{listener1}`, ...

        Raises:
            InvalidArgument: there are not so many.
        """

        def address(match: re.Match[str]) -> str:
            number = int(match[1] or 0)
            if number >= len(self.listeners):
                raise InvalidArgument(
                    f"{match[0]} is too far: session {self.uid} has {len(self.listeners)} listeners, counted from 0"
                )
            return str(self.listeners[number])

        return [_PLACEHOLDER.sub(address, argument) for argument in arguments]


async def hello(
    gateway: Gateway, uid: Uid, role: Role, listeners: tuple[Endpoint, ...] = (), timeout: float = TIMEOUT_S
) -> pb.AppResponse:
    """Say Hello to the gateway of one's own side.

    Args:
        gateway: with the application's key, or the owner's token.
        uid: the session.
        role: the application's side.
        listeners: where ProdApp listens; ConsApp has none.
        timeout: seconds.

    Returns:
        The message AppResponse of the protocol: for ConsApp, where to connect to.

    Raises:
        NotFound: no such session, or not this one's key.
        FailedPrecondition: the session has ended, or leads to other addresses already.
        Unavailable: the gateway does not answer.
    """
    async with GatewayClient(gateway, timeout) as client:
        return await client.hello(pb.Hello(uid=uid, role=role, prod_listeners=map(str, listeners)))


async def open_way(
    gateway: Gateway, uid: Uid, role: Role, listeners: tuple[Endpoint, ...] = (), timeout: float | None = None
) -> Way:
    """Say Hello, and return when the way is open.

    Args:
        gateway: with the application's key, or the owner's token.
        uid: the session.
        role: the application's side.
        listeners: where ProdApp will listen; empty when its user has said so already.
        timeout: seconds for all of it; None means as long as the session lives.

    Raises:
        DeadlineExceeded: the time is up, or the session's is.
        FailedPrecondition: the session has ended.
        NotFound: no such session, or not this one's key.
    """
    try:
        async with asyncio.timeout(timeout), GatewayClient(gateway) as client:
            answer = await client.hello(pb.Hello(uid=uid, role=role, prod_listeners=map(str, listeners)))
            info = await wait_until(client, uid, lambda info: info.state == State.ACTIVE)
    except TimeoutError:
        raise DeadlineExceeded(f"the way of session {uid} is not open after {timeout:g} s") from None
    found = info.prod_listeners if role is Role.PROD else answer.listeners
    if not found:
        raise Unavailable(f"gateway {gateway}: it names no listeners of session {uid}; is it a gateway?")
    return Way(uid, role, parse_endpoints(found))


def run(command: Sequence[str], way: Way, environment: Mapping[str, str] | None = None) -> int:
    """Run the application to its end and give its exit status; 128 + n when signal n ended it.

    Interrupts, terminations and user signals are passed on to it.

    Args:
        command: with placeholders, see `Way.fill`.
        way: what to fill in.
        environment: to add to; this process's own by default.
    """
    filled = way.fill(command)
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        if child is None:
            early.append(number)
        elif number not in (signal.SIGINT, signal.SIGQUIT) or not _in_foreground():
            child.send_signal(number)

    # What is ignored here, as under nohup, the application is to ignore, too; but its end has to be heard of.
    heard = [number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in heard}
    before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        child = subprocess.Popen(filled, env={**(environment or os.environ), **way.environment()})
        for number in early:
            child.send_signal(number)
        status = _end(child)
    except OSError as error:
        print(f"s2uc: {filled[0]} cannot be started: {error.strerror}", file=sys.stderr)  # noqa: T201 - as a shell says it
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def _end(child: subprocess.Popen[bytes]) -> int:
    """Wait for its end; from time to time, since a signal that the system gives to another thread wakes nobody here."""
    waiting = threading.Thread(target=child.wait, name="end of the application", daemon=True)
    waiting.start()
    while waiting.is_alive():
        waiting.join(0.5)
    return child.wait()


def _in_foreground() -> bool:
    """True when the terminal sends its interrupts to the application itself."""
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False
