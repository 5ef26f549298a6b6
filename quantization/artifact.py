"""Artifacts: from compiled graphs to a manifest and blobs, and back to what a runtime loads.

Nothing here needs the onnx package: what `build_artifact` must know of a graph comes from the plan.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from quantization.arrays import AnyArray
from quantization.blob import content_digest, decode_blob_content, encode_blob
from quantization.blob_ref import ITEM_BYTES, BlobRef, check_location
from quantization.errors import MalformedError
from quantization.manifest import REFERENCE_FILE, Manifest, ObservedLayer, ReferenceSlot, Stage, TensorSpec
from quantization.moments import ChannelReference
from quantization.packing import needed_bit_width
from quantization.policy import Policy

__all__ = [
    "Artifact",
    "BlobReader",
    "BlobRef",
    "Manifest",
    "ObservedLayer",
    "Stage",
    "TensorSpec",
    "build_artifact",
    "decode_blob",
    "decode_files",
    "read_references",
    "update_size_bytes",
]

BlobReader = Callable[[str], bytes]
"""From a digest to the stored bytes of the blob."""


class CompiledFiles(Protocol):
    """A compiled graph: its skeleton and the decoded contents of its external files, by location."""

    @property
    def skeleton(self) -> bytes: ...
    @property
    def files(self) -> Mapping[str, AnyArray]: ...


class CompiledSlot(Protocol):
    """Where a layer's reference lies in the file `REFERENCE_FILE`."""

    @property
    def layer(self) -> str: ...
    @property
    def mean_offset(self) -> int: ...
    @property
    def std_offset(self) -> int: ...
    @property
    def count_offset(self) -> int: ...


class ObservationFiles(Protocol):
    """The graphs that observe a stage."""

    @property
    def plain(self) -> CompiledFiles: ...
    @property
    def normalizing(self) -> CompiledFiles | None: ...
    @property
    def layer_names(self) -> Sequence[str]: ...
    @property
    def site_names(self) -> Sequence[str]: ...
    @property
    def reference_slots(self) -> Sequence[CompiledSlot]: ...


class PlannedLayer(Protocol):
    """What a manifest needs to know of a layer."""

    @property
    def name(self) -> str: ...
    @property
    def channels(self) -> int: ...


class Plan(Protocol):
    """What a manifest needs to know of the analysed model."""

    @property
    def layers(self) -> Sequence[PlannedLayer]: ...
    @property
    def input_name(self) -> str: ...
    @property
    def input_shape(self) -> Sequence[int | None]: ...
    @property
    def output_names(self) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class Artifact:
    """A manifest and every blob it names.

    Attributes:
        manifest: What there is.
        blobs: Stored bytes by digest; exactly those that the manifest names.
    """

    manifest: Manifest
    blobs: Mapping[str, bytes]

    @property
    def size_bytes(self) -> int:
        """Bytes of the manifest and of all blobs as stored."""
        return len(self.manifest.to_bytes()) + sum(len(stored) for stored in self.blobs.values())


def build_artifact(
    inference: CompiledFiles,
    observation: ObservationFiles | None,
    policy: Policy,
    plan: Plan,
    self_test: bytes = b"",
) -> Artifact:
    """Return the artifact of one stage named "main"; equal inputs give equal bytes.

    Args:
        inference: The compiled QDQ graph.
        observation: The graphs that observe it; None for a device class that is never observed.
        policy: That the graphs were compiled for.
        plan: Of the model, as the graphs were compiled from.
        self_test: What the inference graph gives for known inputs: `SelfTest.to_content`; empty for none.
    """
    blobs: dict[str, bytes] = {}
    plain = observation.plain if observation else None
    normalizing = observation.normalizing if observation else None
    files = _merged(inference.files, plain.files if plain else {})
    own_files = {
        location: array
        for location, array in (normalizing.files if normalizing else {}).items()
        if location not in files or array.tobytes() != files[location].tobytes()
    }
    stage = Stage(
        name="main",
        input=TensorSpec(plan.input_name, tuple(plan.input_shape)),
        outputs=tuple(plan.output_names),
        skeleton=_add_bytes(blobs, inference.skeleton),
        files=_add_files(blobs, files),
        plain=_add_bytes(blobs, plain.skeleton) if plain else None,
        normalizing=_add_bytes(blobs, normalizing.skeleton) if normalizing else None,
        reference_files=_add_files(blobs, own_files),
        layers=_observed_layers(observation, plan) if observation else (),
        sites=tuple(observation.site_names) if observation else (),
        self_test=_add_bytes(blobs, self_test) if self_test else None,
    )
    manifest = Manifest(policy.model_digest, policy.device_class, policy.generation, (stage,))
    return Artifact(manifest, blobs)


