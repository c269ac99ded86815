"""Certificates: the CA of one session, the leaves of its two gateways, a gateway's own certificate.

A session's CA lives in memory at the user's side and signs exactly two leaves: the producer gateway's
(serverAuth) and the consumer gateway's (clientAuth). Each names the uid and the role twice, because the
proxies look in different places: as a DNS name in the subjectAltName, and as CN and UID of the subject.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from scistream.errors import InvalidArgument
from scistream.vocabulary import Role, Uid

SKEW = timedelta(minutes=5)
"""How far two hosts' clocks may be apart."""
# What `cryptography` raises on bytes that are no good certificate or request; some of it only when a part is read.
UNREADABLE = (
    ValueError,
    TypeError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
_USAGE = {Role.PROD: ExtendedKeyUsageOID.SERVER_AUTH, Role.CONS: ExtendedKeyUsageOID.CLIENT_AUTH}


def peer_name(uid: Uid, role: Role) -> str:
    """Name the gateway of one side of one session, as its certificate does (a DNS name)."""
    return f"{role.lower()}.{uid}.scistream.internal"


def way_name(anchor: Certificate, uid: Uid, number: int) -> str:
    """Name one of a session's connections, as the consumer's gateway asks for it on the WAN (a DNS name).

    A gateway with one WAN port for all tells sessions apart by it: the uid alone may be another user's as well.
    """
    digest = hashlib.sha256(anchor.der).hexdigest()[:24]
    return f"{number}-{digest}.{peer_name(uid, Role.PROD)}"


def _names(uid: Uid, role: Role) -> list[x509.GeneralName]:
    """All that a session's certificate is for; on the producer's side each of its connections, see `way_name`."""
    name = peer_name(uid, role)
    return [x509.DNSName(name), *([x509.DNSName(f"*.{name}")] if role is Role.PROD else [])]


def _session_subject(uid: Uid, role: Role) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, role), x509.NameAttribute(NameOID.USER_ID, uid)])


@dataclass(frozen=True, slots=True)
class Certificate:
    """An X.509 certificate; `der` is the wire's form."""

    x509: x509.Certificate

    @classmethod
    def from_der(cls, der: bytes) -> Self:
        """Read a certificate.

        Raises:
            InvalidArgument: the bytes are no certificate.
        """
        try:
            return cls(x509.load_der_x509_certificate(der))
        except UNREADABLE:
            raise InvalidArgument("the bytes given as a certificate are not one in DER") from None

    @classmethod
    def all_from_pem(cls, pem: bytes) -> tuple[Self, ...]:
        """Read the certificates of a file.

        Raises:
            InvalidArgument: there is none, or one that cannot be read.
        """
        try:
            return tuple(map(cls, x509.load_pem_x509_certificates(pem)))
        except UNREADABLE:
            raise InvalidArgument("the bytes given as certificates are not some in PEM") from None

    @property
    def der(self) -> bytes:
        """The certificate in DER."""
        return self.x509.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> bytes:
        """The certificate in PEM."""
        return self.x509.public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A P-256 key that stays where it was made.

    P-256 because its signature costs a twentieth of RSA's and all three proxies speak it.
    """

    key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return "PrivateKey(...)"

    @classmethod
    def generate(cls) -> Self:
        """Make a new key."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """Read an unencrypted key.

        Raises:
            InvalidArgument: the bytes are no P-256 key.
        """
        try:
            key = serialization.load_pem_private_key(pem, None)
        except (ValueError, TypeError):
            raise InvalidArgument("the bytes given as a private key are not one in unencrypted PEM") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InvalidArgument("the private key is not an elliptic-curve key")
        return cls(key)

    @property
    def pem(self) -> bytes:
        """The key in unencrypted PKCS#8 PEM: only for a file of mode 0600."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def csr(self, uid: Uid, role: Role) -> bytes:
        """Ask for this session's leaf: PKCS#10 in DER, signed with this key as proof of possession."""
        builder = x509.CertificateSigningRequestBuilder().subject_name(_session_subject(uid, role))
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a gateway proves itself with in one session, and the CA it trusts there."""

    certificate: Certificate
    trust_anchor: Certificate
    other_anchor: Certificate | None = None  # trusted too, while the session's credentials are renewed

    @property
    def anchors(self) -> tuple[Certificate, ...]:
        """All that a peer's certificate may be from."""
        return (self.trust_anchor, self.other_anchor) if self.other_anchor else (self.trust_anchor,)

    @property
    def trusted_pem(self) -> bytes:
        """The same in PEM."""
        return b"".join(anchor.pem for anchor in self.anchors)

    def check(self, uid: Uid, role: Role, public_key: ec.EllipticCurvePublicKey, now: datetime) -> None:
        """Refuse credentials that would not work, before a proxy finds out.

        Raises:
            InvalidArgument: another key, issuer, name, role or time than this session's.
        """
        leaf, anchor = self.certificate.x509, self.trust_anchor.x509
        try:
            own_key, subject = leaf.public_key(), leaf.subject
            begin, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
            basic = anchor.extensions.get_extension_for_class(x509.BasicConstraints).value
        except UNREADABLE as error:
            raise InvalidArgument(f"the certificate or its trust anchor cannot be read: {error}") from None
        if own_key != public_key:
            raise InvalidArgument("the certificate is not for the key of this session's certificate request")
        try:
            leaf.verify_directly_issued_by(anchor)
        except UNREADABLE:
            raise InvalidArgument("the certificate was not issued by the trust anchor sent with it") from None
        if not basic.ca:
            raise InvalidArgument("the trust anchor is not a CA certificate")
        if list(names) != _names(uid, role) or list(usage) != [_USAGE[role]]:
            raise InvalidArgument(f"the certificate does not name the {role} side of session {uid} and only that")
        if subject != _session_subject(uid, role):
            raise InvalidArgument(f"the certificate's subject is not CN={role}, UID={uid}")
        if not begin <= now < end:
            raise InvalidArgument("the certificate is not valid now; compare the two hosts' clocks")


