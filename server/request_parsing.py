"""Bytes that are no message: refused as any other bad request is, and not as a failure of the server.

Left to gRPC, such a call ends with UNKNOWN and a stack trace in the log, so that anybody who may connect could fill
the log.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from quantization.errors import MalformedError
from server.peers import Context, OnRefusal, refusals

PREFIX = "/quantfleet."
"""Of the methods that are looked after; health and reflection are gRPC's own."""

_Handler = Any  # a handler has no type that can be named at run time


class RequestParsing(aio.ServerInterceptor):
    """Parses requests, and ends calls whose bytes are none with INVALID_ARGUMENT."""

    def __init__(self, on_refusal: OnRefusal) -> None:
        """Look after all calls of a server.

        Args:
            on_refusal: Told why a call is refused.
        """
        self._on_refusal = on_refusal

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """Return the handler of a method, which is given messages alone."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(PREFIX):
            return handler
        if handler.request_streaming:
            make = grpc.stream_stream_rpc_method_handler
            answer = _of_stream(handler.stream_stream)
        elif handler.response_streaming:
            make = grpc.unary_stream_rpc_method_handler
            answer = self._of_one(handler.unary_stream)
        else:
            make = grpc.unary_unary_rpc_method_handler
            answer = self._of_one(handler.unary_unary)
        return make(answer, _guarded(handler.request_deserializer), handler.response_serializer)

    def _of_one(self, answer: Callable[[Any, Context], Awaitable[Any]]) -> Callable[[Any, Context], Any]:
        async def checked(request: object, context: Context) -> object:
            async with refusals(context, self._on_refusal):
                message = _message(request)
            return await answer(message, context)

        return checked


def _of_stream(answer: Callable[[Any, Context], Awaitable[Any]]) -> Callable[[Any, Context], Any]:
    """Return the answer to a stream of requests; one that is none is raised where the answer asks for it."""

    async def messages(requests: AsyncIterator[object]) -> AsyncIterator[object]:
        async for request in requests:
            yield _message(request)

    async def checked(requests: AsyncIterator[object], context: Context) -> object:
        return await answer(messages(requests), context)

    return checked


def _guarded(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Return a parser whose refusals are values: what it raises, gRPC would take for a failure of the server."""

    def guarded(data: bytes) -> object:
        try:
            return parse(data)
        except DecodeError as error:
            return MalformedError(f"the request cannot be read: {error}")

    return guarded


def _message(request: object) -> object:
    if isinstance(request, MalformedError):
        raise request
    return request
