"""A session's legs, each tried by the gateway that it begins or ends at, put together."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cryptography import x509

from s2uc.gateway import TIMEOUT_S, Gateway, GatewayClient
from scistream.errors import NotFound, ScistreamError
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Role, Uid, printable
from scistream.x509 import UNREADABLE

_SIDES = {Role.PROD: "producer", Role.CONS: "consumer"}


@dataclass(frozen=True, slots=True)
class Leg:
    """One leg of a session, and what was found."""

    gateway: str  # that tried it
    side: str  # producer or consumer: that gateway's; empty where it did not answer
    kind: str  # listener, application, handshake, stranger, or gateway for the gateway itself
    address: str = ""
    fault: str = ""  # what is wrong, and what mends it
    note: str = ""
    elapsed_us: int = 0
    tls_version: str = ""
    tls_cipher: str = ""
    certificate: bytes = b""  # DER: what the other side showed

    @property
    def ok(self) -> bool:
        """True when it is as promised."""
        return not self.fault

    def peer(self) -> dict[str, Any] | None:
        """Read the certificate; None where there is none that could be read."""
        try:
            found = x509.load_der_x509_certificate(self.certificate)
            names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            return {
                "subject": printable(found.subject.rfc4514_string()),
                "names": [printable(str(name.value)) for name in names],
                "sha256": hashlib.sha256(self.certificate).hexdigest(),
                "not_before": found.not_valid_before_utc.isoformat(),
                "not_after": found.not_valid_after_utc.isoformat(),
            }
        except (ValueError, *UNREADABLE):
            return None

    def as_dict(self) -> dict[str, Any]:
        """Give what `s2uc verify --json` prints of it."""
        return {
            "gateway": self.gateway,
            "side": self.side,
            "kind": self.kind,
            "address": self.address,
            "ok": self.ok,
            "fault": self.fault,
            "note": self.note,
            "elapsed_ms": round(self.elapsed_us / 1000, 3),
            "tls_version": self.tls_version,
            "tls_cipher": self.tls_cipher,
            "certificate": self.peer(),
        }


async def verify(
    uid: Uid, gateways: Sequence[Gateway], passive: bool = False, timeout: float = TIMEOUT_S
) -> tuple[Leg, ...]:
    """Have a session's gateways try its legs, and compare what they say.

    Args:
        uid: the session; it has to be open.
        gateways: both of its gateways, or more: those that do not know it are left out.
        passive: open nothing that the producer's application would see.
        timeout: for each call, in seconds.

    Raises:
        NotFound: no gateway knows it.
        ScistreamError: none that knows it could try.
    """

    async def ask(gateway: Gateway) -> pb.Verification | ScistreamError:
        try:
            async with GatewayClient(gateway, timeout) as client:
                return await client.verify(uid, passive)
        except ScistreamError as error:
            return error

    answers = await asyncio.gather(*map(ask, gateways))
    told = {gateway.name: answer for gateway, answer in zip(gateways, answers, strict=True)}
    found = {name: answer for name, answer in told.items() if isinstance(answer, pb.Verification)}
    errors = [answer for answer in answers if isinstance(answer, ScistreamError)]
    if not found:
        raise next((error for error in errors if not isinstance(error, NotFound)), errors[0])
    legs = [leg for name, answer in found.items() for leg in _legs(name, answer)]
    shown = {answer.role for answer in found.values()}
    for name, error in told.items():
        if isinstance(error, ScistreamError) and not (isinstance(error, NotFound) and len(shown) == len(Role)):
            legs.append(Leg(name, "", "gateway", fault=str(error)))
    return tuple(_compared(legs, next((one for one in found.values() if one.role == Role.PROD), None)))


def _legs(name: str, answer: pb.Verification) -> list[Leg]:
    side = _SIDES[Role.parse(answer.role)]
    return [
        Leg(
            name,
            side,
            leg.kind,
            leg.address,
            leg.fault,
            leg.note,
            leg.elapsed_us,
            leg.tls_version,
            leg.tls_cipher,
            leg.certificate,
        )
        for leg in answer.legs
    ]


def _compared(legs: list[Leg], producer: pb.Verification | None) -> list[Leg]:
    """See that TLS ends at the producer's gateway, and nowhere before: by the certificate that it says it has."""
    return [replace(leg, fault=_broken_promise(leg, producer)) if leg.ok else leg for leg in legs]


def _broken_promise(leg: Leg, producer: pb.Verification | None) -> str:
    if leg.kind != "handshake":
        return ""
    if leg.tls_version != "TLSv1.3":
        return f"{leg.tls_version or 'no TLS'} was negotiated, and TLSv1.3 is promised; tell the gateways' operators"
    if producer is not None and leg.certificate != producer.certificate:
        return (
            "who answers has another certificate than the producer's gateway; release the session, tell the operators"
        )
    return ""
