"""Folded statistics as blobs, so that a step's result outlives the run that gathered it.

The content is a NumPy archive (npz, stored, no pickle) with one array per statistic under `<group>/<name>`:
histograms and channel moments in the int64 form in which they travel, references as float64 (2, C). Equal
statistics give equal bytes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np

from quantization.arrays import AnyArray
from quantization.blob import COMPRESSION_LEVEL, content_digest, decode_blob_content, encode_blob
from quantization.histogram import DyadicHistogram
from quantization.moments import ChannelMoments, ChannelReference
from quantization.npz_content import pack_arrays, unpack_arrays
from quantization.second_moments import SecondMoments

_FAST_LEVEL = 1  # of zstd: second moments are large and hardly compress


class Blobs(Protocol):
    """Blobs (`quantization.blob`) by the digest of what they decode to; `server.blob_store` keeps them."""

    def put(self, digest: str, stored: bytes) -> None:
        """Store a blob under its digest."""

    def get(self, digest: str) -> bytes:
        """Return the blob stored under `digest`."""

    def has(self, digest: str) -> bool:
        """Return whether the store holds `digest`."""


@dataclass(frozen=True, slots=True)
class LabInput:
    """How large a layer's input is in the lab: what the field's second moments are counted in, and compared with.

    Attributes:
        exponent: Of the moments' steps, `second_moments.exponent_for`.
        energy: Mean square of a column of im2col, summed over the layer's columns and groups.
    """

    exponent: int
    energy: float


@dataclass(frozen=True, slots=True)
class LabStatistics:
    """What the lab measured of a model.

    Attributes:
        references: By layer: the moments that the field is compared with.
        histograms: By site.
        inputs: By layer; empty where a version without it measured.
    """

    references: Mapping[str, ChannelReference]
    histograms: Mapping[str, DyadicHistogram]
    inputs: Mapping[str, LabInput] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the blob."""
        arrays = {f"histogram/{name}": h.to_array() for name, h in self.histograms.items()}
        for name, reference in self.references.items():
            arrays[f"reference/{name}"] = np.stack([reference.mean, reference.std])
            arrays[f"count/{name}"] = np.array(reference.count, np.int64)
        for name, seen in self.inputs.items():
            arrays[f"input/{name}"] = np.array([seen.exponent, seen.energy], np.float64)
        return pack_arrays(arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return what `to_bytes` wrote.

        Raises:
            MalformedError: The bytes are something else.
        """
        groups = unpack_arrays(data)
        counts = groups.get("count", {})
        references = {
            name: ChannelReference(array[0], array[1], int(counts[name]))
            for name, array in groups.get("reference", {}).items()
        }
        inputs = {name: LabInput(int(a[0]), float(a[1])) for name, a in groups.get("input", {}).items()}
        return cls(references, _histograms(groups), inputs)


@dataclass(frozen=True, slots=True)
class FieldMoments:
    """What the first phase of a calibration brought: moments of the model as it runs, and normalised.

    Attributes:
        plain: By layer, as devices run the model now.
        sequential: By layer, behind layers that are already normalised.
    """

    plain: Mapping[str, ChannelMoments]
    sequential: Mapping[str, ChannelMoments]

    def to_bytes(self) -> bytes:
        """Return the blob."""
        arrays = {f"plain/{name}": m.to_array() for name, m in self.plain.items()}
        arrays |= {f"sequential/{name}": m.to_array() for name, m in self.sequential.items()}
        return pack_arrays(arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return what `to_bytes` wrote.

        Raises:
            MalformedError: The bytes are something else.
        """
        groups = unpack_arrays(data)
        return cls(_moments(groups, "plain"), _moments(groups, "sequential"))


@dataclass(frozen=True, slots=True)
class FieldRanges:
    """What the second phase of a calibration brought: statistics of the candidate.

    Attributes:
        histograms: By site, with the candidate's corrections.
        moments: By layer, with the candidate's corrections.
    """

    histograms: Mapping[str, DyadicHistogram]
    moments: Mapping[str, ChannelMoments]

    def to_bytes(self) -> bytes:
        """Return the blob."""
        arrays = {f"histogram/{name}": h.to_array() for name, h in self.histograms.items()}
        arrays |= {f"candidate/{name}": m.to_array() for name, m in self.moments.items()}
        return pack_arrays(arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return what `to_bytes` wrote.

        Raises:
            MalformedError: The bytes are something else.
        """
        groups = unpack_arrays(data)
        return cls(_histograms(groups), _moments(groups, "candidate"))


def write(blobs: Blobs, content: bytes, *, level: int = COMPRESSION_LEVEL) -> str:
    """Store `content` under its SHA-256 and return that, hex.

    Args:
        blobs: The store.
        content: At most 256 MiB.
        level: Of zstd; a low one for what is large and never leaves the server.
    """
    digest = content_digest(content)
    if not blobs.has(digest):
        blobs.put(digest, encode_blob(content, level=level))
    return digest


def write_inputs(blobs: Blobs, moments: Mapping[str, SecondMoments]) -> str:
    """Store merged second moments, a blob for each layer, and return the digest of their index."""
    digests = {
        name: write(blobs, of_layer.to_array().tobytes(), level=_FAST_LEVEL)
        for name, of_layer in moments.items()
    }
    return write(blobs, json.dumps(digests).encode())


def read_inputs(blobs: Blobs, digest: str) -> dict[str, SecondMoments]:
    """Return what `write_inputs` stored.

    Raises:
        MalformedError: A blob is something else.
    """
    index: dict[str, str] = json.loads(read(blobs, digest))
    return {
        name: SecondMoments.from_array(np.frombuffer(read(blobs, of_layer), np.int64))
        for name, of_layer in index.items()
    }


def read(blobs: Blobs, digest: str) -> bytes:
    """Return the content whose SHA-256 is `digest`.

    Raises:
        DigestMismatchError: The store has something else under that name.
        NotFoundError: The store has nothing.
    """
    return decode_blob_content(blobs.get(digest), digest)


def _histograms(groups: Mapping[str, Mapping[str, AnyArray]]) -> dict[str, DyadicHistogram]:
    return {name: DyadicHistogram.from_array(array) for name, array in groups.get("histogram", {}).items()}


def _moments(groups: Mapping[str, Mapping[str, AnyArray]], group: str) -> dict[str, ChannelMoments]:
    return {name: ChannelMoments.from_array(array) for name, array in groups.get(group, {}).items()}
