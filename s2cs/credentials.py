"""With what a gateway proves itself, and how callers prove themselves to it, as the settings name them."""

from __future__ import annotations

from s2cs.control import Credentials
from s2cs.identity.authenticator import Methods
from s2cs.identity.certificates import read_client_ca
from s2cs.settings import Settings
from scistream.errors import FailedPrecondition, InvalidArgument
from scistream.x509 import check_server_certificate


def read_certificate(settings: Settings) -> tuple[bytes, bytes]:
    """Read the gateway's own certificate and key (PEM), and see that they fit and are valid.

    Raises:
        FailedPrecondition: they cannot be read or used.
    """
    server = settings.server
    pems = []
    for name, path in (("certificate", server.certificate), ("key", server.key)):
        try:
            pems.append(path.read_bytes())
        except OSError as error:
            raise FailedPrecondition(
                f"{name} {path} cannot be read: {error.strerror}; mend [server] {name}, or make one with: s2cs init DIR"
            ) from None
    certificate, key = pems
    try:
        check_server_certificate(certificate, key)
    except InvalidArgument as error:
        raise FailedPrecondition(f"certificate {server.certificate} cannot be used: {error}") from None
    return certificate, key


def credentials_of(settings: Settings) -> Credentials:
    """Read what control ports need.

    Raises:
        FailedPrecondition: a file cannot be read or used.
    """
    certificates = settings.auth.certificates
    return Credentials(*read_certificate(settings), certificates.listen, read_client_ca(certificates))


def methods_of(settings: Settings) -> Methods:
    """Make the ways in which callers prove who they are.

    Raises:
        FailedPrecondition: a secret cannot be read, or an extra is missing.
    """
    settings.compat.secret()  # at the start, rather than when an old client comes
    return Methods(settings.auth, settings.compat)
