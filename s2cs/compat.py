"""Old clients: what is done for them, what is weaker about it, and the record of each use.

They know the first nine fields of four messages, and nothing of credentials for the WAN leg.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from s2cs.audit.log import Audit
from s2cs.auth import Caller
from s2cs.logs import about
from s2cs.s2ds.contract import BackendInfo, Capability, PreSharedKey
from s2cs.tables import Table, others_can_read
from scistream.errors import FailedPrecondition
from scistream.machine import Session
from scistream.vocabulary import Uid

log = logging.getLogger(__name__)

HELLO_WAIT_S = 180.0  # how long a `req` that waits for Hello may block
_LABEL = b"scistream wan psk v1"  # no other use of the same secrets ever gives the same key
_LEAST_SECRET = 16  # bytes
_MOST_KNOWN = 10_000  # callers whose first use is remembered


class Compat(Table):
    """`[compat]`: clients that know only the first version of the protocol."""

    psk: bool = False  # a WAN leg by a key from the uid, for who sends no credentials
    psk_secret_file: Literal[""] | Path = ""  # mode 0600, the same at both facilities: goes into that key
    user: str = ""  # who a caller without a token is; empty: nobody, and refused
    blocking_req: bool = True  # a req without `immediate`
    bare_tokens: bool = True  # without `Bearer`

    def secret(self) -> bytes:
        """Read what the operators of both facilities share; empty when they share nothing.

        Raises:
            FailedPrecondition: it is not there, others can read it, or it is short.
        """
        if not self.psk_secret_file:
            return b""
        file = Path(self.psk_secret_file)
        try:
            if others_can_read(file):
                raise FailedPrecondition(f"{file} can be read by others; chmod 600 {file}")
            secret = file.read_bytes().strip()
        except OSError as error:
            raise FailedPrecondition(
                f"{file} cannot be read: {error.strerror}; mend [compat] psk_secret_file"
            ) from None
        if len(secret) < _LEAST_SECRET:
            raise FailedPrecondition(
                f"{file} has {len(secret)} bytes; write at least {_LEAST_SECRET} random ones: openssl rand -hex 32"
            )
        return secret


def derived(uid: Uid, secret: bytes) -> PreSharedKey:
    """Derive the key of a session's WAN leg, the same at both gateways: HKDF-SHA256.

    Without a secret the uid is all that is needed to know the key.
    """
    return PreSharedKey(HKDF(SHA256(), 32, salt=secret or None, info=_LABEL).derive(uid.encode()))


class Old(StrEnum):
    """What old clients do that new ones do not."""

    BLOCKING_REQ = "blocking_req"
    BARE_TOKEN = "bare_token"  # noqa: S105 - no token
    NO_TOKEN = "no_token"  # noqa: S105
    HELLO_ROLE = "hello_role"
    PSK = "psk"


WEAKER = {
    Old.BLOCKING_REQ: f"the call holds its caller, and the session its ports, for up to {HELLO_WAIT_S:.0f} s",
    Old.BARE_TOKEN: "a token without a scheme cannot be told from other secrets sent by mistake",
    Old.NO_TOKEN: "anybody who reaches the control port is this user, and may release each other's sessions",
    Old.HELLO_ROLE: "the application named the other side, so a Hello sent to the wrong gateway goes unnoticed",
    Old.PSK: "the WAN key comes from the uid, and whoever knows that reaches the application: no certificates, "
    "no end of the lease in them",
}
_WITHOUT_SECRET = "; there is no psk_secret_file, so nothing else is needed"  # noqa: S105


class OldClients:
    """Do for old clients what the operator allows; count and record each use with what is weaker about it."""

    def __init__(self, settings: Callable[[], Compat], audit: Audit) -> None:
        """Go by the settings in force, and record into the audit log."""
        self.counts: Counter[Old] = Counter()
        self._settings = settings
        self._audit = audit
        self._known: dict[tuple[Old, str, str], None] = {}

    def check_blocking(self) -> None:
        """See that a req may wait for Hello.

        Raises:
            FailedPrecondition: it may not.
        """
        if not self._settings().blocking_req:
            raise FailedPrecondition(
                "this gateway answers req at once only; set immediate, or have its operator set [compat] blocking_req"
            )

    def check_psk(self, session: Session, backends: Iterable[BackendInfo]) -> None:
        """See that a session may be opened without credentials.

        Raises:
            FailedPrecondition: it may not, or its proxy cannot do it.
        """
        uid, backend = session.uid, session.backend
        if not self._settings().psk:
            raise FailedPrecondition(
                f"session {uid} needs credentials for the WAN leg; send a certificate for the csr of req's answer "
                "and its trust_anchor, as s2uc does; for clients that know of none the operator sets [compat] psk"
            )
        if not any(each.name == backend and Capability.PSK in each.capabilities for each in backends):
            raise FailedPrecondition(
                f"session {uid} is on backend {backend}, which cannot do the pre-shared keys of clients without "
                "credentials; release it, and ask again when the operator has installed stunnel, or with credentials"
            )

    def shared_key(self, session: Session) -> PreSharedKey:
        """Derive the key of a session's WAN leg.

        Raises:
            FailedPrecondition: the operator has turned that off meanwhile, or the secret cannot be read.
        """
        settings = self._settings()
        if not settings.psk:
            raise FailedPrecondition(f"session {session.uid} has no credentials, and [compat] psk is off")
        secret = settings.secret()
        self.of_session(Old.PSK, session, "" if secret else _WITHOUT_SECRET)
        return derived(session.uid, secret)

    def of_session(self, old: Old, session: Session, more: str = "") -> None:
        """Note what was done for a session."""
        self.counts[old] += 1
        weaker = WEAKER[old] + more
        log.warning("session %s: old client: %s: %s", session.uid, old, weaker, extra=about(session))
        self._audit.write("compat", session=session, use=old, reason=weaker)

    def of_caller(self, old: Old, caller: Caller, peer: str) -> None:
        """Note how somebody proved who it is, or did not: counted at each call, recorded once for each address."""
        self.counts[old] += 1
        host = peer.rpartition(":")[0]
        key = (old, caller.id, host)
        if key in self._known:
            return
        if len(self._known) >= _MOST_KNOWN:
            self._known.pop(next(iter(self._known)))
        self._known[key] = None
        log.warning("old client at %s: %s: %s", host, old, WEAKER[old])
        self._audit.write("compat", caller=caller, peer=peer, use=old, reason=WEAKER[old])
