"""Folded statistics as blobs, so that a step's result outlives the run that gathered it.

The content is a NumPy archive (npz, stored, no pickle) with one array per statistic under `<group>/<name>`:
histograms and channel moments in the int64 form in which they travel, references as float64 (2, C). Equal
statistics give equal bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from quantization.arrays import AnyArray
from quantization.blob import content_digest, decode_blob_content, encode_blob
from quantization.histogram import DyadicHistogram
from quantization.moments import ChannelMoments, ChannelReference
from quantization.npz_content import pack_arrays, unpack_arrays


class Blobs(Protocol):
    """Blobs (`quantization.blob`) by the digest of what they decode to; `server.blob_store` keeps them."""

    def put(self, digest: str, stored: bytes) -> None:
        """Store a blob under its digest."""

    def get(self, digest: str) -> bytes:
        """Return the blob stored under `digest`."""

    def has(self, digest: str) -> bool:
        """Return whether the store holds `digest`."""


@dataclass(frozen=True, slots=True)
class LabStatistics:
    """What the lab measured of a model.

    Attributes:
        references: By layer: the moments that the field is compared with.
        histograms: By site.
    """

    references: Mapping[str, ChannelReference]
    histograms: Mapping[str, DyadicHistogram]

    def to_bytes(self) -> bytes:
        """Return the blob."""
        arrays = {f"histogram/{name}": h.to_array() for name, h in self.histograms.items()}
        for name, reference in self.references.items():
            arrays[f"reference/{name}"] = np.stack([reference.mean, reference.std])
            arrays[f"count/{name}"] = np.array(reference.count, np.int64)
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
        return cls(references, _histograms(groups))


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


def write(blobs: Blobs, content: bytes) -> str:
    """Store `content` under its SHA-256 and return that, hex."""
    digest = content_digest(content)
    if not blobs.has(digest):
        blobs.put(digest, encode_blob(content))
    return digest


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
