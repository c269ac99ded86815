"""A trial of a tunnel's legs: what is promised of them, tried as its proxies do it, and in bounded time.

The producer's application is touched as little as that allows. TLS 1.3 shows a client the server's certificate before
the client has shown its own: a handshake that is given up there proves the way and the other gateway, and that one's
proxy opens nothing for it. Whether it takes our certificate is seen by a running stream, where there is one. Only where
there is none is a handshake brought to its end, and the application then sees a connection that ends at once.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Callable, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path

from s2cs.s2ds import procfs
from s2cs.s2ds.contract import Bridge, LegCheck, LegKind, PreSharedKey, TrustedPeers, TunnelSpec
from scistream.vocabulary import Endpoint, Role, Transport, printable
from scistream.x509 import peer_name, way_name

_BUDGET_S = 8.0  # for all of it: callers give a call 12 seconds
_CONNECT_S = 3.0
_HANDSHAKE_S = 4.0
_PATIENCE_S = 0.3, 2.0  # how long a refusal of our certificate may take, at least and at most
_AT_ONCE = 16
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: what was opened is ended at once
_RUNNING = "a running stream shows it"
_SILENT = "not tried: nothing answers a UDP trial"
_PLAIN = "not tried: UDP in plain, nobody proves who it is"
_ALERTED = (ssl.SSLError, ConnectionError)


class _Refused(Exception):
    """The other side ended the connection after the handshake."""


@dataclass(frozen=True, slots=True)
class _Goal:
    """Where a proxy connects to, and the name that it asks for there."""

    target: Endpoint
    name: str


@dataclass(frozen=True, slots=True)
class Trial:
    """All that is needed to try a tunnel."""

    spec: TunnelSpec
    listeners: tuple[tuple[Endpoint, int], ...]  # as the other side reaches each, and its own port
    pids: tuple[int, ...]  # of its proxies
    bridge: Bridge
    leaf: Path  # with the key
    anchors: Path
    passive: bool  # open nothing that the producer's application would see

    def run(self) -> tuple[LegCheck, ...]:
        """Try each leg; blocks for some seconds at most."""
        deadline = time.monotonic() + _BUDGET_S
        inodes = frozenset(inode for pid in self.pids for inode in procfs.sockets(pid))
        if self.spec.protocol is Transport.UDP:
            return self._datagrams(procfs.receiving(inodes))
        sockets = list(procfs.connections(inodes))
        listening = {port for port, peer in sockets if peer is None}
        running = {peer for _, peer in sockets if peer is not None}
        checks = [self._listener(listener, port in listening) for listener, port in self.listeners]
        jobs: list[Callable[[], LegCheck]] = []
        for goal in self._goals():
            flows = (str(ip_address(goal.target.host)), goal.target.port) in running
            if self.spec.role is Role.PROD:
                jobs.append(partial(self._application, goal.target, flows, deadline))
            else:
                jobs.append(partial(self._handshake, goal, flows, deadline))
                jobs.append(partial(self._stranger, goal, deadline))
        if jobs:
            with ThreadPoolExecutor(min(_AT_ONCE, len(jobs)), "trial") as pool:
                checks += pool.map(lambda job: job(), jobs)
        return tuple(checks)

    def _datagrams(self, receiving: Set[int]) -> tuple[LegCheck, ...]:
        """See that the proxy receives; what lies beyond answers no trial, and proves nothing."""
        kind, note = (LegKind.APPLICATION, _SILENT) if self.spec.role is Role.PROD else (LegKind.PLAIN, _PLAIN)
        checks = [self._listener(listener, port in receiving) for listener, port in self.listeners]
        targets = dict.fromkeys(self.bridge.targets[: self.spec.num_conn])
        return (*checks, *(LegCheck(kind, target, note=note) for target in targets))

    def _goals(self) -> list[_Goal]:
        """Where the proxies connect to, each once."""
        targets, credentials = self.bridge.targets[: self.spec.num_conn], self.bridge.credentials
        if self.spec.role is Role.PROD or isinstance(credentials, (PreSharedKey, TrustedPeers)):
            return [_Goal(target, peer_name(self.spec.uid, Role.PROD)) for target in dict.fromkeys(targets)]
        return [_Goal(t, way_name(credentials.trust_anchor, self.spec.uid, i)) for i, t in enumerate(targets)]

    def _listener(self, listener: Endpoint, served: bool) -> LegCheck:
        fault = "" if served else "its proxy does not listen there now; watch the session, and look at its logs"
        return LegCheck(LegKind.LISTENER, listener, fault)

    def _application(self, target: Endpoint, flows: bool, deadline: float) -> LegCheck:
        """See that the producer's application accepts a connection."""
        if flows:
            return LegCheck(LegKind.APPLICATION, target, note=_RUNNING)
        if self.passive:
            return LegCheck(LegKind.APPLICATION, target, note="not tried")
        begin = time.monotonic()
        try:
            with _connected(target, deadline) as connection:
                took = _since(begin)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        except OSError as error:
            mend = "start the application, or have it listen there" if isinstance(error, ConnectionError) else _ROUTE
            return LegCheck(LegKind.APPLICATION, target, f"{_words(error)}; {mend}")
        return LegCheck(LegKind.APPLICATION, target, elapsed_us=took)

    def _handshake(self, goal: _Goal, flows: bool, deadline: float) -> LegCheck:
        """See that the other gateway proves itself, and that it takes our certificate."""
        target = goal.target
        begin = time.monotonic()
        try:
            context = _context(self.anchors)
            context.load_cert_chain(self.leaf)
            connection = _connected(target, deadline)
        except OSError as error:
            return LegCheck(LegKind.HANDSHAKE, target, f"{_words(error)}; {_ROUTE}")
        with connection:
            tls = _Tls(connection, context, goal.name)
            try:
                tls.meet()
            except ssl.SSLCertVerificationError as error:
                fault = f"who answers there is not this session's other gateway: {error.verify_message}; {_MAP}"
                return LegCheck(LegKind.HANDSHAKE, target, fault, certificate=_shown(goal, deadline))
            except TimeoutError as error:
                return LegCheck(LegKind.HANDSHAKE, target, f"{_words(error)}; {_ROUTE}")
            except OSError as error:
                return LegCheck(LegKind.HANDSHAKE, target, f"no TLS 1.3 came about: {_words(error)}; {_MAP}")
            took = _since(begin)
            version, cipher, certificate = tls.session
            fault, note = "", _RUNNING if flows else "our certificate was not tried" if self.passive else ""
            if not (flows or self.passive):
                fault = _acceptance(tls, took)
        return LegCheck(LegKind.HANDSHAKE, target, fault, note, took, version, cipher, certificate)

    def _stranger(self, goal: _Goal, deadline: float) -> LegCheck:
        """See that who has no certificate is refused before anything is forwarded."""
        target = goal.target
        begin = time.monotonic()
        try:
            connection = _connected(target, deadline)
        except OSError as error:
            return LegCheck(LegKind.STRANGER, target, f"{_words(error)}; {_ROUTE}")
        with connection:
            tls = _Tls(connection, _context(None), goal.name)
            try:
                tls.meet()
                took = _since(begin)
                tls.go_on(_PATIENCE_S[1])
            except (_Refused, *_ALERTED):
                return LegCheck(LegKind.STRANGER, target, elapsed_us=_since(begin))
            except OSError as error:
                return LegCheck(LegKind.STRANGER, target, f"{_words(error)}; {_ROUTE}")
            fault = "it lets in a client without a certificate; tell that gateway's operator, and release the session"
            return LegCheck(LegKind.STRANGER, target, fault, elapsed_us=took)


