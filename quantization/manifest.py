"""What an artifact consists of: frozen values, and their deterministic bytes.

Rules, each checked when a value is made, so that a manifest that exists is a valid one:

1. Content is named by digest. Locations and names are keys, never paths, and are safe as paths all the same.
2. No two files of one graph have the same location; files are in order of location.
3. Every declared size has a bound (`docs/formats/artifact.md` lists them), and the sum of all has one.
4. `Manifest.from_bytes` accepts only what `Manifest.to_bytes` writes: unknown fields, other orders of fields
   and other formats are refused.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from google.protobuf.message import DecodeError

from protos.quantfleet.v1 import artifact_pb2 as pb
from quantization.blob import check_digest
from quantization.blob_ref import MAX_DIMENSIONS, BlobRef, check_name
from quantization.errors import MalformedError
from quantization.moments import MAX_CHANNELS

MAX_MANIFEST_BYTES = 1 << 20
MAX_ARTIFACT_BYTES = 1 << 30
"""Most that all blobs of one manifest together may decode to."""
MAX_INPUT_BYTES = 64 << 20
"""Most that one input may take; whoever tests a graph makes a few of them."""
MAX_GENERATION = (1 << 63) - 1
MAX_STAGES = 16
REFERENCE_FILE = "reference"
"""Location of the file that holds the lab's moments (layout: `ObservedLayer`)."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The tensor that a stage takes; float32.

    Attributes:
        name: Of the graph's input.
        shape: Sizes; None where the caller chooses, as for the batch.
    """

    name: str
    shape: tuple[int | None, ...]

    def __post_init__(self) -> None:
        """Refuse what no input can be."""
        check_name(self.name, "input")
        if len(self.shape) > MAX_DIMENSIONS or any(size is not None and size < 1 for size in self.shape):
            raise MalformedError(f"input {self.name}: shape {self.shape!r:.80}")
        if 4 * math.prod(size or 1 for size in self.shape) > MAX_INPUT_BYTES:
            raise MalformedError(f"input {self.name}: more than {MAX_INPUT_BYTES} bytes")


@dataclass(frozen=True, slots=True)
class ReferenceSlot:
    """Where the lab's moments of one layer lie in the file `REFERENCE_FILE`, in bytes from its start.

    Attributes:
        mean_offset_bytes: Of the means, C little-endian float64.
        std_offset_bytes: Of the standard deviations, likewise.
        count_offset_bytes: Of the number of values per channel, one little-endian int64.
    """

    mean_offset_bytes: int
    std_offset_bytes: int
    count_offset_bytes: int

    def end_bytes(self, channels: int) -> int:
        """Return how many bytes the file must at least have."""
        arrays = max(self.mean_offset_bytes, self.std_offset_bytes) + 8 * channels
        return max(arrays, self.count_offset_bytes + 8)


@dataclass(frozen=True, slots=True)
class ObservedLayer:
    """A layer whose moments devices observe.

    Attributes:
        name: As policies and statistics use it.
        channels: Output channels, C.
        reference: Where the lab's moments of it lie; None where the artifact has none.
    """

    name: str
    channels: int
    reference: ReferenceSlot | None = None

    def __post_init__(self) -> None:
        """Refuse what no layer can be."""
        check_name(self.name, "layer")
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise MalformedError(f"layer {self.name}: {self.channels} channels")


@dataclass(frozen=True, slots=True)
class Stage:
    """One graph of the model, and the graphs that observe it.

    Attributes:
        name: Unique in the artifact.
        input: The graph's one input.
        outputs: Names of the model's outputs, in order.
        skeleton: The QDQ graph, every tensor external.
        files: External files of `skeleton` and `plain`, in order of location.
        plain: The observation graph with float activations; None if the stage is not observed.
        normalizing: The observation graph that normalises as it goes; None without a lab reference.
        reference_files: Files of `normalizing` that differ from `files` or are not there; likewise in order.
        layers: Observed layers, in graph order.
        sites: Activation sites whose histograms are observed, in graph order.
        self_test: What `skeleton` gives for known inputs (`quantization.self_testing`); None where it is not tested.
    """

    name: str
    input: TensorSpec
    outputs: tuple[str, ...]
    skeleton: BlobRef
    files: tuple[BlobRef, ...]
    plain: BlobRef | None = None
    normalizing: BlobRef | None = None
    reference_files: tuple[BlobRef, ...] = ()
    layers: tuple[ObservedLayer, ...] = ()
    sites: tuple[str, ...] = ()
    self_test: BlobRef | None = None

    def __post_init__(self) -> None:
        """Refuse duplicates, wrong orders, and references that point outside their file."""
        check_name(self.name, "stage")
        for name in (*self.outputs, *self.sites):
            check_name(name, "tensor")
        if not self.outputs or len(set(self.outputs)) != len(self.outputs):
            raise MalformedError(f"stage {self.name}: outputs {self.outputs!r:.80}")
        for content in (self.skeleton, self.plain, self.normalizing, self.self_test):
            if content is not None and (content.location or content.dtype != "bytes"):
                raise MalformedError(f"stage {self.name}: {content.label} is not a skeleton, nor a self-test")
        _check_files(self.name, self.files)
        _check_files(self.name, self.reference_files)
        for names in ([layer.name for layer in self.layers], self.sites):
            if len(set(names)) != len(names):
                raise MalformedError(f"stage {self.name}: a layer or site is observed twice")
        self._check_reference()

    def _check_reference(self) -> None:
        sizes = {ref.location: ref.decoded_size_bytes for ref in self.reference_files}
        for layer in self.layers:
            slot = layer.reference
            if slot is not None and slot.end_bytes(layer.channels) > sizes.get(REFERENCE_FILE, 0):
                raise MalformedError(f"stage {self.name}: reference of layer {layer.name} outside its file")

    @property
    def blobs(self) -> tuple[BlobRef, ...]:
        """Every blob of the stage, those without a location first."""
        own = [
            ref for ref in (self.skeleton, self.plain, self.normalizing, self.self_test) if ref is not None
        ]
        return (*own, *self.files, *self.reference_files)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a device loads: one quantized model of one generation.

    Attributes:
        model_digest: SHA-256 of the canonical fp32 ONNX model, 64 hex digits.
        device_class: That the policy was made for.
        generation: Number of the policy; 0 is the lab's own calibration.
        stages: The graphs, in the order in which they run.
    """

    FORMAT_VERSION: ClassVar[int] = 1

    model_digest: str
    device_class: str
    generation: int
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        """Refuse what no artifact can be."""
        check_digest(self.model_digest)
        check_name(self.device_class, "device class")
        if not 0 <= self.generation <= MAX_GENERATION:
            raise MalformedError(f"generation {self.generation}")
        if not 1 <= len(self.stages) <= MAX_STAGES:
            raise MalformedError(f"{len(self.stages)} stages; an artifact has 1 to {MAX_STAGES}")
        if len({stage.name for stage in self.stages}) != len(self.stages):
            raise MalformedError("two stages have the same name")
        total = sum(ref.decoded_size_bytes for stage in self.stages for ref in stage.blobs)
        if total > MAX_ARTIFACT_BYTES:
            raise MalformedError(f"artifact of {total} decoded bytes; at most {MAX_ARTIFACT_BYTES} are read")

    @property
    def blobs(self) -> dict[str, BlobRef]:
        """One reference per digest: what a device must hold."""
        return {ref.digest: ref for stage in self.stages for ref in stage.blobs}

    def digest(self) -> str:
        """Return the SHA-256 of the manifest's bytes: the name of the whole artifact."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Return the manifest's only serialised form."""
        message = pb.Manifest(
            format_version=self.FORMAT_VERSION,
            model_digest=bytes.fromhex(self.model_digest),
            device_class=self.device_class,
            generation=self.generation,
            stages=[_stage_to_proto(stage) for stage in self.stages],
        )
        data: bytes = message.SerializeToString(deterministic=True)
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """Return the manifest that `to_bytes` wrote.

        Raises:
            MalformedError: If the bytes are anything else.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise MalformedError(f"manifest of {len(data)} bytes; at most {MAX_MANIFEST_BYTES} are read")
        try:
            message = pb.Manifest.FromString(bytes(data))
        except DecodeError as error:
            raise MalformedError(f"not a manifest: {error}") from error
        if message.format_version != cls.FORMAT_VERSION:
            raise MalformedError(
                f"manifest format {message.format_version}, this version reads {cls.FORMAT_VERSION}; "
                "update this software"
            )
        manifest = cls(
            model_digest=message.model_digest.hex(),
            device_class=message.device_class,
            generation=message.generation,
            stages=tuple(_stage_from_proto(stage) for stage in message.stages),
        )
        if manifest.to_bytes() != data:
            raise MalformedError("manifest has unknown fields or is not in canonical form")
        return manifest


def _check_files(stage: str, files: Sequence[BlobRef]) -> None:
    locations = [ref.location for ref in files]
    if locations != sorted(set(locations)) or "" in locations:
        raise MalformedError(f"stage {stage}: files without a location, twice in one graph, or not in order")


def _stage_to_proto(stage: Stage) -> pb.Stage:
    return pb.Stage(
        name=stage.name,
        input=pb.TensorSpec(
            name=stage.input.name,
            data_type=pb.DATA_TYPE_FLOAT32,
            shape=[size or 0 for size in stage.input.shape],
        ),
        outputs=stage.outputs,
        skeleton=stage.skeleton.to_proto(),
        files=[ref.to_proto() for ref in stage.files],
        plain=stage.plain.to_proto() if stage.plain else None,
        normalizing=stage.normalizing.to_proto() if stage.normalizing else None,
        reference_files=[ref.to_proto() for ref in stage.reference_files],
        layers=[_layer_to_proto(layer) for layer in stage.layers],
        sites=stage.sites,
        self_test=stage.self_test.to_proto() if stage.self_test else None,
    )


def _stage_from_proto(message: pb.Stage) -> Stage:
    if message.input.data_type != pb.DATA_TYPE_FLOAT32:
        raise MalformedError(f"stage {message.name!r:.80}: input of element type {message.input.data_type}")
    return Stage(
        name=message.name,
        input=TensorSpec(message.input.name, tuple(size or None for size in message.input.shape)),
        outputs=tuple(message.outputs),
        skeleton=BlobRef.from_proto(message.skeleton),
        files=tuple(BlobRef.from_proto(ref) for ref in message.files),
        plain=BlobRef.from_proto(message.plain) if message.HasField("plain") else None,
        normalizing=BlobRef.from_proto(message.normalizing) if message.HasField("normalizing") else None,
        reference_files=tuple(BlobRef.from_proto(ref) for ref in message.reference_files),
        layers=tuple(_layer_from_proto(layer) for layer in message.layers),
        sites=tuple(message.sites),
        self_test=BlobRef.from_proto(message.self_test) if message.HasField("self_test") else None,
    )


def _layer_to_proto(layer: ObservedLayer) -> pb.ObservedLayer:
    message = pb.ObservedLayer(name=layer.name, channels=layer.channels)
    if layer.reference is not None:
        message.reference.mean_offset_bytes = layer.reference.mean_offset_bytes
        message.reference.std_offset_bytes = layer.reference.std_offset_bytes
        message.reference.count_offset_bytes = layer.reference.count_offset_bytes
    return message


def _layer_from_proto(message: pb.ObservedLayer) -> ObservedLayer:
    slot = None
    if message.HasField("reference"):
        slot = ReferenceSlot(
            message.reference.mean_offset_bytes,
            message.reference.std_offset_bytes,
            message.reference.count_offset_bytes,
        )
    return ObservedLayer(message.name, message.channels, slot)
