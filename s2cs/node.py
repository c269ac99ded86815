"""`s2cs s2ds`: serve the data server of a further gateway node to S2CS, until told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from s2cs import notify, runtime, unknown
from s2cs.data_server import local_config
from s2cs.node_settings import NodeSettings, load_node
from s2cs.s2ds.confinement import keep_keys_in
from s2cs.s2ds.local import LocalDataServer
from s2cs.s2ds.remote.s2ds_pb2_grpc import add_DataServerServicer_to_server
from s2cs.s2ds.remote.service import Guard, Service
from s2cs.s2ds.remote.terms import Terms
from scistream.errors import FailedPrecondition, InvalidArgument, Unavailable
from scistream.wire import CHANNEL_OPTIONS, MAX_METADATA_BYTES, grpc
from scistream.x509 import check_server_certificate

log = logging.getLogger(__name__)

MAX_QUESTION_BYTES = 4 * 2**20  # the ids of as many tunnels as a gateway may have
_OPTIONS = [
    *CHANNEL_OPTIONS,
    ("grpc.max_receive_message_length", MAX_QUESTION_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.max_concurrent_streams", 10_000),  # S2CS asks for many sessions at once, on one connection
    ("grpc.server_handshake_timeout_ms", 5000),
    ("grpc.max_allowed_incoming_connections", 1000),
    ("grpc.compression_enabled_algorithms_bitset", 1),
]


async def serve(file: Path) -> None:
    """Serve until SIGTERM or SIGINT; tunnels are left running for the next start to take up.

    Raises:
        SettingsError: the settings cannot be used.
        FailedPrecondition: a certificate or a directory cannot be used.
        Unavailable: the port to listen on is taken.
    """
    settings = load_node(file)
    keep_keys_in()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with _running(settings):
        where = ", ".join(map(str, settings.server.listen))
        log.info("node %s serves on %s", settings.server.name, where)
        notify.tell("READY=1")
        telling = asyncio.create_task(notify.keep_telling(lambda: f"serves on {where}"))
        await stop.wait()
        telling.cancel()
        log.info("node %s stops", settings.server.name)
        notify.tell("STOPPING=1")


@asynccontextmanager
async def _running(settings: NodeSettings) -> AsyncIterator[None]:
    directory = settings.server.state_dir
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise FailedPrecondition(
            f"state directory {directory} cannot be used: {error.strerror}; mend it or change [server] state_dir"
        ) from None
    server, known = _credentials(settings)
    data_server = LocalDataServer(local_config(settings, runtime.tunnels(settings)))
    rpc = unknown.server(interceptors=[Guard(known.__contains__, Terms(directory / "term"))], options=_OPTIONS)
    add_DataServerServicer_to_server(Service(settings.server.name, data_server), rpc)
    try:
        for endpoint in settings.server.listen:
            _add_port(rpc, str(endpoint), server)
        await data_server.open()
        try:
            await rpc.start()
            yield
        finally:
            await rpc.stop(0)
            data_server.let_go()
    finally:
        runtime.forget(settings)


def _add_port(rpc: grpc.aio.Server, endpoint: str, credentials: grpc.ServerCredentials) -> None:
    try:
        bound = rpc.add_secure_port(endpoint, credentials)
    except RuntimeError:
        bound = 0
    if not bound:
        raise Unavailable(
            f"the node cannot listen on {endpoint}: the port is taken, or the address is not this host's; "
            "change listen in [server]"
        )


def _credentials(settings: NodeSettings) -> tuple[grpc.ServerCredentials, frozenset[bytes]]:
    """Make the TLS of the port, and name the certificates, as gRPC writes them, that are let in."""
    server = settings.server
    own = (server.key.get_secret_value().encode(), server.certificate.encode())
    try:
        check_server_certificate(own[1], own[0])
    except InvalidArgument as error:
        raise FailedPrecondition(f"[server] certificate cannot be used: {error}") from None
    known = []
    for number, pem in enumerate(server.gateways, 1):
        try:
            known.append(x509.load_pem_x509_certificate(pem.encode()))
        except ValueError:
            raise FailedPrecondition(f"[server] gateways {number} is not a certificate in PEM") from None
    pems = [each.public_bytes(serialization.Encoding.PEM) for each in known]
    return grpc.ssl_server_credentials([own], b"".join(pems), require_client_auth=True), frozenset(pems)
