"""What may be asked of this gateway at all, whatever runs here already. What there is room for is `admission`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from s2cs.policy.addresses import Address, plain
from s2cs.policy.decision import Datagrams, Forward, Lease, decide
from s2cs.policy.sessions import MOST_PEERS, ours
from s2cs.settings import Settings
from scistream.errors import FailedPrecondition, InvalidArgument
from scistream.machine import Owner, Proof, Request, Session
from scistream.vocabulary import Endpoint, Role, Transport, shown
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
    if request.unencrypted and request.protocol is Transport.TCP:
        raise InvalidArgument("tcp is always encrypted between gateways; leave unencrypted out")
    if request.protocol is Transport.UDP:
        if not request.unencrypted:
            raise InvalidArgument(
                "udp goes between gateways in plain, since no proxy encrypts it; say that you know it with "
                "unencrypted (s2uc: --unencrypted), or use tcp"
            )
        decide(settings, user, Datagrams(request.role, request.rate)).require()
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


def check_no_proof(session: Session, proof: Proof, wan_peers: Sequence[str]) -> None:
    """See that a session of UDP comes without credentials, and at the producer's side with the other's addresses.

    Raises:
        InvalidArgument: there are credentials, or addresses where they mean nothing, or too many.
        FailedPrecondition: the addresses are missing.
    """
    uid, udp = session.uid, session.request.protocol is Transport.UDP
    if udp and proof != Proof():
        raise InvalidArgument(f"session {uid} is of udp, which has no credentials; leave certificate and anchor out")
    if wan_peers and not (udp and session.role is Role.PROD):
        raise InvalidArgument(
            f"wan_peers is for the producer's side of udp, which session {uid} here is not; leave it out"
        )
    if udp and session.role is Role.PROD and not wan_peers:
        raise FailedPrecondition(
            f"session {uid} needs wan_peers, from where the other gateway sends; take wan_host of its answer to req"
        )
    if len(wan_peers) > MOST_PEERS:
        raise InvalidArgument(f"there are {len(wan_peers)} wan_peers, and a session takes {MOST_PEERS}; send fewer")


def credentials(proof: Proof) -> Credentials:
    """Read a session's credentials.

    Raises:
        InvalidArgument: the bytes are no certificates.
    """
    other = Certificate.from_der(proof.other_anchor) if proof.other_anchor else None
    return Credentials(Certificate.from_der(proof.certificate), Certificate.from_der(proof.trust_anchor), other)
