"""How far away a gateway is, and how it is: measured before anything is asked of it."""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any

from s2uc.gateway import Gateway, GatewayClient
from s2uc.probe import diagnose
from scistream.errors import Unavailable
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Endpoint


@dataclass(frozen=True, slots=True)
class Ping:
    """What was found. Times are seconds; `call_s` has one for each call on an open channel."""

    gateway: Gateway
    address: str  # as resolved, of the one that answers
    others: dict[str, str]  # why each other address of the gateway does not serve; empty when it does
    connect_s: float
    handshake_s: float
    call_s: tuple[float, ...]
    tls_version: str
    tls_cipher: str
    certificate_until: datetime
    description: pb.GatewayDescription

    def as_dict(self) -> dict[str, Any]:
        """Give what `s2uc ping --json` prints; times in milliseconds."""
        return {
            "gateway": self.gateway.name,
            "address": self.address,
            "others": self.others,
            "connect_ms": _ms(self.connect_s),
            "handshake_ms": _ms(self.handshake_s),
            "call_ms": {"min": _ms(min(self.call_s)), "median": _ms(median(self.call_s)), "max": _ms(max(self.call_s))},
            "calls": len(self.call_s),
            "tls": {"version": self.tls_version, "cipher": self.tls_cipher},
            "certificate_until": self.certificate_until.isoformat(),
            "name": self.description.name,
            "version": self.description.version,
            "user": self.description.user,
            "free_ports": self.description.free_ports,
            "unready": self.description.unready,
            "backends": {
                backend.name: backend.version or f"not usable: {backend.reason}"
                for backend in self.description.backends
            },
        }


async def ping(gateway: Gateway, count: int = 5, timeout: float = 10.0) -> Ping:
    """Connect to a gateway, shake hands, and ask it what it is, several times.

    Args:
        gateway: which one.
        count: calls, one or more.
        timeout: seconds for the connection, and for each call.

    Raises:
        ScistreamError: why it cannot be reached, or does not answer.
    """
    async with GatewayClient(gateway, timeout) as client:
        description = await client.describe()  # says best what is wrong, and opens the channel
        endpoint = client.endpoint
        address, connect_s, handshake_s, tls = await _connect(gateway, endpoint, timeout)
        call_s = []
        for _ in range(count):
            begin = time.perf_counter()
            await client.describe()
            call_s.append(time.perf_counter() - begin)
    others = [each for each in gateway.endpoints if each != endpoint]
    certified = bool(gateway.certificate)
    found = await asyncio.gather(*(diagnose(each, gateway.ca_pem, min(timeout, 3.0), certified) for each in others))
    cipher, version, _ = tls.cipher() or ("", "", 0)
    until = ssl.cert_time_to_seconds(str((tls.getpeercert() or {})["notAfter"]))
    return Ping(
        gateway,
        address,
        {str(each): fault.sentence if fault else "" for each, fault in zip(others, found, strict=True)},
        connect_s,
        handshake_s,
        tuple(call_s),
        version,
        cipher,
        datetime.fromtimestamp(until, UTC),
        description,
    )


async def _connect(gateway: Gateway, endpoint: Endpoint, timeout: float) -> tuple[str, float, float, ssl.SSLObject]:
    """Time the TCP connection and the TLS handshake, which gRPC does not tell."""
    context = ssl.create_default_context(cadata=gateway.ca_pem.decode("ascii") if gateway.ca_pem else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout(timeout):
            begin = time.perf_counter()
            _, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
            try:
                connected = time.perf_counter()
                address = writer.get_extra_info("peername")[0]
                await writer.start_tls(context, server_hostname=endpoint.host)
                shaken = time.perf_counter()
                tls = writer.get_extra_info("ssl_object")
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError) as error:
        raise Unavailable(f"gateway {gateway} went away while it was being measured: {error or 'no answer'}") from None
    return address, connected - begin, shaken - connected, tls


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
