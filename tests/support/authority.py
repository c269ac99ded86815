"""Certificates of users, made for a test."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Pair = tuple[bytes, bytes]  # certificate and key in PEM


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


class Authority:
    """Somebody who issues certificates to users."""

    def __init__(self, name: str = "users") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        basic = x509.BasicConstraints(ca=True, path_length=None)
        self.certificate = (
            self._builder(name, name, 30, self.key).add_extension(basic, True).sign(self.key, hashes.SHA256())
        )

    def _builder(self, subject: str, issuer: str, days: float, key: Any) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder(named(issuer), named(subject), key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=40))
            .not_valid_after(now + timedelta(days=days))
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, name: str, days: float = 1, use: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH) -> Pair:
        """A certificate for somebody, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = self.certificate.subject.rfc4514_string().removeprefix("CN=")
        made = (
            self._builder(name, issuer, days, key)
            .add_extension(x509.ExtendedKeyUsage([use]), False)
            .add_extension(x509.SubjectAlternativeName([x509.RFC822Name(f"{name}@example.org")]), False)
            .sign(self.key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return made.public_bytes(serialization.Encoding.PEM), private

    def issue_host(self, address: str) -> Pair:
        """A certificate for a host that serves and asks others, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = self.certificate.subject.rfc4514_string().removeprefix("CN=")
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        made = (
            self._builder(address, issuer, 1, key)
            .add_extension(x509.ExtendedKeyUsage(uses), False)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), False)
            .sign(self.key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return made.public_bytes(serialization.Encoding.PEM), private

    def revoke(self, *pairs: Pair, good_for: timedelta = timedelta(days=1)) -> bytes:
        """The list of these certificates in PEM."""
        now = datetime.now(UTC)
        made = x509.CertificateRevocationListBuilder(self.certificate.subject, now - timedelta(days=2), now + good_for)
        for pem, _ in pairs:
            serial = x509.load_pem_x509_certificate(pem).serial_number
            made = made.add_revoked_certificate(x509.RevokedCertificateBuilder(serial, now).build())
        return made.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
