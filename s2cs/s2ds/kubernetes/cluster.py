"""The data servers of a Kubernetes cluster as one: a pod for each session, on the node that the scheduler chooses.

In the pod runs `s2cs s2ds`, for this one tunnel, and S2CS speaks the contract with it over mutual TLS, as with any
further gateway node. The cluster keeps the pod, and what is known of it outlives S2CS there: the next one lists the
pods of its gateway and takes them up.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

from s2cs.s2ds.backends import BACKENDS
from s2cs.s2ds.contract import (
    BackendInfo,
    Change,
    Printed,
    Reservation,
    Traffic,
    TunnelEvent,
    TunnelSpec,
    TunnelState,
    TunnelStatus,
)
from s2cs.s2ds.events import Watch
from s2cs.s2ds.homes import Home
from s2cs.s2ds.kubernetes import manifest, reading
from s2cs.s2ds.kubernetes.api import Api
from s2cs.s2ds.kubernetes.making import Maker
from s2cs.s2ds.kubernetes.pods import Pods
from s2cs.s2ds.kubernetes.reading import Pod
from s2cs.s2ds.kubernetes.shape import Shape
from s2cs.s2ds.remote.client import RemoteDataServer
from s2cs.s2ds.remote.link import Link
from s2cs.s2ds.spread import Spread
from scistream.errors import (
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    ScistreamError,
    Unavailable,
)
from scistream.vocabulary import Endpoint, Role, shown

log = logging.getLogger(__name__)

_TRIES = 3  # of control ports
_GONE_S = 15.0  # for a pod to go that cannot be asked to end its tunnel
_LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Identity:
    """With which S2CS proves itself to pods, in PEM."""

    certificate: bytes
    key: bytes


@dataclass(slots=True)
class _Member:
    """A pod that carries a tunnel, or carried one."""

    id: str
    pod: str
    node: str
    server: RemoteDataServer
    telling: asyncio.Task[None]
    ports: int = 0  # that it holds
    gone: str = ""  # why there is nothing any more
    stopping: bool = False


class Cluster(Spread):
    """Carry sessions in pods. See `s2cs.s2ds.contract.DataServer` for the verbs."""

    def __init__(
        self,
        api: Api,
        shape: Shape,
        identity: Identity,
        homes: Callable[[], Iterable[Home]],
    ) -> None:
        """Make it; nothing happens before `open`.

        Args:
            api: the cluster's.
            shape: how pods are to be.
            identity: S2CS's own.
            homes: tells which tunnels belong to sessions that run, by what outlives this process.
        """
        super().__init__()
        self._api = api
        self._shape = shape
        self._identity = identity
        self._homes = homes
        self._pods = Pods(api, manifest.selector(shape), self._changed)
        self._maker = Maker(api, self._pods, identity.certificate)
        self._members: dict[str, _Member] = {}  # by tunnel
        self._making: dict[str, str] = {}  # tunnels that are being reserved, by pod
        self._doomed: set[str] = set()  # pods that are to be deleted, until they are
        self._backends: tuple[BackendInfo, ...] = tuple(
            BackendInfo(name, backend.capabilities) for name, backend in BACKENDS.items()
        )
        self._opened = False

    async def open(self) -> None:
        """Take up the pods that an earlier server left; return when each is in touch, or known to be lost.

        Raises:
            FailedPrecondition, Unavailable: the cluster cannot be asked.
        """
        self._api.open()
        try:
            await self._pods.open()
        except BaseException:
            await self._api.close()
            raise
        known = {home.id for home in self._homes()}
        await asyncio.gather(*(self._take_up(pod, known) for pod in self._pods))
        for member in self._members.values():  # what happened meanwhile was told to nobody
            member.gone = member.gone or _gone(member.pod, self._pods.get(member.pod))
        self._opened = True

    def configure(self, shape: Shape) -> None:
        """Take other settings for the pods to come; they stay those of the same gateway."""
        self._shape = replace(shape, gateway=self._shape.gateway)

    async def close(self) -> None:
        """End all tunnels, and whatever watches them.

        Raises:
            Unavailable: one could not be ended.
        """
        ends = await asyncio.gather(*(self.stop(id) for id in list(self._members)), return_exceptions=True)
        await self.leave()
        for fault in ends:
            if isinstance(fault, BaseException):
                raise fault

    async def leave(self) -> None:
        """Close, and leave all tunnels running."""
        self._background.cancel()
        await self._background.ended()
        await self._pods.close()
        await asyncio.gather(*(self._forget(member) for member in list(self._members.values())))
        await self._api.close()
        self._events.end()

    async def reserve(self, spec: TunnelSpec) -> Reservation:
        """Make a pod, and let it bind `num_conn` listeners and make the tunnel's key on the node that it comes to."""
        if spec.id in self._members or spec.id in self._making.values():
            raise AlreadyExists(f"tunnel {spec.id} exists; stop it first, or use another id")
        deadline = time.monotonic() + self._shape.wait_s
        for number in range(1, _TRIES + 1):
            name = f"s2ds-{secrets.token_hex(8)}"
            self._making[name] = spec.id
            try:
                member = await self._made(spec, name, deadline)
                reservation = await member.server.reserve(spec)
            except BaseException as error:
                unmade = self._background.begin(self._unmake(name, spec.id))
                if not isinstance(error, reading.PortTaken) or number == _TRIES:
                    raise
                log.warning("%s; another port is tried", error)
                await unmade
                continue
            del self._making[name]
            self._backends = member.server.backends()
            member.ports = len(reservation.listeners)
            return replace(reservation, node=member.node)
        raise AssertionError("the last try raises")

    async def stop(self, id: str, cut: bool = False) -> Traffic | None:
        """End the tunnel and its pod; say what it has moved. Unknown ids are no error.

        Raises:
            Unavailable: neither the pod nor its node can be reached; its end is ordered, and comes when that is back.
        """
        if (member := self._members.get(id)) is None:
            return None
        member.stopping = True
        traffic = None
        if not member.gone:
            try:
                traffic = await member.server.stop(id, cut)
            except Unavailable as error:
                await self._delete(member.pod)
                if not await self._pods.until(member.pod, lambda pod: pod is None, _GONE_S):
                    raise Unavailable(f"pod {member.pod} is to be deleted when its node is back: {error}") from None
        self._doomed.add(member.pod)  # so that no news of it makes another member
        self._members.pop(id, None)
        await self._forget(member)
        await self._delete(member.pod)
        return traffic

    async def list(self, *ids: str) -> tuple[TunnelStatus, ...]:
        """All tunnels there are, or those there are of these ids; of a lost one, as it was last known."""
        known = [self._members[id] for id in ids or tuple(self._members) if id in self._members]
        wanted = [member for member in known if member.pod not in self._making]
        return tuple(await asyncio.gather(*map(self._status, wanted)))

    async def _status(self, member: _Member) -> TunnelStatus:
        if not member.gone:
            try:
                if found := await member.server.list(member.id):
                    return found[0]
                member.gone = f"pod {member.pod} has lost its tunnel"
            except ScistreamError:
                return member.server.last(member.id)
        return TunnelStatus(member.id, TunnelState.FATAL, "", "", (), reason=member.gone)

    async def logs(self, id: str, lines: int) -> Printed:
        """What a tunnel's proxies printed last; nothing of one that has ended, whose pod is gone."""
        member = self._members.get(id)
        if member is None or member.gone:
            return Printed()
        with suppress(Unavailable):
            return await member.server.logs(id, lines)
        return Printed()

    def backends(self) -> tuple[BackendInfo, ...]:
        """The backends of the image, as the last pod found them; before there was one, all that may be there."""
        return self._backends

    def most_ports(self) -> int:
        """How many ports there are for each role, on the nodes that are named, or else on those in use."""
        used = {member.node for member in self._members.values()}
        return len(self._shape.ports) * max(1, len(self._shape.places or used))

    def free_ports(self, role: Role) -> int:
        """How many listeners could still be reserved, as far as it is known here: the scheduler finds the node."""
        return max(0, self.most_ports() - sum(member.ports for member in self._members.values()))

    # Making a pod

    async def _made(self, spec: TunnelSpec, name: str, deadline: float) -> _Member:
        """Make a pod, and be in touch with it."""
        pod = await self._maker.make(self._shape, spec, name, deadline)
        member = self._member(pod)
        await member.server.open()
        while member.server.lost:
            if time.monotonic() > deadline:
                port = reading.port(pod)
                raise Unavailable(f"{member.server.lost}; may S2CS reach port {port} of the cluster's nodes?")
            if (fault := reading.fault(self._pods.present(name))) is not None:
                raise fault
            await asyncio.sleep(_LOOK_S)
        return member

    def _member(self, pod: Pod) -> _Member:
        """Make the end of a connection to a pod, and pass on what it tells."""
        name, id = reading.name(pod), reading.tunnel(pod)
        place = self._shape.place(reading.node(pod))
        address = Endpoint(place.lan if place else reading.host(pod), reading.port(pod))
        own = self._identity
        link = Link(name, address, reading.certificate(pod), own.certificate, own.key)
        server = RemoteDataServer(link)
        telling = self._background.begin(self._pass_on(server.watch()))
        member = self._members[id] = _Member(id, name, reading.node(pod), server, telling)
        return member

    async def _unmake(self, name: str, id: str) -> None:
        """Give back what a reservation that failed has made."""
        member = self._members.get(id)
        if member is not None and member.pod == name:
            del self._members[id]
            await self._forget(member)
        await self._delete(name)
        self._making.pop(name, None)

    # What is and what should be

    async def _take_up(self, pod: Pod, known: set[str]) -> None:
        """Be in touch with a pod of an earlier server; delete one that no session knows, or that never came to run."""
        id = reading.tunnel(pod)
        if reading.leaves(pod) or id in self._members:
            return
        if id not in known:
            log.warning("pod %s belongs to no session and is deleted", reading.name(pod))
            await self._delete(reading.name(pod))
            return
        try:
            member = self._member(pod)
        except ScistreamError as error:  # it is on no node
            log.warning("pod %s was never used and is deleted: %s", reading.name(pod), error)
            await self._delete(reading.name(pod))
            return
        member.gone = reading.over(pod)
        if not member.gone:
            await member.server.open(id)
            member.ports = len(member.server.last(id).listeners)

    def _changed(self, name: str, pod: Pod | None) -> None:
        """Take what the cluster tells of a pod."""
        if name in self._doomed:
            if pod is None:
                self._doomed.discard(name)
            elif not reading.leaves(pod):
                self._background.begin(self._delete(name))
            return
        if not self._opened or name in self._making:
            return
        member = next((each for each in self._members.values() if each.pod == name), None)
        if member is None:
            if pod is not None and not reading.leaves(pod):
                self._background.begin(self._take_up(pod, {home.id for home in self._homes()}))
            return
        gone = _gone(name, pod)
        if gone and not member.gone:
            member.gone = gone
            if not member.stopping:
                log.warning("%s", gone)
                self._events.publish(TunnelEvent(member.id, Change.FATAL, gone))

    async def _delete(self, name: str) -> None:
        """Order a pod's end; what cannot be ordered now is, when the cluster is listed again."""
        self._doomed.add(name)
        try:
            if not await self._pods.delete(name):
                self._doomed.discard(name)
        except ScistreamError as error:
            log.warning("pod %s is deleted later: %s", name, error)

    def _at(self, id: str) -> RemoteDataServer:
        member = self._members.get(id)
        if member is None:
            raise NotFound(f"there is no tunnel {shown(id)}; reserve it first")
        if member.gone:
            raise FailedPrecondition(f"tunnel {shown(id)} is no more: {member.gone}")
        return member.server

    async def _forget(self, member: _Member) -> None:
        member.telling.cancel()
        await member.server.leave()

    async def _pass_on(self, news: Watch) -> None:
        async for event in news:
            self._events.publish(event)


def _gone(name: str, pod: Pod | None) -> str:
    """Say why a pod carries nothing any more; empty while it may."""
    return f"its pod {name} was deleted from the cluster" if pod is None else reading.over(pod)
