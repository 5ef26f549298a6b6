"""Messages of any schema with values that are likely to hurt, and calls with bytes that need be none."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

Hints = Mapping[str, Sequence[Any]]
"""By the name of a field: values that mean something to the service."""

MOST_DEPTH, MOST_ITEMS = 3, 3
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_TEXTS = _TEXT | st.sampled_from(["", "x" * 70_000, "../../etc/passwd", "a/b", "\0", "%s%n", "é" * 200])
_BYTES = st.binary(max_size=40) | st.sampled_from([b"", bytes(32), b"\xff" * 32, bytes(70_000)])
_FLOATS = st.floats(width=32) | st.sampled_from([float("nan"), float("inf"), -1.0, 1e30])


def _whole(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high) | st.sampled_from([low, high, 0, 1])


_F = FieldDescriptor
_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    _F.CPPTYPE_INT32: _whole(-(1 << 31), (1 << 31) - 1),
    _F.CPPTYPE_INT64: _whole(-(1 << 63), (1 << 63) - 1),
    _F.CPPTYPE_UINT32: _whole(0, (1 << 32) - 1),
    _F.CPPTYPE_UINT64: _whole(0, (1 << 64) - 1),
    _F.CPPTYPE_DOUBLE: _FLOATS,
    _F.CPPTYPE_FLOAT: _FLOATS,
    _F.CPPTYPE_BOOL: st.booleans(),
    _F.CPPTYPE_ENUM: st.integers(-1, 9),  # proto3 keeps numbers that it does not know
}


def fuzzed_message(descriptor: Descriptor, hints: Hints, depth: int = 0) -> st.SearchStrategy[Message]:
    """Return messages of a type: every field is there or not, and means something or nothing."""

    @st.composite
    def make(draw: st.DrawFn) -> Message:
        message: Message = GetMessageClass(descriptor)()
        chosen = {group.name: draw(st.sampled_from([*group.fields])).name for group in descriptor.oneofs}
        for one in descriptor.fields:
            group = one.containing_oneof
            if draw(st.integers(0, 5)) == 0 or (group is not None and chosen[group.name] != one.name):
                continue
            if one.is_repeated:
                values = draw(st.lists(_value(one, hints, depth), max_size=MOST_ITEMS))
                getattr(message, one.name).extend(values)
            elif one.message_type is not None:
                getattr(message, one.name).CopyFrom(draw(_value(one, hints, depth)))
            else:
                setattr(message, one.name, draw(_value(one, hints, depth)))
        return message

    return make()


def _value(one: FieldDescriptor, hints: Hints, depth: int) -> st.SearchStrategy[Any]:
    if one.message_type is not None:
        if depth >= MOST_DEPTH:
            return st.just(GetMessageClass(one.message_type)())
        return fuzzed_message(one.message_type, hints, depth + 1)
    anything = _SCALARS.get(one.cpp_type, _TEXTS if one.type == _F.TYPE_STRING else _BYTES)
    known = hints.get(one.name, ())
    return st.one_of(*[st.sampled_from([*known])] * 5, anything) if known else anything


@st.composite
def fuzzed_bytes(draw: st.DrawFn, method: MethodDescriptor, hints: Hints) -> bytes:
    """Return what is sent to a method: mostly a message, sometimes a damaged one, sometimes no message at all."""
    message = draw(fuzzed_message(method.input_type, hints))
    data = bytes(message.SerializeToString())
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return draw(st.binary(max_size=60))
    if kind == 1 and data:
        start = draw(st.integers(0, len(data) - 1))
        return data[:start] + draw(st.binary(max_size=6)) + data[start + draw(st.integers(0, 3)) :]
    return data


def methods_of(services: Sequence[ServiceDescriptor]) -> list[MethodDescriptor]:
    """Return all methods of some services."""
    return [method for service in services for method in service.methods]


@dataclass
class Caller:
    """Calls methods with bytes, and keeps how the calls ended.

    Attributes:
        channel: To the server.
        seconds: Longest call.
        metadata: Of every call.
        ends: How often each method ended how.
    """

    channel: grpc.Channel
    seconds: float = 30.0
    metadata: tuple[tuple[str, str], ...] = ()
    ends: Counter[tuple[str, grpc.StatusCode]] = field(default_factory=Counter)

    def call(self, method: MethodDescriptor, data: Sequence[bytes]) -> tuple[grpc.StatusCode, str]:
        """Return the status and the details with which a call ended; a stream is left after two answers."""
        path = f"/{method.containing_service.full_name}/{method.name}"
        options: dict[str, Any] = {"timeout": self.seconds, "metadata": self.metadata}
        code, details = grpc.StatusCode.OK, ""
        try:
            if method.server_streaming:
                self._stream(method, path, data, options)
            else:
                self.channel.unary_unary(path)(data[0], **options)
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
        self.ends[method.name, code] += 1
        return code, details

    def _stream(
        self, method: MethodDescriptor, path: str, data: Sequence[bytes], options: Mapping[str, Any]
    ) -> None:
        call: Any
        if method.client_streaming:
            call = self.channel.stream_stream(path)(iter(data), **options)
        else:
            call = self.channel.unary_stream(path)(data[0], **options)
        answers: Iterator[bytes] = iter(call)
        try:
            for _ in islice(answers, 2):
                pass
        finally:
            call.cancel()


def is_message(method: MethodDescriptor, data: bytes) -> bool:
    """Return whether bytes are a message of the type that a method takes."""
    try:
        GetMessageClass(method.input_type).FromString(data)
    except Exception:  # noqa: BLE001 - protobuf's errors have no common base in all its versions
        return False
    return True
