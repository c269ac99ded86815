"""The ticket that joins the two halves of a session, for two users at two facilities.

The producer's user makes it; whoever has it can open the consumer's half. It has the session CA's key in
it, so it is a secret: mode 0600, and worthless once the session has expired.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from s2uc.files import read_secret_json, write_secret
from scistream.errors import FailedPrecondition, InvalidArgument, ScistreamError
from scistream.vocabulary import Endpoint, Rate, Transport, Uid, parse_endpoints
from scistream.x509 import UNREADABLE, Certificate, PrivateKey, SessionCA

_KIND = "scistream-ticket"


@dataclass(frozen=True, slots=True)
class Ticket:
    """What the consumer's user needs: where the producer's gateway listens, and the CA it trusts."""

    uid: Uid
    num_conn: int
    rate: Rate
    producer: str  # the producer's gateway, by the name its user gave it
    listeners: tuple[Endpoint, ...]
    expires_at: datetime
    ca: SessionCA = field(repr=False)
    protocol: Transport = Transport.TCP

    def save(self, path: Path) -> None:
        """Write it, for this user's eyes only."""
        content = {
            "kind": _KIND,
            "version": 1 if self.protocol is Transport.TCP else 2,
            "protocol": self.protocol,
            "uid": self.uid,
            "num_conn": self.num_conn,
            "rate_bytes_per_s": self.rate.bytes_per_s,
            "producer": self.producer,
            "listeners": [str(listener) for listener in self.listeners],
            "expires_at": self.expires_at.isoformat(),
            "ca": self.ca.certificate.pem.decode(),
            "ca_key": self.ca.key.pem.decode(),
        }
        write_secret(path, json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Ticket:
        """Read a ticket.

        Raises:
            InvalidArgument: others can read the file, or it is no ticket.
            FailedPrecondition: it has expired.
        """
        content = read_secret_json(path, "a ticket of s2uc inbound-request")
        if content.get("kind") != _KIND or content.get("version") not in (1, 2):
            raise InvalidArgument(f"{path} is not a ticket that this version reads; make one with s2uc inbound-request")
        try:
            uid = Uid(content["uid"])
            certificate = Certificate(x509.load_pem_x509_certificate(content["ca"].encode()))
            key = PrivateKey.from_pem(content["ca_key"].encode())
            if certificate.x509.public_key() != key.key.public_key():
                raise ValueError("certificate and key do not belong together")
            ticket = cls(
                uid,
                int(content["num_conn"]),
                Rate(int(content["rate_bytes_per_s"])),
                str(content["producer"]),
                parse_endpoints(content["listeners"]),
                datetime.fromisoformat(content["expires_at"]).astimezone(UTC),
                SessionCA(uid, certificate, key),
                Transport.parse(str(content.get("protocol", ""))),
            )
            if not ticket.listeners:
                raise ValueError("no listeners")
            ticket.ca.certificate.x509.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)  # leaves name it
        except (*UNREADABLE, KeyError, OverflowError, AttributeError, ScistreamError):
            raise InvalidArgument(f"ticket {path} is damaged; ask for a new one") from None
        if ticket.expires_at <= datetime.now(UTC):
            raise FailedPrecondition(
                f"ticket {path} expired at {ticket.expires_at:%Y-%m-%d %H:%M:%S} UTC; ask for a new one"
            )
        return ticket
