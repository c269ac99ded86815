"""What a gateway node answers: each call decoded, done once however often it is sent, and encoded."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

from google.protobuf.message import DecodeError

from s2cs.s2ds.contract import Bridge, TunnelState
from s2cs.s2ds.local import LocalDataServer
from s2cs.s2ds.remote import codec
from s2cs.s2ds.remote import s2ds_pb2 as pb
from s2cs.s2ds.remote.s2ds_pb2_grpc import DataServerServicer
from s2cs.s2ds.remote.terms import TERM, Terms
from scistream.errors import AlreadyExists, FailedPrecondition, InvalidArgument, PermissionDenied, ScistreamError
from scistream.vocabulary import printable
from scistream.wire import OWN_WORDS, grpc, status_of

log = logging.getLogger(__name__)

SIGN_OF_LIFE_S = 1.0
_ORDERS = ("ReqListeners", "StartLstn", "UpdateTargets", "REL", "GiveUp")  # what changes something
_REMEMBERED = 4096  # calls whose answers could still be asked for again


class Service(DataServerServicer):
    """Serve a node's data server. What was begun goes on when the connection of its caller breaks."""

    def __init__(self, name: str, server: LocalDataServer) -> None:
        self._name = name
        self._server = server
        self._calls: OrderedDict[str, asyncio.Task[Any]] = OrderedDict()
        self._starts: dict[str, asyncio.Task[None]] = {}  # that are under way, by tunnel

    async def ReqListeners(self, request: pb.Reserve, context: Any) -> pb.Reservation:
        """Reserve."""
        reservation: pb.Reservation = await self._once(request.call, lambda: self._reserve(request))
        return reservation

    async def StartLstn(self, request: pb.Lead, context: Any) -> pb.Done:
        """Start."""
        bridge = codec.bridge_from(request)
        await self._once(request.call, lambda: self._start(request.id, bridge, request.call.again))
        return pb.Done()

    async def UpdateTargets(self, request: pb.Lead, context: Any) -> pb.Done:
        """Update."""
        bridge = codec.bridge_from(request)
        await self._once(request.call, lambda: self._server.update(request.id, bridge))
        return pb.Done()

    async def REL(self, request: pb.Stop, context: Any) -> pb.Stopped:
        """Stop."""
        stopped: pb.Stopped = await self._once(request.call, lambda: self._stop(request))
        return stopped

    async def GiveUp(self, request: pb.Call, context: Any) -> pb.Done:
        """End what is under way for a call, or what would be if the call came after this."""
        if (task := self._calls.get(request.id)) is None:
            task = self._calls[request.id] = asyncio.create_task(asyncio.sleep(0))
        task.cancel()
        await asyncio.wait([task])
        return pb.Done()

    async def List(self, request: pb.Tunnels, context: Any) -> pb.TunnelList:
        """List."""
        return pb.TunnelList(tunnels=map(codec.tunnel_to, await self._server.list(*request.ids)))

    async def Logs(self, request: pb.LogsRequest, context: Any) -> pb.Printed:
        """What was printed."""
        printed = await self._server.logs(request.id, request.lines)
        return pb.Printed(count=printed.count, lines=printed.lines)

    async def Verify(self, request: pb.VerifyRequest, context: Any) -> pb.Legs:
        """Each leg, tried."""
        bridge = codec.bridge_from(request.lead)
        found = await self._server.verify(request.lead.id, bridge, request.passive)
        return pb.Legs(legs=map(codec.leg_check_to, found))

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.Node:
        """What this node is and has left."""
        return self._node

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.News]:
        """Events as they happen, and a sign of life first and now and then."""
        events = self._server.watch()
        news = asyncio.ensure_future(anext(events))
        try:
            yield pb.News(node=self._node)
            while True:
                done, _ = await asyncio.wait([news], timeout=SIGN_OF_LIFE_S)
                if not done:
                    yield pb.News(node=self._node)
                    continue
                yield codec.event_to(news.result())
                news = asyncio.ensure_future(anext(events))
        except StopAsyncIteration:
            return
        finally:
            news.cancel()
            await asyncio.gather(news, return_exceptions=True)
            await events.aclose()

    @property
    def _node(self) -> pb.Node:
        return codec.node_to(self._name, self._server, self._server.wan_port)

    async def _once(self, call: pb.Call, begin: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Do what a call asks for if it is new, and give the answer of the first time if it is not."""
        if not call.id:
            raise InvalidArgument("the message has no call; compare the versions of S2CS and this node")
        if (task := self._calls.get(call.id)) is None:
            task = self._calls[call.id] = asyncio.create_task(begin())
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may be nobody's any more
            while len(self._calls) > _REMEMBERED and next(iter(self._calls.values())).done():
                self._calls.popitem(last=False)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise FailedPrecondition("it was given up meanwhile") from None
            raise

    async def _reserve(self, request: pb.Reserve) -> pb.Reservation:
        spec = codec.spec_from(request)
        try:
            reservation = await self._server.reserve(spec)
        except AlreadyExists:
            # It was reserved by the process before this one, and the answer was lost with that.
            if not request.call.again or (kept := self._server.reserved(spec)) is None:
                raise
            reservation = kept
        return codec.reservation_to(reservation, self._node)

    async def _start(self, id: str, bridge: Bridge, again: bool) -> None:
        if again and (before := self._starts.get(id)) is not None:
            await asyncio.wait([before])
        status = await self._server.list(id) if again else ()
        if status and status[0].state is not TunnelState.RESERVED:
            await self._server.update(id, bridge)  # started by a process before this one: to the same effect
            return
        start = self._starts[id] = asyncio.create_task(self._server.start(id, bridge))
        try:
            await start
        finally:
            if self._starts.get(id) is start:
                del self._starts[id]

    async def _stop(self, request: pb.Stop) -> pb.Stopped:
        traffic = await self._server.stop(request.id, request.cut)
        return pb.Stopped(traffic=codec.traffic_to(traffic) if traffic else None, node=self._node)


class Guard(grpc.aio.ServerInterceptor):
    """Let in whose certificate is known here, and turn errors into statuses."""

    def __init__(self, knows: Callable[[bytes], bool], terms: Terms) -> None:
        self._knows = knows
        self._terms = terms

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """Wrap a method's handler; of one that does not exist there is none."""
        handler = await continuation(details)
        if handler is None:
            return None
        if handler.unary_unary:
            guarded = self._unary(handler.unary_unary, handler.request_deserializer, details.method)
            return grpc.unary_unary_rpc_method_handler(guarded, None, handler.response_serializer)
        watched = self._stream(handler.unary_stream, handler.request_deserializer, details.method)
        return grpc.unary_stream_rpc_method_handler(watched, None, handler.response_serializer)

    def _unary(self, inner: Any, decode: Any, method: str) -> Any:
        async def guarded(request: bytes, context: Any) -> Any:
            try:
                self._admit(context, method)
                return await inner(_read(decode, request), context)
            except Exception as error:
                await _refuse(error, context, method)

        return guarded

    def _stream(self, inner: Any, decode: Any, method: str) -> Any:
        async def guarded(request: bytes, context: Any) -> AsyncIterator[Any]:
            try:
                self._admit(context, method)
                async for item in inner(_read(decode, request), context):
                    yield item
            except Exception as error:
                await _refuse(error, context, method)

        return guarded

    def _admit(self, context: Any, method: str) -> None:
        """TLS has let nobody else in already; this holds whatever a certificate may have issued."""
        pems = list(context.auth_context().get("x509_pem_cert", ()))
        if len(pems) != 1 or not self._knows(pems[0]):
            raise PermissionDenied("this certificate is not that of a gateway that this node serves")
        term = next((value for key, value in context.invocation_metadata() or () if key == TERM), "0")
        if not term.isdecimal():
            raise InvalidArgument(f"term {term} is not a number; compare the versions of S2CS and this node")
        self._terms.take(int(term), method.rpartition("/")[2] in _ORDERS)


def _read(decode: Any, request: bytes) -> Any:
    try:
        return decode(request)
    except DecodeError:
        raise InvalidArgument("the message is not of this protocol; compare the versions") from None


async def _refuse(error: Exception, context: Any, method: str) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if not isinstance(error, ScistreamError):
        log.error("%s failed", method, exc_info=error)
        error = ScistreamError("the node has an internal fault; its operator finds it in its log")
    words = printable(str(error))
    log.info("%s from %s refused: %s: %s", method, context.peer(), error.status, words)
    await context.abort(status_of(error), words, ((OWN_WORDS, error.status),))
