import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import schema
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message_factory import GetMessageClass

FILES = schema.parsed_sources()
RULES = "nothing that is in the schema may change or go; PYTHONPATH=.:tests/support python "
RULES += "tests/golden/make_schema.py adds what is new"


def golden_facts() -> set[str]:
    return set(schema.FACTS.read_text().splitlines())


def test_nothing_in_the_schema_has_changed_or_gone() -> None:
    assert schema.breaking_changes(golden_facts(), schema.facts(FILES)) == [], RULES


def test_what_is_new_in_the_schema_is_recorded() -> None:
    assert sorted(schema.facts(FILES) - golden_facts()) == [], RULES


def copy_of_update() -> FileDescriptorProto:
    copy = FileDescriptorProto()
    copy.CopyFrom(next(file for file in FILES if file.name.endswith("update.proto")))
    return copy


def retype(file: FileDescriptorProto) -> None:
    file.message_type[0].field[2].type = FieldDescriptorProto.TYPE_SINT64


def renumber(file: FileDescriptorProto) -> None:
    file.message_type[0].field[2].number = 9


def repeat(file: FileDescriptorProto) -> None:
    file.message_type[0].field[2].label = FieldDescriptorProto.LABEL_REPEATED


def remove_field(file: FileDescriptorProto) -> None:
    del file.message_type[0].field[2]


def remove_value(file: FileDescriptorProto) -> None:
    del file.enum_type[0].value[1]


def stop_streaming(file: FileDescriptorProto) -> None:
    file.service[0].method[1].server_streaming = False


def leave_choice(file: FileDescriptorProto) -> None:
    request = next(m for m in file.message_type if m.name == "FetchBlobsRequest")
    request.field[0].ClearField("oneof_index")


@pytest.mark.parametrize(
    "change", [retype, renumber, repeat, remove_field, remove_value, stop_streaming, leave_choice]
)
def test_a_breaking_change_is_noticed(change: Callable[[FileDescriptorProto], None]) -> None:
    changed = copy_of_update()
    change(changed)
    broken = schema.breaking_changes(schema.facts([copy_of_update()]), schema.facts([changed]))
    assert len(broken) == 1


def test_a_new_field_breaks_nothing() -> None:
    changed = copy_of_update()
    changed.message_type[0].field.add(name="new", number=99, type=FieldDescriptorProto.TYPE_BOOL)
    assert schema.breaking_changes(schema.facts([copy_of_update()]), schema.facts([changed])) == []


def test_golden_messages_are_read_and_written_as_ever() -> None:
    lines = schema.EXAMPLES.read_text().splitlines()
    assert lines == schema.example_lines(), RULES
    kinds = {kind.full_name: GetMessageClass(kind) for kind in schema.message_types()}
    for line in lines:
        name, _, data = line.partition(" ")
        message = kinds[name].FromString(bytes.fromhex(data))
        assert message.SerializeToString(deterministic=True).hex() == data
        assert message in schema.full_examples(message.DESCRIPTOR)


@pytest.mark.parametrize("kind", schema.message_types(), ids=lambda kind: str(kind.name))
def test_examples_leave_no_field_out(kind: Descriptor) -> None:
    set_fields = {field.number for one in schema.full_examples(kind) for field, _ in one.ListFields()}
    assert set_fields == {field.number for field in kind.fields}


# Numbers that descriptor.proto gives to what can bear a comment.
MESSAGE, ENUM, SERVICE, FIELD, VALUE, METHOD = 4, 5, 6, 2, 2, 2


@pytest.mark.parametrize("file", FILES, ids=lambda file: Path(file.name).stem)
def test_everything_but_the_zero_of_enumerations_is_explained(file: FileDescriptorProto) -> None:
    commented = {
        tuple(place.path) for place in file.source_code_info.location if place.leading_comments.strip()
    }
    bare = []
    for i, message in enumerate(file.message_type):
        bare += [message.name] * ((MESSAGE, i) not in commented)
        bare += [
            f"{message.name}.{field.name}"
            for k, field in enumerate(message.field)
            if (MESSAGE, i, FIELD, k) not in commented
        ]
    for i, service in enumerate(file.service):
        bare += [m.name for k, m in enumerate(service.method) if (SERVICE, i, METHOD, k) not in commented]
    for i, enum in enumerate(file.enum_type):
        bare += [enum.name] * ((ENUM, i) not in commented)
    assert bare == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: Path(file.name).stem)
def test_the_zero_of_every_enumeration_is_unspecified(file: FileDescriptorProto) -> None:
    zeros = [enum.value[0] for enum in file.enum_type]
    assert all(zero.number == 0 and zero.name.endswith("_UNSPECIFIED") for zero in zeros)


def test_every_method_has_messages_of_its_own() -> None:
    used = [
        kind
        for file in FILES
        for service in file.service
        for method in service.method
        for kind in (method.input_type, method.output_type)
    ]
    assert len(used) >= 2 * 17
    assert len(set(used)) == len(used)


def test_generated_code_is_what_the_schema_generates(tmp_path: Path) -> None:
    sources = [name for name in schema.SOURCES if "artifact" not in name]  # it has no services
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I."]
    command += [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python", "mypy_grpc")]
    plugin = Path(sys.executable).with_name("protoc-gen-mypy_grpc")
    subprocess.run(
        [*command, f"--plugin=protoc-gen-mypy_grpc={plugin}", *sources],
        cwd=schema.ROOT,
        check=True,
        capture_output=True,
    )
    made = sorted(path.name for path in (tmp_path / "protos/quantfleet/v1").iterdir())
    assert len(made) == 4 * len(sources)
    for name in made:
        generated = tmp_path / "protos/quantfleet/v1" / name
        assert generated.read_bytes() == (schema.ROOT / "protos/quantfleet/v1" / name).read_bytes(), name
