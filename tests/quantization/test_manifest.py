import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protos.quantfleet.v1 import artifact_pb2 as pb
from quantization.blob_ref import check_location
from quantization.errors import MalformedError
from quantization.manifest import (
    MAX_MANIFEST_BYTES,
    BlobRef,
    Manifest,
    ObservedLayer,
    ReferenceSlot,
    Stage,
    TensorSpec,
)

ROOT = Path(__file__).parents[2]
GOLDEN = (ROOT / "tests/golden/manifest_v1.bin").read_bytes()

names = st.text("abcxyz0123 ./:", min_size=1, max_size=12)
locations = st.from_regex(r"\A[a-z0-9_]{1,6}(/[a-z0-9]{1,4})?\Z")
digests = st.text("0123456789abcdef", min_size=64, max_size=64)


@st.composite
def blob_refs(draw: st.DrawFn, location: str | None = "") -> BlobRef:
    dtype, bits = draw(
        st.sampled_from(
            [("bytes", 8), ("int8", 8), ("int8", 3), ("float32", 32), ("uint8", 8), ("int64", 64)]
        )
    )
    if location == "":
        dtype, bits = "bytes", 8
    shape = tuple(draw(st.lists(st.integers(0, 50), max_size=4)))
    ref = BlobRef(location or "", draw(digests), dtype, shape, bits, 8)
    return replace(ref, stored_size_bytes=8 + draw(st.integers(0, ref.decoded_size_bytes)))


@st.composite
def stages(draw: st.DrawFn, name: str) -> Stage:
    files = tuple(draw(blob_refs(place)) for place in sorted(draw(st.sets(locations, max_size=4))))
    layers = tuple(
        ObservedLayer(layer, draw(st.integers(1, 9))) for layer in sorted(draw(st.sets(names, max_size=3)))
    )
    return Stage(
        name=name,
        input=TensorSpec(draw(names), tuple(draw(st.lists(st.none() | st.integers(1, 60), max_size=4)))),
        outputs=tuple(sorted(draw(st.sets(names, min_size=1, max_size=3)))),
        skeleton=draw(blob_refs()),
        files=files,
        plain=draw(st.none() | blob_refs()),
        normalizing=draw(st.none() | blob_refs()),
        self_test=draw(st.none() | blob_refs()),
        layers=layers,
        sites=tuple(sorted(draw(st.sets(names, max_size=3)))),
    )


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    chosen = draw(st.sets(names, min_size=1, max_size=2))
    return Manifest(
        draw(digests),
        draw(names),
        draw(st.integers(0, (1 << 63) - 1)),
        tuple(draw(stages(name)) for name in sorted(chosen)),
    )


@given(manifests())
def test_reading_inverts_writing(manifest: Manifest) -> None:
    data = manifest.to_bytes()
    assert Manifest.from_bytes(data) == manifest
    assert manifest.to_bytes() == data


def test_golden_bytes_are_read_and_written_as_ever() -> None:
    script = "import make_manifest as m, sys; sys.stdout.buffer.write(m.golden_manifest().to_bytes())"
    made = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT / "tests/golden",
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
    ).stdout
    assert made == GOLDEN
    manifest = Manifest.from_bytes(GOLDEN)
    assert manifest.to_bytes() == GOLDEN
    stage = manifest.stages[0]
    assert (manifest.generation, manifest.device_class, stage.sites) == (7, "x86-vnni", ("x", "relu"))
    assert stage.layers == (ObservedLayer("conv", 8, ReferenceSlot(128, 192, 256)), ObservedLayer("bare", 4))
    assert [(ref.location, ref.bit_width) for ref in stage.files] == [
        ("channels", 32), ("conv.weight", 4), ("ranges", 8),
    ]  # fmt: skip
    assert len(manifest.blobs) == 7


def test_every_truncation_and_extension_is_refused() -> None:
    for damaged in [GOLDEN[:n] for n in range(len(GOLDEN))] + [GOLDEN + b"\0", GOLDEN + GOLDEN]:
        with pytest.raises(MalformedError):
            Manifest.from_bytes(damaged)


def is_manifest_or_refused(data: bytes) -> None:
    try:
        manifest = Manifest.from_bytes(data)
    except MalformedError:
        return
    assert manifest.to_bytes() == data


@given(st.binary(max_size=200))
@example(b"\x08\x01\x12\x20" + bytes(32) + b"\x1a\x01x\x2a\x00")
def test_any_bytes_are_a_manifest_or_refused(data: bytes) -> None:
    is_manifest_or_refused(data)


@given(st.integers(0, len(GOLDEN) - 1), st.integers(0, 255), st.binary(max_size=3))
def test_any_change_of_a_manifest_is_a_manifest_or_refused(place: int, value: int, more: bytes) -> None:
    is_manifest_or_refused(GOLDEN[:place] + bytes([value]) + more + GOLDEN[place + 1 :])


Edit = Callable[[Any], None]


def edited(edit: Edit) -> bytes:
    message = pb.Manifest.FromString(GOLDEN)
    edit(message)
    return message.SerializeToString(deterministic=True)


def first(message: Any) -> Any:
    return message.stages[0]


