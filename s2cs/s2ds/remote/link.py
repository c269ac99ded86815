"""How a gateway node is reached: by its own certificate and nobody else's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from s2cs.s2ds.remote import codec
from s2cs.s2ds.remote import s2ds_pb2 as pb
from s2cs.s2ds.remote.s2ds_pb2_grpc import DataServerStub
from s2cs.s2ds.remote.terms import TERM
from scistream.errors import Unavailable
from scistream.vocabulary import Endpoint
from scistream.wire import CHANNEL_OPTIONS, MAX_ANSWER_BYTES, grpc
from scistream.x509 import node_name

LOST_S = 3.0  # without a sign of life
_OPTIONS = [
    *CHANNEL_OPTIONS,
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),  # which is also how long a connection may take
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),  # a channel that is made anew has a connection of its own
]


@dataclass(frozen=True, slots=True)
class Link:
    """How a node is reached, and how both prove who they are. Certificates and key in PEM."""

    name: str
    address: Endpoint
    node_certificate: bytes
    certificate: bytes
    key: bytes
    term: Callable[[], int] | None = field(default=None, compare=False)  # of an S2CS that is one of several

    def marks(self) -> tuple[tuple[str, str], ...]:
        """Give what goes with each call: in which term this S2CS leads, where it is one of several.

        Raises:
            TryAgain: it does not lead.
        """
        return ((TERM, str(self.term())),) if self.term is not None else ()

    def channel(self) -> grpc.aio.Channel:
        """Make a channel that reaches this node and nobody else."""
        credentials = grpc.ssl_channel_credentials(self.node_certificate, self.key, self.certificate)
        options = [*_OPTIONS, ("grpc.ssl_target_name_override", node_name(self.name))]
        return grpc.aio.secure_channel(str(self.address), credentials, options=options)


async def describe(link: Link, timeout_s: float = LOST_S) -> codec.NodeInfo:
    """Ask a node what it is and has left.

    Raises:
        Unavailable: it does not answer, or one of the two does not know the other's certificate.
    """
    async with link.channel() as channel:
        try:
            return codec.node_from(await DataServerStub(channel).Describe(pb.DescribeRequest(), timeout=timeout_s))
        except grpc.aio.AioRpcError as error:
            raise Unavailable(f"node {link.name} at {link.address} cannot be reached: {reason_of(error)}") from None


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """Say in a few words what gRPC says in many."""
    details = error.details() or ""
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return "its certificate is not the one that is known here"
    words = details.rpartition("last error: ")[2]
    return words.rpartition(": ")[2] or error.code().name.lower()
