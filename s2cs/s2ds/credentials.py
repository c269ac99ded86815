"""A bridge's credentials as the files that the templates name."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from s2cs.s2ds.contract import Bridge, PreSharedKey, TrustedPeers
from scistream.vocabulary import Uid
from scistream.x509 import PrivateKey, SessionCA

IDENTITY = "scistream"
"""What a peer calls a pre-shared key. It crosses the WAN in plain, so it tells nothing: the uid would tell the key."""

ANCHORS = "ca.pem"
"""What a peer's certificate may be from."""

LEAF = "leaf.pem"
"""What the proxy shows, with its key."""

PEERS = "peers"
"""Addresses that datagrams are taken from, a line each, in place of certificates."""

PSK = "psk"
"""The pre-shared key, in place of certificates."""

_FOR_EVER = timedelta(days=3650)


def credential_files(bridge: Bridge, key: PrivateKey) -> Mapping[str, bytes]:
    """Give the files of a tunnel with a private key of its own."""
    credentials = bridge.credentials
    if isinstance(credentials, TrustedPeers):
        return {PEERS: "".join(f"{address}\n" for address in credentials.addresses).encode()}
    if isinstance(credentials, PreSharedKey):
        return {PSK: f"{IDENTITY}:{credentials.key.hex()}\n".encode(), ANCHORS: _of_nobody()}
    return {LEAF: credentials.certificate.pem + key.pem, ANCHORS: credentials.trusted_pem}


def _of_nobody() -> bytes:
    """Make a CA whose key is thrown away.

    In TLS 1.3 a server may answer a pre-shared key with a certificate instead. A client that trusts no CA at all
    is taken by Stunnel for one that verifies nothing; one that trusts this CA accepts no certificate that there is.
    """
    return SessionCA.create(Uid("nobody"), datetime.now(UTC) + _FOR_EVER).certificate.pem