@dataclass(frozen=True, slots=True)
class SessionCA:
    """The CA of one session, made by S2UC for two leaves and kept in memory."""

    uid: Uid
    certificate: Certificate
    key: PrivateKey

    @classmethod
    def create(cls, uid: Uid, not_after: datetime) -> Self:
        """Make a CA that lives until `not_after` (the end of the lease, UTC)."""
        key = PrivateKey.generate()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "SciStream session CA")])
        return cls(uid, _self_signed(name, key, not_after), key)

    def issue(self, csr: bytes, role: Role, not_after: datetime | None = None) -> Credentials:
        """Sign a gateway's request. Only its key is taken from it; the names come from here.

        Args:
            csr: PKCS#10 in DER.
            role: the side that the gateway serves.
            not_after: the end of the certificate (UTC), if it is before this CA's.

        Raises:
            InvalidArgument: the bytes are no request, or it is not signed with its own key.
        """
        try:
            request = x509.load_der_x509_csr(csr)
            valid, public_key = request.is_signature_valid, request.public_key()
        except UNREADABLE:
            raise InvalidArgument("the bytes given as a certificate request are not one in DER") from None
        if not valid:
            raise InvalidArgument("the certificate request is not signed with its own key")
        if not isinstance(public_key, ec.EllipticCurvePublicKey):
            raise InvalidArgument("the certificate request is not for an elliptic-curve key")
        anchor = self.certificate.x509
        builder = _builder(_session_subject(self.uid, role), anchor.subject, public_key, anchor, not_after)
        names = x509.SubjectAlternativeName(_names(self.uid, role))
        leaf = (
            builder.add_extension(names, critical=False)
            .add_extension(x509.ExtendedKeyUsage([_USAGE[role]]), critical=True)
            .sign(self.key.key, hashes.SHA256())
        )
        return Credentials(Certificate(leaf), self.certificate)


