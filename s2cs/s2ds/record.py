"""What a tunnel's directory tells a later server: who it is for, its ports and its key. The rest is in /proc."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from s2cs.s2ds.confinement import Confinement
from s2cs.s2ds.contract import Bridge, PreSharedKey, TrustedPeers, TunnelSpec
from s2cs.s2ds.files import make, write
from s2cs.s2ds.generations import entrust
from scistream.errors import InvalidArgument, ScistreamError
from scistream.vocabulary import Rate, Role, Transport, Uid
from scistream.x509 import PrivateKey

_RECORD, _KEY = "tunnel.json", "key.pem"


@dataclass(frozen=True, slots=True)
class Record:
    """What does not change in a tunnel's life."""

    spec: TunnelSpec
    backend: str
    ports: tuple[int, ...]
    key: PrivateKey
    wan_port: int = 0  # that the producer's side is reached by, behind the router; 0: by its own ports

    def check(self, bridge: Bridge) -> None:
        """See that a bridge is for this tunnel.

        Raises:
            InvalidArgument: it has no target, a target that is a name, or credentials of another session, side or key;
                or it is of UDP and has some, or nobody to take datagrams from.
        """
        spec = self.spec
        if not bridge.targets:
            raise InvalidArgument(f"tunnel {spec.id} was given no target; name at least one HOST:PORT")
        for target in bridge.targets:
            if target.ip is None:
                raise InvalidArgument(f"target {target} is a name; resolve it to an IP address first")
        if isinstance(bridge.credentials, TrustedPeers) is not (spec.protocol is Transport.UDP):
            raise InvalidArgument(
                f"tunnel {spec.id} is of {spec.protocol}; give it credentials if that is tcp, and none if it is udp"
            )
        if isinstance(bridge.credentials, TrustedPeers):
            if spec.role is Role.PROD and not bridge.credentials.addresses:
                raise InvalidArgument(f"tunnel {spec.id} was given no address of the other gateway; name at least one")
        elif not isinstance(bridge.credentials, PreSharedKey):
            bridge.credentials.check(spec.uid, spec.role, self.key.key.public_key(), datetime.now(UTC))

    def save(self, directory: Path, confinement: Confinement) -> None:
        """Write it down; the directory is made.

        Raises:
            ResourceExhausted: there is no room.
        """
        spec = self.spec
        body = {
            "id": spec.id,
            "uid": spec.uid,
            "role": spec.role,
            "num_conn": spec.num_conn,
            "rate": spec.rate.bytes_per_s,
            "protocol": spec.protocol,
            "backend": self.backend,
            "ports": self.ports,
            "wan_port": self.wan_port,
        }
        make(directory)
        entrust(directory, confinement)
        write(directory / _KEY, self.key.pem)
        write(directory / _RECORD, json.dumps(body).encode())

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read it again.

        Raises:
            InvalidArgument: it is not there, or not whole.
        """
        try:
            body = json.loads((directory / _RECORD).read_text())
            rate, protocol = Rate(body["rate"]), Transport.parse(body.get("protocol", ""))
            spec = TunnelSpec(
                body["id"], Uid(body["uid"]), Role(body["role"]), body["num_conn"], body["backend"], rate, protocol
            )
            key = PrivateKey.from_pem((directory / _KEY).read_bytes())
            return cls(spec, body["backend"], tuple(map(int, body["ports"])), key, int(body["wan_port"]))
        except (OSError, ValueError, KeyError, TypeError, ScistreamError) as error:
            raise InvalidArgument(f"{directory} holds no tunnel that could be taken up: {error}") from None
