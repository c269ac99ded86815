"""Making a session's pod, up to the moment it runs."""

from __future__ import annotations

import logging
import random
import time
from datetime import UTC, datetime, timedelta

from cryptography.x509.oid import ExtendedKeyUsageOID

from s2cs.s2ds.contract import TunnelSpec
from s2cs.s2ds.kubernetes import manifest, reading
from s2cs.s2ds.kubernetes.api import Api
from s2cs.s2ds.kubernetes.pods import Pods
from s2cs.s2ds.kubernetes.reading import Pod
from s2cs.s2ds.kubernetes.shape import Shape
from scistream.errors import ResourceExhausted, Unavailable
from scistream.x509 import node_name, pinned

log = logging.getLogger(__name__)

_ROOM_S = 5.0  # for the scheduler to find room: what was released lately is free in a few seconds
_DAYS = 825  # that a pod's certificate lasts


class Maker:
    """Make pods that S2CS can be in touch with.

    Args:
        api: where they are made.
        pods: what the cluster tells of them.
        certificate: S2CS's own (PEM), which they are to know.
    """

    def __init__(self, api: Api, pods: Pods, certificate: bytes) -> None:
        self._api = api
        self._pods = pods
        self._certificate = certificate.decode()

    async def make(self, shape: Shape, spec: TunnelSpec, name: str, deadline: float) -> Pod:
        """Make a pod with its Secret; return when it runs.

        Raises:
            PortTaken: its control port is taken; another one may not be.
            ResourceExhausted: no node has room, or no control port is left.
            FailedPrecondition: the cluster does not take it, or it cannot run as it is.
            Unavailable: the cluster does not answer, or not by the deadline (`time.monotonic`).
        """
        port = self._free_port(shape)
        certificate, key = pinned(
            node_name(name), ExtendedKeyUsageOID.SERVER_AUTH, datetime.now(UTC) + timedelta(days=_DAYS)
        )
        pem = certificate.pem.decode()
        made = await self._pods.create(manifest.pod(shape, spec, name, port, pem))
        files = shape.bundles(name, port, pem, key.pem.decode(), self._certificate)
        await self._api.ask("POST", "secrets", manifest.secret(dict(made), files))
        await self._placed(name, deadline)
        pod = await self._running(name, deadline, shape.wait_s)
        log.info("session %s: pod %s runs on node %s", spec.uid, name, reading.node(pod))
        return pod

    async def _placed(self, name: str, deadline: float) -> None:
        """Wait until the scheduler has found a node."""
        room = min(_ROOM_S, deadline - time.monotonic())

        def settled(pod: Pod | None) -> bool:
            return pod is None or bool(reading.node(pod)) or reading.port_taken(pod)

        came = await self._pods.until(name, settled, room)
        pod = self._pods.present(name)
        if reading.port_taken(pod):
            raise reading.PortTaken(
                f"control port {reading.port(pod)} is taken on each node that could take the session; "
                "try again, or widen [kubernetes] control_ports"
            )
        if not came:
            if why := reading.unplaced(pod):
                raise reading.no_room(why)
            raise Unavailable(f"the cluster's scheduler has not looked at pod {name} within {room:.0f} s; is it up?")

    async def _running(self, name: str, deadline: float, wait_s: float) -> Pod:
        """Wait until a pod runs."""

        def settled(pod: Pod | None) -> bool:
            return pod is None or reading.leaves(pod) or reading.runs(pod) or reading.fault(pod) is not None

        came = await self._pods.until(name, settled, deadline - time.monotonic())
        pod = self._pods.present(name)
        if (fault := reading.fault(pod)) is not None and not reading.runs(pod):
            raise fault
        if not came:
            where = reading.node(pod)
            raise Unavailable(f"pod {name} did not start within {wait_s:g} s; look at node {where}")
        return pod

    def _free_port(self, shape: Shape) -> int:
        """Choose a port that no pod of this gateway has; the scheduler keeps it from clashing with other pods."""
        taken = {reading.port(pod) for pod in self._pods}
        range_ = shape.control_ports
        free = [port for port in range(range_.first, range_.last + 1) if port not in taken]
        if not free:
            raise ResourceExhausted(
                f"all of [kubernetes] control_ports {range_} are in use; release sessions, or widen it"
            )
        return random.choice(free)  # noqa: S311
