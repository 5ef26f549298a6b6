"""The wire schema as facts that must stay true, and messages that use all of it."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_tools import protoc

from protos.quantfleet.v1 import (
    admin_pb2,
    artifact_pb2,
    enrolment_pb2,
    inference_pb2,
    telemetry_pb2,
    update_pb2,
)

ROOT = Path(__file__).parents[2]
FACTS = ROOT / "tests/golden/schema_v1.txt"
EXAMPLES = ROOT / "tests/golden/messages_v1.txt"
MODULES = (admin_pb2, artifact_pb2, enrolment_pb2, inference_pb2, telemetry_pb2, update_pb2)
SOURCES = tuple(str(module.DESCRIPTOR.name) for module in MODULES)


def parsed_sources() -> list[FileDescriptorProto]:
    """Return the schema's files as the compiler reads them, with comments."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        arguments = ["protoc", f"-I{ROOT}", "--include_source_info", f"--descriptor_set_out={out}", *SOURCES]
        if protoc.main(arguments) != 0:
            raise RuntimeError("protoc refused the schema")
        return list(FileDescriptorSet.FromString(out.read_bytes()).file)


def facts(files: Iterable[FileDescriptorProto]) -> set[str]:
    """Return what other software relies on, one line for each field, value and method."""
    return {line for file in files for line in _facts(file)}


def breaking_changes(before: set[str], after: set[str]) -> list[str]:
    """Return the facts that are no longer true; new ones may come."""
    return sorted(before - after)


def _facts(file: FileDescriptorProto) -> Iterator[str]:
    for message in file.message_type:
        yield from _message_facts(f"{file.package}.{message.name}", message)
    for enum in file.enum_type:
        yield from _enum_facts(f"{file.package}.{enum.name}", enum)
    for service in file.service:
        yield from _service_facts(f"{file.package}.{service.name}", service)


def _message_facts(name: str, message: DescriptorProto) -> Iterator[str]:
    yield f"message {name}"
    for field in message.field:
        kind = field.type_name or FieldDescriptorProto.Type.Name(field.type)[len("TYPE_") :].lower()
        label = "repeated " if field.label == FieldDescriptorProto.LABEL_REPEATED else ""
        choice = f" in {message.oneof_decl[field.oneof_index].name}" if field.HasField("oneof_index") else ""
        yield f"field {name} {field.number} {field.name} {label}{kind}{choice}"
    for span in message.reserved_range:
        yield f"reserved {name} {span.start} to {span.end - 1}"


def _enum_facts(name: str, enum: EnumDescriptorProto) -> Iterator[str]:
    for value in enum.value:
        yield f"value {name} {value.number} {value.name}"


def _service_facts(name: str, service: ServiceDescriptorProto) -> Iterator[str]:
    for method in service.method:
        asks = "stream " if method.client_streaming else ""
        gives = "stream " if method.server_streaming else ""
        yield f"method {name} {method.name} {asks}{method.input_type} {gives}{method.output_type}"


def message_types() -> list[Descriptor]:
    """Return all messages of the schema, by name."""
    found = [kind for module in MODULES for kind in module.DESCRIPTOR.message_types_by_name.values()]
    return sorted(found, key=lambda kind: kind.full_name)


def full_examples(kind: Descriptor) -> list[Message]:
    """Return messages with every field set, in numbers' order; one for each member of a choice."""
    choices = [field.name for oneof in kind.oneofs for field in oneof.fields]
    return [_filled(kind, name) for name in choices or [""]]


def _filled(kind: Descriptor, choice: str) -> Message:
    message: Any = GetMessageClass(kind)()
    for field in kind.fields:
        if field.containing_oneof is not None and field.name != choice:
            continue
        values: list[Any] = [_value(field, k) for k in range(2 if field.is_repeated else 1)]
        if field.is_repeated:
            getattr(message, field.name).extend(values)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(values[0])
        else:
            setattr(message, field.name, values[0])
    return message  # type: ignore[no-any-return]


def _value(field: FieldDescriptor, index: int) -> object:
    if field.message_type is not None:
        return full_examples(field.message_type)[0]
    if field.enum_type is not None:
        return field.enum_type.values[-1].number
    small = 16 * field.number + index
    values: dict[int, object] = {
        FieldDescriptor.TYPE_BYTES: bytes([small % 256]) * 32,
        FieldDescriptor.TYPE_STRING: f"{field.name}-{index}é",
        FieldDescriptor.TYPE_DOUBLE: small + 0.25,
        FieldDescriptor.TYPE_BOOL: True,
        FieldDescriptor.TYPE_UINT32: (1 << 31) + small,
        FieldDescriptor.TYPE_UINT64: (1 << 40) + small,
    }
    return values[field.type]


def example_lines() -> list[str]:
    """Return one line for each full example: the message's name and its bytes in hex."""
    return [
        f"{kind.full_name} {example.SerializeToString(deterministic=True).hex()}"
        for kind in message_types()
        for example in full_examples(kind)
    ]


def write_golden_files() -> None:
    """Add what is new to the golden files; exits if something would be taken away."""
    now = facts(parsed_sources())
    before = set(FACTS.read_text().splitlines()) if FACTS.exists() else set()
    broken = breaking_changes(before, now)
    if broken:
        sys.exit("these must stay as they are:\n" + "\n".join(broken))
    FACTS.write_text("\n".join(sorted(now)) + "\n")
    EXAMPLES.write_text("\n".join(example_lines()) + "\n")