EDITS: list[tuple[str, Edit]] = [
    ("manifest format 2, this version reads 1; update", lambda m: setattr(m, "format_version", 2)),
    ("manifest format 0", lambda m: m.ClearField("format_version")),
    ("digest", lambda m: setattr(m, "model_digest", b"short")),
    ("device class", lambda m: setattr(m, "device_class", "")),
    ("generation", lambda m: setattr(m, "generation", 1 << 63)),
    ("0 stages", lambda m: m.ClearField("stages")),
    ("same name", lambda m: m.stages.append(m.stages[0])),
    ("17 stages", lambda m: m.stages.extend([m.stages[0]] * 16)),
    ("input", lambda m: first(m).input.ClearField("data_type")),
    ("outputs", lambda m: first(m).ClearField("outputs")),
    ("outputs", lambda m: first(m).outputs.append("logits")),
    ("unknown element type 0", lambda m: first(m).ClearField("skeleton")),
    ("not a skeleton", lambda m: setattr(first(m).plain, "location", "plain")),
    ("unknown element type 77", lambda m: setattr(first(m).files[0], "data_type", 77)),
    ("not a safe name", lambda m: setattr(first(m).files[0], "location", "../channels")),
    ("without a location", lambda m: setattr(first(m).files[0], "location", "")),
    ("twice", lambda m: setattr(first(m).files[1], "location", "channels")),
    ("not in order", lambda m: setattr(first(m).files[0], "location", "zebra")),
    ("shape", lambda m: first(m).files[0].shape.extend([1] * 9)),
    ("at most", lambda m: first(m).files[0].shape.append(1 << 30)),
    ("at most", lambda m: first(m).files[0].shape.extend([(1 << 32) - 1] * 7)),
    ("bit-width 4 of float32", lambda m: setattr(first(m).files[0], "bit_width", 4)),
    ("bit-width 1 of int8", lambda m: setattr(first(m).files[1], "bit_width", 1)),
    ("bytes to store", lambda m: setattr(first(m).files[0], "stored_size_bytes", 7)),
    ("bytes to store", lambda m: setattr(first(m).files[0], "stored_size_bytes", 1 << 60)),
    ("outside its file", lambda m: setattr(first(m).layers[0].reference, "count_offset_bytes", 257)),
    ("outside its file", lambda m: setattr(first(m).layers[0].reference, "std_offset_bytes", (1 << 64) - 1)),
    ("outside its file", lambda m: first(m).ClearField("reference_files")),
    ("0 channels", lambda m: first(m).layers[1].ClearField("channels")),
    ("observed twice", lambda m: setattr(first(m).layers[1], "name", "conv")),
    ("observed twice", lambda m: first(m).sites.append("relu")),
    ("layer name", lambda m: setattr(first(m).layers[1], "name", "new\nline")),
    ("tensor name", lambda m: first(m).sites.append("s" * 257)),
    ("canonical", lambda m: setattr(first(m).files[0], "bit_width", 32)),
]  # fmt: skip


@pytest.mark.parametrize(("message", "edit"), EDITS, ids=[f"{i}-{m}" for i, (m, _) in enumerate(EDITS)])
def test_what_the_format_page_says_is_refused(message: str, edit: Edit) -> None:
    with pytest.raises(MalformedError, match=message):
        Manifest.from_bytes(edited(edit))


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(MalformedError, match="unknown fields"):
        Manifest.from_bytes(GOLDEN + b"\xf8\x07\x01")


def test_artifacts_whose_blobs_are_too_large_together_are_refused() -> None:
    def enlarge(message: Any) -> None:
        for ref in first(message).files:
            ref.data_type, ref.bit_width = pb.DATA_TYPE_BYTES, 0
            ref.shape[:] = [256 << 20]
        first(message).plain.shape[:] = [256 << 20]
        first(message).normalizing.shape[:] = [256 << 20]

    with pytest.raises(MalformedError, match=r"artifact of .* at most"):
        Manifest.from_bytes(edited(enlarge))


def test_manifests_beyond_the_limit_are_refused_unread() -> None:
    with pytest.raises(MalformedError, match="at most"):
        Manifest.from_bytes(bytes(MAX_MANIFEST_BYTES + 1))


@pytest.mark.parametrize(
    "location",
    [
        "",
        "/etc/passwd",
        "..",
        "a/../b",
        "a/..",
        "./a",
        "a//b",
        "a/",
        "a\\b",
        "a\0b",
        "a\nb",
        "a b",
        "-a",
        "é",
        "x" * 257,
    ],
)
def test_locations_that_could_leave_a_folder_are_refused(location: str) -> None:
    with pytest.raises(MalformedError, match="not a safe name"):
        check_location(location)


@pytest.mark.parametrize(
    "location", ["conv1.weight", "onnx::MatMul_12", "a/b/c:0", "w", "_w", "layer-1+bn@2"]
)
def test_usual_tensor_names_are_locations(location: str) -> None:
    assert check_location(location) == location


def test_generated_code_is_what_the_schema_generates(tmp_path: Path) -> None:
    source = "protos/quantfleet/v1/artifact.proto"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I."]
    command += [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", source]
    subprocess.run(command, cwd=ROOT, check=True)
    for name in ("artifact_pb2.py", "artifact_pb2.pyi"):
        generated = tmp_path / "protos/quantfleet/v1" / name
        assert generated.read_bytes() == (ROOT / "protos/quantfleet/v1" / name).read_bytes()
