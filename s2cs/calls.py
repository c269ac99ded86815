"""Count the calls of the control channel, whatever becomes of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from s2cs.metrics import Metrics
from scistream.wire import grpc

_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


class CallCounter(grpc.aio.ServerInterceptor):
    """Stand before all other interceptors, and tell the metrics how each call ended."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """Wrap a method's handler; a method that does not exist has none and no name to count it under."""
        handler = await continuation(details)
        if handler is None:
            return None
        method = details.method.rpartition("/")[2]
        if handler.unary_unary:
            counted = self._unary(handler.unary_unary, method)
            return grpc.unary_unary_rpc_method_handler(
                counted, handler.request_deserializer, handler.response_serializer
            )
        if handler.unary_stream:
            streamed = self._stream(handler.unary_stream, method)
            return grpc.unary_stream_rpc_method_handler(
                streamed, handler.request_deserializer, handler.response_serializer
            )
        streamed = self._stream(handler.stream_stream, method)
        return grpc.stream_stream_rpc_method_handler(
            streamed, handler.request_deserializer, handler.response_serializer
        )

    def _unary(self, inner: Any, method: str) -> Any:
        async def counted(request: Any, context: Any) -> Any:
            begin = time.monotonic()
            code = "CANCELLED"
            try:
                answer = await inner(request, context)
                code = "OK"
                return answer
            except asyncio.CancelledError:
                raise
            except BaseException:
                code = _code(context)
                raise
            finally:
                self._metrics.called(method, code, time.monotonic() - begin)

        return counted

    def _stream(self, inner: Any, method: str) -> Any:
        async def counted(request: Any, context: Any) -> AsyncIterator[Any]:
            code = "CANCELLED"  # as most streams end: their reader goes
            try:
                async for item in inner(request, context):
                    yield item
                code = "OK"
            except (asyncio.CancelledError, GeneratorExit):
                raise
            except BaseException:
                code = _code(context)
                raise
            finally:
                self._metrics.called(method, code)

        return counted


def _code(context: Any) -> str:
    code = context.code()
    number = code.value[0] if isinstance(code, grpc.StatusCode) else code
    return _CODES.get(number, "UNKNOWN")
