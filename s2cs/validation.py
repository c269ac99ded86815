"""What may be asked of this gateway at all, whatever runs here already. What there is room for is `admission`."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterable
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from s2cs.policy import admit
from s2cs.settings import Limits, Settings
from scistream.errors import InvalidArgument, PermissionDenied, ResourceExhausted
from scistream.machine import Proof, Request, Session
from scistream.vocabulary import Endpoint, Role, shown
from scistream.x509 import Certificate, Credentials

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_LABELS = 16
_TEXT = 255  # characters


async def check_request(settings: Settings, request: Request) -> None:
    """Look at what REQ asks for.

    Raises:
        InvalidArgument: a value that could never be right.
        PermissionDenied: the producer is outside of the networks that the operator named.
        ResourceExhausted: more connections than one session gets.
    """
    most = settings.limits.num_conn
    if not 1 <= request.num_conn <= 65535:
        raise InvalidArgument(f"num_conn {request.num_conn} is not in 1-65535")
    if request.num_conn > most:
        raise ResourceExhausted(
            f"num_conn {request.num_conn} is more than a session gets at this gateway ({most}); ask for less"
        )
    check_lease(settings.limits, request.lease_s)
    if request.protocol != "tcp":
        raise InvalidArgument(f"protocol {shown(request.protocol)} is not served here; use tcp")
    if len(request.hello_key_sha256) not in (0, 32):
        raise InvalidArgument(f"hello_key_sha256 has {len(request.hello_key_sha256)} bytes; a SHA-256 has 32")
    for name, text in (("producer", request.producer), ("consumer", request.consumer)):
        if len(text) > _TEXT or not text.isprintable():
            raise InvalidArgument(f"{name} {shown(text)} is not a printable text of at most {_TEXT} characters")
    if len(request.labels) > _LABELS:
        raise InvalidArgument(f"there are {len(request.labels)} labels; a session takes at most {_LABELS}")
    for key, value in request.labels.items():
        if not _LABEL.fullmatch(key) or len(value) > _TEXT or not value.isprintable():
            raise InvalidArgument(f"label {shown(key)}={shown(value)} is not KEY=VALUE in printable characters")
    if request.role is Role.PROD:  # refused at once instead of at Hello
        with contextlib.suppress(InvalidArgument):  # a name that the user gave the place is fine, too
            await admit(settings.policy, Role.PROD, Endpoint.parse(request.producer))


def check_lease(limits: Limits, lease_s: int) -> None:
    """Refuse a lease that is longer than the operator allows.

    Raises:
        InvalidArgument: it is.
    """
    longest = limits.max_lease
    if lease_s > longest:
        raise InvalidArgument(f"lease {lease_s} s is longer than this gateway allows ({longest} s); ask for less")


def check_role(session: Session, role: Role) -> None:
    """See that a message is for the side that this gateway serves.

    Raises:
        InvalidArgument: it is for the other.
    """
    if role is not session.role:
        raise InvalidArgument(
            f"this gateway serves the {session.role} side of session {session.uid}, not {role}; "
            "ask the other facility's gateway"
        )


def check_proof(session: Session, proof: Proof) -> None:
    """See that credentials are for this session's own key, name and role, and valid now.

    Raises:
        InvalidArgument: they are not.
    """
    key = x509.load_der_x509_csr(session.csr).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    credentials(proof).check(session.uid, session.role, key, datetime.now(UTC))


def credentials(proof: Proof) -> Credentials:
    """Read a session's credentials.

    Raises:
        InvalidArgument: the bytes are no certificates.
    """
    other = Certificate.from_der(proof.other_anchor) if proof.other_anchor else None
    return Credentials(Certificate.from_der(proof.certificate), Certificate.from_der(proof.trust_anchor), other)


async def admit_targets(
    settings: Settings, session: Session, role: Role, endpoints: Iterable[Endpoint]
) -> tuple[Endpoint, ...]:
    """Resolve where a session is to lead to, and give it back as addresses that this gateway may forward to.

    Raises:
        InvalidArgument: a name that does not resolve, or the session's own listener.
        PermissionDenied: outside of the networks that the operator named, or the control port.
    """
    admitted = await asyncio.gather(*(admit(settings.policy, role, endpoint) for endpoint in endpoints))
    for endpoint in admitted:
        if endpoint in settings.server.listen:
            raise PermissionDenied(f"{endpoint} is this gateway's own control port; name where the data goes")
        if endpoint in session.listeners:
            raise InvalidArgument(f"{endpoint} is this session's own listener; it would lead to itself for ever")
    return tuple(admitted)
