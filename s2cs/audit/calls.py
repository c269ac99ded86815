"""A call of the protocol as the audit log has it: who asked, what was asked, what came of it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any
from urllib.parse import unquote

from s2cs.audit.log import Audit
from s2cs.auth import Caller, KeyHolder
from scistream.errors import ScistreamError, Unauthenticated
from scistream.machine import Session
from scistream.vocabulary import Role, Transport

# The others only tell; of them refusals are recorded.
_DECIDING = ("req", "hello", "update", "renew", "release", "login", "kill", "drain")
_ASKED = (
    "uid",
    "role",
    "protocol",
    "num_conn",
    "rate",
    "rate_bytes_per_s",
    "backend",
    "lease_s",
    "producer",
    "consumer",
)
_ADDRESSES = ("remote_listeners", "prod_listeners")
_MOST_ADDRESSES = 8  # of those that were asked for and refused

current: ContextVar[Call] = ContextVar("call")


class Call:
    """One call, from its arrival to its answer."""

    def __init__(self, audit: Audit, method: str, peer: str) -> None:
        """Begin: the method's path, and the peer as gRPC names it."""
        self.session: Session | None = None
        self.caller: Caller | KeyHolder | None = None
        self._audit = audit
        service, _, self._method = method.rpartition("/")
        self._of = "web" if service.endswith(".Web") else "call"
        self._peer = address(peer)
        self._asked: Any = None

    def by(self, caller: Caller) -> None:
        """Know which user asks."""
        self.caller = caller
        self._audit.login(caller, self._peer)

    def asks(self, message: Any) -> None:
        """Know what is asked."""
        self._asked = message

    def allowed(self) -> None:
        """Record that it was done."""
        if self._method in _DECIDING:
            self._write("allowed", "", granted(self._method, self.session))

    def refused(self, error: ScistreamError) -> None:
        """Record why it was not."""
        self._write(
            "refused", str(error), {"status": error.status, **self._wanted()}, isinstance(error, Unauthenticated)
        )

    def abandoned(self) -> None:
        """Record that the caller went away; what it asked for may go on."""
        if self._method in _DECIDING:
            self._write("unanswered", "the caller went away before the answer", self._wanted())

    def _write(self, decision: str, reason: str, facts: dict[str, object], nobody: bool = False) -> None:
        self._audit.write(
            "login" if nobody else f"{self._of}.{self._method}",
            caller=self.caller,
            peer=self._peer,
            session=self.session,
            decision=decision,
            reason=reason,
            **({"method": self._method} if nobody else {}),
            **facts,
        )

    def _wanted(self) -> dict[str, object]:
        asked = self._asked
        facts = {name: value for name in _ASKED if (value := getattr(asked, name, ""))}
        for name in _ADDRESSES:
            if addresses := getattr(asked, name, ()):
                facts["asked"] = list(addresses[:_MOST_ADDRESSES])
        return facts if self.session is None else {}


def granted(method: str, session: Session | None) -> dict[str, object]:
    """Say what a session was given by a call."""
    if session is None:
        return {}
    request = session.request
    if method == "req":
        return {
            **({} if request.protocol is Transport.TCP else {"protocol": request.protocol, "encrypted": False}),
            "num_conn": request.num_conn,
            "rate_bytes_per_s": request.rate.bytes_per_s,
            "backend": session.backend,
            "lease_s": round(session.expires_at - session.created_at),
            "listeners": session.listeners,
            "producer": request.producer,
            "consumer": request.consumer,
        }
    if method == "hello":
        return {"targets": session.prod_listeners}
    if method == "update":
        peers = session.proof.peers.decode().split()
        return {
            "targets" if session.role is Role.PROD else "peers": session.targets,
            **({"wan_peers": peers} if peers else {}),
        }
    if method == "renew":
        return {"lease_s": round(session.expires_at - session.created_at)}
    return {}


def address(peer: str) -> str:
    """Read gRPC's name for a peer, `ipv4:192.0.2.1:40000` or `ipv6:%5B2001:db8::1%5D:40000`."""
    return unquote(peer.partition(":")[2]) if peer.startswith(("ipv4:", "ipv6:")) else peer