@dataclass(frozen=True, slots=True)
class DevelopmentCA:
    """A CA for trying out and for facilities without one: signs gateways' own certificates."""

    certificate: Certificate
    key: PrivateKey

    @classmethod
    def create(cls, name: str, days: int = 3650) -> Self:
        """Make a CA of that common name."""
        key = PrivateKey.generate()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name[:40]} development CA")])
        return cls(_self_signed(subject, key, datetime.now(UTC) + timedelta(days=days)), key)

    def issue_server(self, hosts: list[str], not_after: datetime) -> tuple[Certificate, PrivateKey]:
        """Make a key and a serverAuth certificate for these host names and IP addresses."""
        key = PrivateKey.generate()
        names: list[x509.GeneralName] = []
        for host in hosts:
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        anchor = self.certificate.x509
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "SciStream gateway")])
        builder = _builder(subject, anchor.subject, key.key.public_key(), anchor, not_after)
        leaf = (
            builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(self.key.key, hashes.SHA256())
        )
        return Certificate(leaf), key


def node_name(name: str) -> str:
    """Name a gateway node, as its certificate does (a DNS name)."""
    return f"{name}.node.scistream.internal"


def pinned(name: str, usage: x509.ObjectIdentifier, not_after: datetime) -> tuple[Certificate, PrivateKey]:
    """Make a key and a certificate that others know themselves: it is its own issuer, and can issue no other.

    Args:
        name: DNS name.
        usage: SERVER_AUTH or CLIENT_AUTH of `ExtendedKeyUsageOID`.
        not_after: its end (UTC).
    """
    key = PrivateKey.generate()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    builder = (
        _builder(subject, subject, key.key.public_key(), None, not_after, is_ca=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
    )
    return Certificate(builder.sign(key.key, hashes.SHA256())), key


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: CertificatePublicKeyTypes,
    anchor: x509.Certificate | None,
    not_after: datetime | None = None,
    is_ca: bool = False,
) -> x509.CertificateBuilder:
    """Start a certificate with what one with an anchor and one that is its own have in common."""
    now = datetime.now(UTC)
    if anchor is not None:
        not_after = min(not_after or anchor.not_valid_after_utc, anchor.not_valid_after_utc)
    assert not_after is not None
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, not_after) - SKEW)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not is_ca,
                key_cert_sign=is_ca,
                crl_sign=is_ca,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )
    if anchor is not None:
        ski = anchor.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski)
        builder = builder.add_extension(identifier, critical=False)
    return builder


def _self_signed(name: x509.Name, key: PrivateKey, not_after: datetime) -> Certificate:
    builder = _builder(name, name, key.key.public_key(), None, not_after, is_ca=True)
    return Certificate(builder.sign(key.key, hashes.SHA256()))


def check_server_certificate(certificate_pem: bytes, key_pem: bytes) -> x509.Certificate:
    """See that a gateway's own certificate is valid now and fits its key; give it back.

    Raises:
        InvalidArgument: it is no certificate, not valid now, or of another key.
    """
    try:
        certificate = x509.load_pem_x509_certificates(certificate_pem)[0]
    except ValueError:
        raise InvalidArgument("it is not a certificate in PEM") from None
    try:
        key = serialization.load_pem_private_key(key_pem, None)
    except (ValueError, TypeError):
        raise InvalidArgument("its key is not a private key in unencrypted PEM") from None
    if key.public_key() != certificate.public_key():
        raise InvalidArgument("its key is another one's; give the key that it was issued for")
    now = datetime.now(UTC)
    if now >= certificate.not_valid_after_utc:
        raise InvalidArgument(f"it expired on {certificate.not_valid_after_utc:%Y-%m-%d}; get a new one")
    if now < certificate.not_valid_before_utc:
        raise InvalidArgument(f"it is valid only from {certificate.not_valid_before_utc:%Y-%m-%d}; compare the clock")
    return certificate


def names_of(certificate_pem: bytes) -> list[str]:
    """List the host names and addresses that a server's certificate is for, in lower case.

    Raises:
        InvalidArgument: it is no certificate.
    """
    try:
        certificate = x509.load_pem_x509_certificates(certificate_pem)[0]
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    except ValueError:
        raise InvalidArgument("it is not a certificate in PEM") from None
    addresses = names.get_values_for_type(x509.IPAddress)
    return [name.lower() for name in [*names.get_values_for_type(x509.DNSName), *map(str, addresses)]]
