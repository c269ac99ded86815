"""The data server of one gateway node, as S2CS has it: the contract over the LAN.

One stream follows the node: what happens to its tunnels, and a sign of life every second. A node that has not given
one for a few seconds is lost: what it carries may go on, and nothing can be asked of it. When it is back, its tunnels
are compared with what was last known of them, and what happened meanwhile is told as if it happened then.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from s2cs.s2ds.backends import BACKENDS
from s2cs.s2ds.contract import (
    BackendInfo,
    Bridge,
    LegCheck,
    Printed,
    Reservation,
    Traffic,
    TunnelSpec,
    TunnelState,
    TunnelStatus,
)
from s2cs.s2ds.events import Events, Watch
from s2cs.s2ds.remote import codec
from s2cs.s2ds.remote import s2ds_pb2 as pb
from s2cs.s2ds.remote.link import LOST_S, Link, reason_of
from s2cs.s2ds.remote.s2ds_pb2_grpc import DataServerStub
from s2cs.s2ds.remote.told import Told
from scistream.errors import InvalidArgument, ScistreamError, Unavailable
from scistream.vocabulary import Role
from scistream.wire import OWN_WORDS, error_from, grpc

log = logging.getLogger(__name__)

_M = TypeVar("_M")
_T = TypeVar("_T")

_AGAIN_S = 0.2  # between attempts
_ATTEMPT_S = 5.0  # for an answer, before the question is sent again
_RESERVE_S, _START_S, _STOP_S, _LIST_S = 10.0, 60.0, 120.0, 5.0


class RemoteDataServer:
    """Carry sessions on another node. See `s2cs.s2ds.contract.DataServer` for the verbs.

    All raise Unavailable while the node is lost. Nothing happens before `open`.
    """

    def __init__(self, link: Link, back: Callable[[Mapping[str, TunnelStatus]], None] = lambda found: None) -> None:
        """Make it; `back` is told all tunnels of the node whenever it is in touch, for the first time or again."""
        self.name = link.name
        self.lost = f"node {link.name} at {link.address} has not been reached yet"  # why; empty while it is in touch
        self._link = link
        self._back = back
        self._events = Events()
        self._info: codec.NodeInfo | None = None
        self._told = Told()
        self._last: dict[str, TunnelStatus] = {}  # as last listed
        self._seen = 0.0  # the last sign of life
        self._tried = asyncio.Event()  # it is in touch, or lost
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None
        self._following: asyncio.Task[None] | None = None
        self._news: Any = None  # the call that brings them
        self._ends: set[asyncio.Task[Traffic | None]] = set()

    async def open(self, *ids: str) -> None:
        """Begin to follow the node; return when it is in touch, or known to be lost.

        Args:
            ids: tunnels that it has from an earlier server.
        """
        self._told.expect(ids)
        self._seen = time.monotonic()
        self._connect()
        self._following = asyncio.create_task(self._follow())
        await self._tried.wait()

    def relink(self, link: Link) -> None:
        """Reach the same node in another way from now on, if it is another; what is under way is asked again there."""
        if link != self._link:
            self._link = link
            if self._news is not None:
                self._news.cancel()

    async def close(self) -> None:
        """End all tunnels, and whatever watches them.

        Raises:
            Unavailable: the node is lost, or could not end one.
        """
        try:
            await asyncio.gather(*(self.stop(status.id) for status in await self.list()))
        finally:
            await self.leave()

    async def leave(self) -> None:
        """Close, and leave all tunnels running."""
        tasks = [task for task in (self._following, *self._ends) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._following = None
        self._tried.set()
        self._events.end()
        await self._disconnect()

    async def reserve(self, spec: TunnelSpec) -> Reservation:
        """Bind `num_conn` listeners and make the tunnel's key, which stays there."""
        request = codec.reserve_to(spec, _call())
        message = await self._given_up_with(request.call, self._ask("ReqListeners", request, _RESERVE_S))
        self._told.expect([spec.id])
        self._info = codec.node_from(message.node)
        reservation = self._understood(codec.reservation_from, message)
        if len(reservation.listeners) != spec.num_conn:
            found = f"{len(reservation.listeners)} of {spec.num_conn} listeners"
            raise Unavailable(f"node {self.name} has reserved {found}; compare versions")
        return reservation

    async def start(self, id: str, bridge: Bridge) -> None:
        """Open the way; return when connections are served."""
        request = codec.lead_to(id, bridge, _call())
        # An S2CS before this one has begun it, and the node goes on with that.
        request.call.again = (last := self._last.get(id)) is not None and last.state is TunnelState.STARTING
        await self._given_up_with(request.call, self._ask("StartLstn", request, _START_S))
        self._told.started(id)

    async def update(self, id: str, bridge: Bridge) -> None:
        """Lead new connections elsewhere or with new credentials; running streams go on untouched."""
        request = codec.lead_to(id, bridge, _call())
        await self._given_up_with(request.call, self._ask("UpdateTargets", request, _START_S))

    async def stop(self, id: str, cut: bool = False) -> Traffic | None:
        """End the tunnel and give everything back; goes on to its end whoever stops waiting for it."""
        end = asyncio.create_task(self._stop(id, cut))
        self._ends.add(end)
        end.add_done_callback(self._ended)
        return await asyncio.shield(end)

    async def _stop(self, id: str, cut: bool) -> Traffic | None:
        message = await self._ask("REL", pb.Stop(call=_call(), id=id, cut=cut), _STOP_S)
        self._told.forget(id)
        self._last.pop(id, None)
        self._info = codec.node_from(message.node)
        return codec.traffic_from(message.traffic) if message.HasField("traffic") else None

    def _ended(self, end: asyncio.Task[Traffic | None]) -> None:
        self._ends.discard(end)
        if not end.cancelled():
            end.exception()  # whoever waits for it has it, too

    async def list(self, *ids: str) -> tuple[TunnelStatus, ...]:
        """All tunnels there are, or those there are of these ids."""
        message = await self._ask("List", pb.Tunnels(ids=ids), _LIST_S)
        found = tuple(self._understood(codec.tunnel_from, each) for each in message.tunnels)
        self._last.update((status.id, status) for status in found)
        return found

    def last(self, id: str) -> TunnelStatus:
        """Say what is known of a tunnel while the node is lost."""
        known = self._last.get(id) or TunnelStatus(id, TunnelState.LOST, "", "", ())
        return replace(known, state=TunnelState.LOST, reason=self.lost, pids=())

    async def logs(self, id: str, lines: int) -> Printed:
        """What a tunnel's proxies printed last."""
        message = await self._ask("Logs", pb.LogsRequest(id=id, lines=lines), _LIST_S)
        return Printed(message.count, tuple(message.lines))

    async def verify(self, id: str, bridge: Bridge, passive: bool = False) -> tuple[LegCheck, ...]:
        """Try each leg of a tunnel that is open."""
        lead = codec.lead_to(id, bridge, pb.Call())
        message = await self._ask("Verify", pb.VerifyRequest(lead=lead, passive=passive), _START_S, _START_S)
        return tuple(self._understood(codec.leg_check_from, each) for each in message.legs)

    def watch(self) -> Watch:
        """Follow what happens to tunnels, from this call on."""
        return self._events.watch()

    def backends(self) -> tuple[BackendInfo, ...]:
        """The backends of the node, as it last said; none can be used while it is lost."""
        if self._info is None or self.lost:
            return tuple(
                BackendInfo(name, backend.capabilities, reason=self.lost) for name, backend in BACKENDS.items()
            )
        return self._info.backends

    def most_ports(self) -> int:
        """How many ports there are for each role; none while the node is lost."""
        return 0 if self._info is None or self.lost else self._info.most_ports

    def free_ports(self, role: Role) -> int:
        """How many listeners could still be reserved for a role."""
        return 0 if self._info is None or self.lost else self._info.free_ports[role]

    # Asking

    async def _ask(self, method: str, request: Any, deadline_s: float, attempt_s: float = _ATTEMPT_S) -> Any:
        """Ask until there is an answer: what gets lost on the way is sent again, with the same call."""
        deadline = time.monotonic() + deadline_s
        why = ""
        while (left := deadline - time.monotonic()) > 0:
            if self.lost:
                raise Unavailable(self.lost)
            if self._stub is None:  # for a moment
                await asyncio.sleep(_AGAIN_S)
                continue
            try:
                timeout, marks = min(left, attempt_s), self._link.marks()
                return await getattr(self._stub, method)(request, timeout=timeout, metadata=marks)
            except grpc.aio.AioRpcError as error:
                if OWN_WORDS in dict(error.trailing_metadata() or ()):
                    raise error_from(error.code(), error.details() or "") from None
                why = reason_of(error)
            except asyncio.CancelledError:
                if _is_cancelled():
                    raise
                why = "the connection was made anew"  # which cancels what is under way on the old one
            if hasattr(request, "call"):
                request.call.again = True
            await asyncio.sleep(_AGAIN_S)
        raise Unavailable(f"node {self.name} did not answer within {deadline_s:g} s: {why}")

    def _understood(self, read: Callable[[_M], _T], message: _M) -> _T:
        try:
            return read(message)
        except (ValueError, InvalidArgument) as error:
            raise Unavailable(f"node {self.name} speaks of what is not known here: {error}; compare versions") from None

    async def _given_up_with(self, call: pb.Call, asked: Any) -> Any:
        """Wait for an answer; when nobody waits any more, let the node end what it has begun."""
        try:
            return await asked
        except asyncio.CancelledError:
            with suppress(ScistreamError):
                await self._ask("GiveUp", call, _ATTEMPT_S)
            raise

    # Following

    def _connect(self) -> None:
        self._channel = self._link.channel()
        self._stub = DataServerStub(self._channel)

    async def _disconnect(self) -> None:
        """Close the channel: it keeps its connection for as long as anything names it."""
        channel, self._channel, self._stub = self._channel, None, None
        if channel is not None:
            await channel.close()

    async def _follow(self) -> None:
        """Follow the node for ever, over each loss of it."""
        while True:
            try:
                why = await self._listen()
            except Exception as error:
                log.exception("news of node %s could not be taken", self.name)
                why = str(error)
            if not self.lost or not self._tried.is_set():
                self._lose(why)
            await self._disconnect()
            await asyncio.sleep(_AGAIN_S)
            self._connect()

    def _lose(self, why: str) -> None:
        """Note that the node has been silent for too long, if it has."""
        if time.monotonic() - self._seen < LOST_S:
            return
        self.lost = f"node {self.name} is lost ({why}); its streams may go on"
        log.warning("%s", self.lost)
        for event in self._told.lost(self.lost):
            self._events.publish(event)
        self._tried.set()

    async def _listen(self) -> str:
        """Take news until there are none any more; why."""
        self._news = watch = self._stub.Watch(pb.WatchRequest(), metadata=self._link.marks())
        compared = False
        try:
            while True:
                async with asyncio.timeout(LOST_S):
                    news = await watch.read()
                if news is grpc.aio.EOF:
                    return "it has stopped"
                if not news.id:
                    self._info = codec.node_from(news.node)
                if not compared:
                    await self._compare()
                    compared = True
                if news.id:
                    event = self._understood(codec.event_from, news)
                    self._told.note(event)
                    self._events.publish(event)
                self._seen = time.monotonic()  # what is not understood is no sign of life
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            return "it is reached in another way now"
        except TimeoutError:
            return f"it has not been heard for {LOST_S:g} s"
        except grpc.aio.AioRpcError as error:
            return reason_of(error)
        except ScistreamError as error:
            return str(error)
        finally:
            watch.cancel()
            self._news = None  # which would keep the connection

    async def _compare(self) -> None:
        """Be in touch: tell what has become of the tunnels meanwhile."""
        known = self._told.ids
        message = await self._stub.List(pb.Tunnels(), timeout=_LIST_S, metadata=self._link.marks())
        found = {each.id: self._understood(codec.tunnel_from, each) for each in message.tunnels}
        self._last = found
        gone = f"node {self.name} was started anew and does not have it"
        for event in self._told.compared(known, found, bool(self.lost), gone):
            self._events.publish(event)
        if self.lost:
            log.info("node %s is in touch, with %d tunnels", self.name, len(found))
        self.lost = ""
        self._tried.set()
        self._back(found)


def _is_cancelled() -> bool:
    """Tell a task that is to end from a call that has; a frame that named the task would keep its channel."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _call() -> pb.Call:
    return pb.Call(id=secrets.token_hex(16))
