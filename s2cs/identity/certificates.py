"""Certificates of clients: gRPC has checked them against the CA; here is who they are of, and whether still."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from s2cs.auth import Caller
from s2cs.identity.outsiders import called, rank
from s2cs.identity.settings import Certificates
from s2cs.users import SCOPES, Rank
from scistream.errors import FailedPrecondition, Unauthenticated, Unavailable

log = logging.getLogger(__name__)

_LOOK_S = 1.0  # between two looks whether the list of revoked certificates has changed


def read_client_ca(settings: Certificates) -> bytes:
    """Read the CA of the users' certificates (PEM); empty when no certificates are asked for.

    Raises:
        FailedPrecondition: it cannot be read or used.
    """
    if not settings.listen or settings.ca is None:
        return b""
    try:
        pem = settings.ca.read_bytes()
        x509.load_pem_x509_certificates(pem)
    except OSError as error:
        raise FailedPrecondition(
            f"CA {settings.ca} cannot be read: {error.strerror}; mend [auth.certificates] ca"
        ) from None
    except ValueError:
        raise FailedPrecondition(f"CA {settings.ca} has no certificates in PEM; mend [auth.certificates] ca") from None
    return pem


class Revoked:
    """The list of revoked certificates in a file, read again when it has changed.

    Raises:
        FailedPrecondition: it cannot be read, or is not of one of the CAs.
    """

    def __init__(self, file: Path, authorities: list[x509.Certificate]) -> None:
        self._file = file
        self._authorities = authorities
        self._looked_at = time.monotonic()
        self._stamp = self._stat()
        self._list = self._read()

    def has(self, certificate: x509.Certificate) -> bool:
        """Tell whether a certificate is on the list.

        Raises:
            Unavailable: the list is out of date.
        """
        self._look()
        until = self._list.next_update_utc
        if until is not None and until < datetime.now(UTC):
            raise Unavailable(
                "this gateway's list of revoked certificates is out of date, so certificates cannot be checked; its "
                "operator brings a new one"
            )
        found = self._list.get_revoked_certificate_by_serial_number(certificate.serial_number)
        return found is not None and certificate.issuer == self._list.issuer

    def _look(self) -> None:
        if time.monotonic() - self._looked_at < _LOOK_S:
            return
        self._looked_at = time.monotonic()
        try:
            stamp = self._stat()
            if stamp != self._stamp:
                self._list = self._read()
                self._stamp = stamp
                log.info("the list of revoked certificates in %s was read again", self._file)
        except FailedPrecondition as error:
            log.error("%s; the list before stays in force", error)

    def _stat(self) -> tuple[int, int, int]:
        try:
            found = self._file.stat()
        except OSError as error:
            raise FailedPrecondition(
                f"{self._file} cannot be read: {error.strerror}; mend [auth.certificates] crl"
            ) from None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> x509.CertificateRevocationList:
        try:
            content = self._file.read_bytes()
            load = x509.load_pem_x509_crl if b"-----BEGIN" in content else x509.load_der_x509_crl
            found = load(content)
            good = any(
                authority.subject == found.issuer and found.is_signature_valid(authority.public_key())  # type: ignore[arg-type]
                for authority in self._authorities
            )
        except OSError as error:
            raise FailedPrecondition(
                f"{self._file} cannot be read: {error.strerror}; mend [auth.certificates] crl"
            ) from None
        except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
            raise FailedPrecondition(
                f"{self._file} is no list of revoked certificates; mend [auth.certificates] crl"
            ) from None
        if not good:
            raise FailedPrecondition(f"{self._file} is not signed by a CA of [auth.certificates] ca; take the CA's own")
        return found


class CertificateMethod:
    """`[auth.certificates]` at work.

    Raises:
        FailedPrecondition: the CA or the list of revoked certificates cannot be used.
    """

    def __init__(self, settings: Certificates) -> None:
        self.settings = settings
        pem = read_client_ca(settings)
        authorities = x509.load_pem_x509_certificates(pem) if pem else []
        self._revoked = Revoked(settings.crl, authorities) if pem and settings.crl else None

    def identify(self, pem: bytes) -> Caller:
        """Tell whose a certificate is that was used for this connection.

        Raises:
            Unauthenticated: it has expired, is revoked, or names nobody.
            Unavailable: it cannot be known whether it is revoked.
        """
        certificate = x509.load_pem_x509_certificate(pem)
        until = certificate.not_valid_after_utc
        if until < datetime.now(UTC):
            raise Unauthenticated("your certificate has expired; get a new one from your CA")
        if self._revoked is not None and self._revoked.has(certificate):
            fingerprint = certificate.fingerprint(hashes.SHA256()).hex()[:16]
            raise Unauthenticated(f"your certificate {fingerprint} is revoked; get a new one from your CA")
        where = self.settings.username
        who = _NAMES[where](certificate)
        name = called(self.settings, who, f"{where} of your certificate")
        role = rank(self.settings, str(who))
        scopes = frozenset(scope for scope in SCOPES if scope != "admin" or role > Rank.USER)
        return Caller(
            name, f"certificate:{self.settings.name}:{who}", role, frozenset(), scopes, "certificate", until.timestamp()
        )


def _common_name(certificate: x509.Certificate) -> object:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return names[0].value if len(names) == 1 else None


def _alternative(kind: type[x509.RFC822Name | x509.DNSName | x509.UniformResourceIdentifier]) -> Callable[..., object]:
    def find(certificate: x509.Certificate) -> object:
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
            return None
        return next(iter(names.get_values_for_type(kind)), None)

    return find


_NAMES: dict[str, Callable[[x509.Certificate], object]] = {
    "cn": _common_name,
    "email": _alternative(x509.RFC822Name),
    "dns": _alternative(x509.DNSName),
    "uri": _alternative(x509.UniformResourceIdentifier),
}
