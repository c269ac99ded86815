"""A user's certificate with its private key."""

from __future__ import annotations

import ssl
from pathlib import Path

from s2uc.files import read_secret
from scistream.errors import InvalidArgument
from scistream.vocabulary import shown


def read_pair(certificate: str, key: str) -> tuple[bytes, bytes]:
    """Read a client certificate and its private key, both PEM.

    Raises:
        InvalidArgument: one cannot be read, others can read the key, it is encrypted, or they are not a pair.
    """
    names = f"certificate {shown(certificate)} and key {shown(key)}"
    if not f"{certificate}{key}".isprintable():
        raise InvalidArgument(f"{names} are no names of files")
    try:
        chain = Path(certificate).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"certificate {certificate} cannot be read: {error.strerror}") from None
    private = read_secret(Path(key))
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password=_no_password)
    except _Encrypted:
        raise InvalidArgument(f"key {key} is encrypted; give one that is not, in a file for your eyes only") from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InvalidArgument(f"{names} do not belong together") from None
        raise InvalidArgument(f"{names} are not a certificate and its private key in PEM") from None
    return chain, private.encode()


class _Encrypted(Exception):
    pass


def _no_password() -> str:
    raise _Encrypted
