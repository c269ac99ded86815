"""How S2CS of one facility know each other: by certificates that each makes for itself, and notes in the shared store.

Who can write there can be anybody at this facility anyhow, so no CA would add to that. Keys stay in the state
directory.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from s2cs.setup import write_whole
from scistream.errors import FailedPrecondition
from scistream.x509 import pinned

NAME = "replica.s2cs.scistream.internal"
_DAYS, _LEAST_DAYS = 825, 30
_USAGES = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, in PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class Identity:
    """What an S2CS proves itself with, to another one that asks it or that it asks."""

    server: Pair
    client: Pair

    @property
    def about(self) -> dict[str, str]:
        """What the others are to know."""
        return {"server": self.server.certificate.decode(), "client": self.client.certificate.decode()}


def identity(state_dir: Path) -> Identity:
    """Read this S2CS's, or make it the first time, and anew before it ends.

    Raises:
        FailedPrecondition: it cannot be written.
    """
    directory = state_dir / "replica"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        return Identity(*(_pair(directory, name) for name in _USAGES))
    except OSError as error:
        raise FailedPrecondition(
            f"{error.filename or directory} cannot be written: {error.strerror}; mend [server] state_dir"
        ) from None


def _pair(directory: Path, name: str) -> Pair:
    certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
    now = datetime.now(UTC)
    try:
        pair = Pair(certificate.read_bytes(), key.read_bytes())
        if x509.load_pem_x509_certificate(pair.certificate).not_valid_after_utc > now + timedelta(days=_LEAST_DAYS):
            return pair
    except (OSError, ValueError):
        pass
    made, made_key = pinned(NAME, _USAGES[name], now + timedelta(days=_DAYS))
    write_whole(key, made_key.pem, 0o600)
    write_whole(certificate, made.pem, 0o644)
    return Pair(made.pem, made_key.pem)
