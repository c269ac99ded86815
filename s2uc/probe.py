"""Why a gateway cannot be reached, in one sentence.

gRPC says "failed to connect to all addresses" for everything. So the same road is gone again with plain
sockets and the standard library's TLS, which know what they met.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass

from scistream.vocabulary import Endpoint

_EXPIRED, _NOT_YET_VALID = 10, 9  # OpenSSL's X509_V_ERR_*
_WRONG_NAME = (62, 64)
_NOT_TLS = (
    *("WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"),
    *("RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE"),
)
_TOO_OLD = ("UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "NO_PROTOCOLS_AVAILABLE", "TLSV13_ALERT")
_LOOK_S = 0.5
_WANTED = (
    "it hangs up after the TLS handshake; does this port want your certificate "
    "(s2uc gateway add with --cert FILE --key FILE)?"
)
_REFUSED = "it does not take your certificate; has it expired, or is it from another CA than this gateway trusts?"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What stood in the way, and whether it may pass by itself."""

    sentence: str
    passing: bool = False


async def diagnose(
    endpoint: Endpoint, ca_pem: bytes | None, timeout: float = 3.0, certified: bool = False
) -> Diagnosis | None:
    """Connect as a client would and say what fails; None when nothing does.

    Args:
        endpoint: where the gateway's control server should listen.
        ca_pem: the CA certificates to trust; None means this computer's own.
        timeout: seconds for the whole attempt.
        certified: whether the user has shown a certificate; this attempt shows none.
    """
    try:
        context = ssl.create_default_context(cadata=ca_pem.decode("ascii") if ca_pem else None)
    except (ssl.SSLError, ValueError):
        return Diagnosis("the CA file known for it holds no certificate in PEM; add the gateway again with --ca FILE")
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    connected = False
    try:
        async with asyncio.timeout(timeout):
            _, plain = await asyncio.open_connection(endpoint.host, endpoint.port)
            plain.close()
            connected = True
            reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port, ssl=context)
            protocol = writer.get_extra_info("ssl_object").selected_alpn_protocol()
            try:
                # With TLS 1.3 the handshake is over for the client before the server has looked at its certificate.
                hung_up = protocol == "h2" and await asyncio.wait_for(reader.read(1), _LOOK_S) == b""
            except TimeoutError:
                hung_up = False
            finally:
                writer.close()
    except (OSError, UnicodeError) as error:
        return _of_error(error, endpoint, connected)
    if hung_up:
        return Diagnosis(_REFUSED if certified else _WANTED, passing=True)
    if protocol != "h2":
        return Diagnosis("a TLS server that is no SciStream gateway listens there; check host and port")
    return None


def _of_error(error: Exception, endpoint: Endpoint, connected: bool) -> Diagnosis:
    match error:
        case socket.gaierror() | UnicodeError():
            return Diagnosis(f"the name {endpoint.host} cannot be resolved; check the spelling and this computer's DNS")
        case ssl.SSLCertVerificationError():
            return _of_certificate(error, endpoint)
        case ssl.SSLError():
            return _of_tls(error)
        case ConnectionRefusedError():
            return Diagnosis("the connection was refused; is s2cs running there, and is the port right?", passing=True)
        case TimeoutError() if connected:
            return Diagnosis("it takes connections but does not answer; is it busy, or no TLS port?")
        case TimeoutError():
            return Diagnosis(
                "it does not answer; are host and port right, and is no firewall in the way?", passing=True
            )
        case ConnectionResetError() | BrokenPipeError() | ConnectionAbortedError() if connected:
            return Diagnosis("it closes the connection during the TLS handshake; is it a SciStream gateway?")
        case _:
            return Diagnosis(f"it cannot be reached: {getattr(error, 'strerror', None) or error}", passing=True)


def _of_certificate(error: ssl.SSLCertVerificationError, endpoint: Endpoint) -> Diagnosis:
    if error.verify_code in _WRONG_NAME:
        return Diagnosis(
            f"its certificate is for another name than {endpoint.host}; use the name in the certificate, "
            "or have its operator add this one"
        )
    if error.verify_code == _EXPIRED:
        return Diagnosis("its certificate has expired; its operator has to renew it")
    if error.verify_code == _NOT_YET_VALID:
        return Diagnosis("its certificate is not valid yet; compare the two hosts' clocks")
    return Diagnosis(
        f"its certificate is not signed by the CA known for it ({error.verify_message}); "
        "ask its operator for the CA certificate and add the gateway again, with --ca FILE and your --token-file"
    )


def _of_tls(error: ssl.SSLError) -> Diagnosis:
    reason = error.reason or ""
    if reason in _NOT_TLS:
        return Diagnosis("a plain-text service listens there, not one with TLS; check the port")
    if reason.startswith(_TOO_OLD):
        return Diagnosis("it does not speak TLS 1.3; a gateway does, so check host and port")
    return Diagnosis(f"the TLS handshake fails: {reason or error}", passing=not reason)