_ROUTE = "a firewall or a route is in between, or nobody listens there; ask the operators of both gateways"
_MAP = "release the session and request it again, and if it stays so tell the operators"


class _Tls:
    """A client's TLS by hand, so that it can stop half-way."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext, name: str) -> None:
        self._connection = connection
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)

    def meet(self) -> None:
        """Go through the handshake up to where the server has proved itself; our own part is not sent yet.

        Raises:
            ssl.SSLError, OSError: it does not come about.
        """
        deadline = time.monotonic() + _HANDSHAKE_S
        while True:
            try:
                self._tls.do_handshake()
                return
            except ssl.SSLWantReadError:
                self._connection.sendall(self._outgoing.read())
                self._receive(deadline)

    @property
    def session(self) -> tuple[str, str, bytes]:
        """Version, cipher, and the server's certificate."""
        cipher = self._tls.cipher()
        return self._tls.version() or "", cipher[0] if cipher else "", self._tls.getpeercert(binary_form=True) or b""

    def go_on(self, patience_s: float) -> None:
        """Send our part, and return when the other side has not ended the connection for so long.

        Raises:
            _Refused, ssl.SSLError, OSError: it has.
        """
        self._connection.sendall(self._outgoing.read())
        deadline = time.monotonic() + patience_s
        try:
            while True:
                try:
                    if not self._tls.read(1):
                        raise _Refused
                    return  # the application speaks first
                except ssl.SSLWantReadError:
                    self._receive(deadline)
        except TimeoutError:
            return
        except ssl.SSLEOFError:
            raise _Refused from None

    def _receive(self, deadline: float) -> None:
        self._connection.settimeout(max(0.001, deadline - time.monotonic()))
        data = self._connection.recv(65536)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()


def _acceptance(tls: _Tls, took_us: int) -> str:
    """Bring a handshake to its end; say what is wrong when the other side does not take it."""
    least, most = _PATIENCE_S
    try:
        tls.go_on(min(most, max(least, 4 * took_us / 1e6)))
    except _ALERTED as error:
        return f"the other gateway refuses this one's certificate: {_words(error)}; {_MAP}"
    except _Refused:
        return (
            "the other gateway ends the connection after the handshake: it does not reach the producer's application, "
            "that one ends the connection, or it refuses this gateway's certificate; look at the producer's legs"
        )
    return ""


def _context(anchors: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if anchors is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    else:
        context.load_verify_locations(anchors)
    return context


def _shown(goal: _Goal, deadline: float) -> bytes:
    """Give the certificate that somebody shows who could not be verified; empty where it does not come."""
    with suppress(OSError), _connected(goal.target, deadline) as connection:
        tls = _Tls(connection, _context(None), goal.name)
        tls.meet()
        return tls.session[2]
    return b""


def _connected(target: Endpoint, deadline: float) -> socket.socket:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("it was not tried: the other legs took too long")
    return socket.create_connection((target.host, target.port), min(_CONNECT_S, left))


def _since(begin: float) -> int:
    return round((time.monotonic() - begin) * 1e6)


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return str(error) if "not tried" in str(error) else "it does not answer"
    if isinstance(error, ssl.SSLError):
        return printable((error.reason or str(error)).lower().replace("_", " "))
    return printable((error.strerror if isinstance(error, OSError) else "") or str(error)).lower()