def decode_blob(ref: BlobRef, stored: bytes) -> bytes:
    """Return the decoded content of the blob that `ref` describes, verified.

    Raises:
        MalformedError: If the bytes are not a blob, or one of another size than `ref` says; found out before
            anything is allocated.
        DigestMismatchError: If the content's SHA-256 is not `ref.digest`.
    """
    return decode_blob_content(stored, ref.digest, ref.decoded_size_bytes)


def decode_files(refs: Sequence[BlobRef], read_blob: BlobReader) -> dict[str, bytes]:
    """Return the decoded, verified contents by location.

    Raises:
        MalformedError: As `decode_blob`.
        DigestMismatchError: As `decode_blob`.
    """
    return {ref.location: decode_blob(ref, read_blob(ref.digest)) for ref in refs}


def read_references(stage: Stage, read_blob: BlobReader) -> dict[str, ChannelReference]:
    """Return the lab's moments by layer, exactly as the graphs were compiled with them.

    Raises:
        MalformedError: If a blob or a value is not what it must be.
        DigestMismatchError: As `decode_blob`.
    """
    slots = {layer: layer.reference for layer in stage.layers if layer.reference is not None}
    if not slots:
        return {}
    files = decode_files([ref for ref in stage.reference_files if ref.location == REFERENCE_FILE], read_blob)
    content = files[REFERENCE_FILE]

    return {
        layer.name: ChannelReference(
            mean=np.frombuffer(content, "<f8", layer.channels, slot.mean_offset_bytes),
            std=np.frombuffer(content, "<f8", layer.channels, slot.std_offset_bytes),
            count=int(np.frombuffer(content, "<i8", 1, slot.count_offset_bytes)[0]),
        )
        for layer, slot in slots.items()
    }


def update_size_bytes(manifest: Manifest, held_digests: Collection[str]) -> int:
    """Return what a device that holds these blobs downloads: the manifest and the stored blobs it lacks."""
    missing = [ref.stored_size_bytes for digest, ref in manifest.blobs.items() if digest not in held_digests]
    return len(manifest.to_bytes()) + sum(missing)


def _merged(*mappings: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    """Return the union of files; graphs that share a location must agree on its content."""
    files: dict[str, AnyArray] = {}
    for mapping in mappings:
        for location, array in mapping.items():
            known = files.setdefault(location, array)
            if known is not array and known.tobytes() != array.tobytes():
                raise ValueError(f"two graphs disagree on the content of file {location!r}")
    return files


def _add_bytes(blobs: dict[str, bytes], content: bytes) -> BlobRef:
    return _add(blobs, "", np.frombuffer(content, np.uint8), "bytes")


def _add_files(blobs: dict[str, bytes], files: Mapping[str, AnyArray]) -> tuple[BlobRef, ...]:
    for location in files:
        check_location(location)
    return tuple(
        _add(blobs, location, files[location], files[location].dtype.name) for location in sorted(files)
    )


def _add(blobs: dict[str, bytes], location: str, array: AnyArray, dtype: str) -> BlobRef:
    """Store the array and return its reference."""
    if dtype not in ITEM_BYTES:
        raise MalformedError(f"file {location!r} has element type {dtype}; known are {', '.join(ITEM_BYTES)}")
    content = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    digest = content_digest(content)
    is_codes = dtype == "int8"
    if digest not in blobs:
        blobs[digest] = encode_blob(content, is_codes=is_codes)
    return BlobRef(
        location=location,
        digest=digest,
        dtype=dtype,
        shape=array.shape,
        bit_width=needed_bit_width(array) if is_codes else 8 * ITEM_BYTES[dtype],
        stored_size_bytes=len(blobs[digest]),
    )


def _observed_layers(observation: ObservationFiles, plan: Plan) -> tuple[ObservedLayer, ...]:
    slots = {
        slot.layer: ReferenceSlot(slot.mean_offset, slot.std_offset, slot.count_offset)
        for slot in observation.reference_slots
    }
    channels = {layer.name: layer.channels for layer in plan.layers}
    return tuple(ObservedLayer(name, channels[name], slots.get(name)) for name in observation.layer_names)
