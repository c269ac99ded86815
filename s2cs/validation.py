"""What may be asked of this gateway at all, whatever runs here already. What there is room for is `admission`."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from s2cs.policy.addresses import Address, plain
from s2cs.policy.decision import Forward, Lease, decide
from s2cs.policy.sessions import ours
from s2cs.settings import Settings
from scistream.errors import FailedPrecondition, InvalidArgument
from scistream.machine import Owner, Proof, Request, Session
from scistream.vocabulary import Endpoint, Role, shown
from scistream.x509 import Certificate, Credentials

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_LABELS = 16
_TEXT = 255  # characters


def check_request(settings: Settings, user: Owner, request: Request) -> None:
    """Look at what REQ asks for, whatever there is room for.

    Raises:
        InvalidArgument: a value that could never be right.
        PermissionDenied: what this user may not have; the producer's address is outside of the networks for it.
    """
    if not 1 <= request.num_conn <= 65535:
        raise InvalidArgument(f"num_conn {request.num_conn} is not in 1-65535")
    decide(settings, user, Lease(request.lease_s)).require()
    if request.protocol != "tcp":
        raise InvalidArgument(
            f"protocol {shown(request.protocol)} is not served here, since no proxy encrypts it; use tcp"
        )
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
    if request.role is Role.PROD and (producer := _address(request.producer)) is not None:
        # Refused at once instead of at Hello. A name is looked up there, and only there.
        decide(settings, user, Forward(Role.PROD, producer[0], producer[1], own=ours(settings))).require()


def _address(text: str) -> tuple[Address, int] | None:
    """Read an address and a port; None when it is a name, or something that the user calls the place."""
    try:
        endpoint = Endpoint.parse(text)
    except InvalidArgument:
        return None
    return (plain(endpoint.ip), endpoint.port) if endpoint.ip is not None else None


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
        FailedPrecondition: only one of the two is there.
        InvalidArgument: they are not.
    """
    if not (proof.certificate and proof.trust_anchor):
        raise FailedPrecondition(
            f"session {session.uid} needs both a certificate for the csr of req's answer and its trust_anchor"
        )
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
