"""Bundles: everything that one manifest names and another does not, as one payload.

Each content is a difference to what stood in its place; the streams of all of them are compressed together. A
difference to a layer takes 100 bytes before it says anything: its question, its head, its frames. In a bundle it takes
one, and what two contents have in common (scales stand in `channels` and in `reference`) is sent once.
`docs/formats/update.md` is the page of bytes.

Which contents a bundle has, in which order, of which sizes and against which bases follows from the two manifests,
which both sides have; so a reader knows every size before it allocates.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import zstandard
from numpy.typing import NDArray

from quantization.blob import COMPRESSION_LEVEL, HEADER_BYTES, content_digest, decode_blob_content
from quantization.blob_ref import BlobRef
from quantization.delta import Encoding, apply_delta, choose_delta, make_deltas
from quantization.delta_streams import StreamReader, join_sparse, split_sparse, write_streams
from quantization.delta_words import Words, joined, planes
from quantization.errors import DigestMismatchError, MalformedError
from quantization.manifest import Manifest, Stage

MAX_BUNDLE_BYTES = 64 << 20
"""Most that the contents of a bundle may decode to: whoever reads one holds them, their bases and their differences."""

_HEADER = struct.Struct("<2sBBI")  # magic, format, zero, number of contents
_MAGIC = b"QB"
_FORMAT = 1
_RATING_LEVEL = 6  # of zstd, to choose the kind of a content by
_PLANES = 4


class Kind(IntEnum):
    """How a content stands in a bundle; the numbers are on the wire."""

    STORED = 0
    """As a blob."""
    BYTES = 1
    """Differences of bytes."""
    SPARSE = 2
    """Likewise, as gaps and values."""
    WORDS = 3
    """Differences of words of 4 bytes."""
    SHORT_WORDS = 4
    """Differences of short words."""
    DIFFERENCE = 5
    """As a difference of its own: `quantization.delta`."""


_WORDS = {Kind.WORDS: Words.WORDS, Kind.SHORT_WORDS: Words.SHORT_WORDS}


@dataclass(frozen=True, slots=True)
class Part:
    """A content of a bundle.

    Attributes:
        digest: Its name.
        size_bytes: Decoded.
        base_digest: What stood in its place; empty where nothing did.
        may_move: Things may have moved inside: it is a graph or mixed, not a tensor.
    """

    digest: str
    size_bytes: int
    base_digest: str
    may_move: bool


def contents_by_slot(stage: Stage) -> Iterator[tuple[str, BlobRef]]:
    """Yield where each content of a stage stands, and the content: what stands in one slot is versions of one thing."""
    for kind, graph in (
        ("skeleton", stage.skeleton),
        ("plain", stage.plain),
        ("normalizing", stage.normalizing),
        ("self_test", stage.self_test),
    ):
        if graph is not None:
            yield f"{stage.name}\n{kind}", graph
    for kind, files in (("files", stage.files), ("reference", stage.reference_files)):
        for ref in files:
            yield f"{stage.name}\n{kind}\n{ref.location}", ref


def parts_between(base: Manifest, target: Manifest) -> tuple[Part, ...]:
    """Return the contents that `target` names and `base` does not, in the order in which a bundle has them."""
    held = base.blobs
    before = {slot: ref.digest for stage in base.stages for slot, ref in contents_by_slot(stage)}
    parts: dict[str, Part] = {}
    for stage in target.stages:
        for slot, ref in contents_by_slot(stage):
            if ref.digest not in held:
                part = Part(ref.digest, ref.decoded_size_bytes, before.get(slot, ""), ref.dtype == "bytes")
                parts.setdefault(ref.digest, part)
    return tuple(parts.values())


def most_bundle_bytes(parts: Sequence[Part]) -> int:
    """Return the greatest size of a bundle: no reader takes more."""
    return 1024 + sum(64 + HEADER_BYTES + part.size_bytes for part in parts)


def is_bundled(parts: Sequence[Part]) -> bool:
    """Return whether such contents make a bundle: there are some, and they are not too much."""
    return 0 < sum(part.size_bytes for part in parts) <= MAX_BUNDLE_BYTES


def make_bundle(
    parts: Sequence[Part], read_content: Callable[[str], bytes], read_stored: Callable[[str], bytes]
) -> bytes:
    """Return the bundle of some contents; equal inputs give equal bytes.

    Args:
        parts: As `parts_between` returns them.
        read_content: From a digest to decoded content.
        read_stored: From a digest to the stored blob.
    """
    kinds, sizes = bytearray(), list[int]()
    literals, dense, gaps, values = (bytearray() for _ in range(4))
    word_planes = [bytearray() for _ in range(_PLANES)]
    for part in parts:
        base = read_content(part.base_digest) if part.base_digest else b""
        kind, streams = _smallest(
            base, read_content(part.digest), read_stored(part.digest), may_move=part.may_move
        )
        kinds.append(kind)
        if kind in (Kind.STORED, Kind.DIFFERENCE):
            sizes.append(len(streams[0]))
            literals += streams[0]
        elif kind is Kind.BYTES:
            dense += streams[0]
        elif kind is Kind.SPARSE:
            sizes += [len(streams[0]), len(streams[1])]
            gaps += streams[0]
            values += streams[1]
        else:
            for number, stream in enumerate(streams):
                word_planes[number] += stream
    written = [bytes(kinds), np.array(sizes, "<u4").tobytes(), literals, dense, gaps, values, *word_planes]
    return _HEADER.pack(_MAGIC, _FORMAT, 0, len(parts)) + write_streams(
        [bytes(stream) for stream in written], COMPRESSION_LEVEL
    )


def read_bundle(
    payload: bytes | memoryview, parts: Sequence[Part], read_content: Callable[[str], bytes]
) -> Iterator[tuple[str, bytes]]:
    """Yield the digest and the content of each part, once its SHA-256 is found to be right.

    Args:
        payload: As `make_bundle` wrote it.
        parts: As `parts_between` returns them.
        read_content: From the digest of a base to decoded content, verified.

    Raises:
        MalformedError: If the payload is no bundle of these parts.
        DigestMismatchError: If other content comes out.
    """
    streams = _Streams.read(payload, parts)
    for part, kind in zip(parts, streams.kinds, strict=True):
        base = read_content(part.base_digest) if part.base_digest else b""
        content = streams.next_content(part, kind, base)
        actual = content_digest(content)
        if actual != part.digest:
            raise DigestMismatchError(
                f"bundle gives content with digest {actual[:12]}..., not {part.digest[:12]}..."
            )
        yield part.digest, content


def _smallest(base: bytes, content: bytes, stored: bytes, *, may_move: bool) -> tuple[Kind, list[bytes]]:
    """Return how a content is put into a bundle, and its streams."""
    forms: list[tuple[int, Kind, list[bytes]]] = [(len(stored), Kind.STORED, [stored])]
    if len(base) == len(content):
        difference = planes(base, content, Words.BYTES).reshape(-1)
        ways = [(Kind.BYTES, [difference.tobytes()])]
        coded, values = split_sparse(difference)
        if len(values) <= len(content) // 2:
            ways.append((Kind.SPARSE, [coded, values]))
        if len(content) % 4 == 0:
            ways += [(k, [plane.tobytes() for plane in planes(base, content, w)]) for k, w in _WORDS.items()]
        forms += [(_rated(streams), kind, streams) for kind, streams in ways]
    if base and (may_move or len(base) != len(content)):
        delta = choose_delta(
            make_deltas(base, content, len(stored)), (Encoding.BSDIFF, Encoding.INT8_SUB_ZSTD)
        )
        if delta is not None:
            forms.append((len(delta.payload), Kind.DIFFERENCE, [delta.payload]))
    _, kind, streams = min(forms, key=lambda form: (form[0], form[1]))
    return kind, streams


def _rated(streams: Sequence[bytes]) -> int:
    compressor = zstandard.ZstdCompressor(level=_RATING_LEVEL, write_checksum=False)
    return sum(min(len(stream), len(compressor.compress(stream))) for stream in streams)


@dataclass(slots=True)
class _Streams:
    """The streams of a bundle, and how far each was used."""

    kinds: tuple[Kind, ...]
    sizes: list[int]  # the next one last
    literals: memoryview
    dense: memoryview
    gaps: memoryview
    values: memoryview
    planes: list[memoryview]

    @classmethod
    def read(cls, payload: bytes | memoryview, parts: Sequence[Part]) -> "_Streams":
        """Return the streams, each of the size that follows from what is before it."""
        if len(payload) < _HEADER.size:
            raise MalformedError(f"{len(payload)} bytes are no bundle; its header alone has {_HEADER.size}")
        magic, number, zero, count = _HEADER.unpack_from(payload)
        if magic != _MAGIC or number != _FORMAT or zero:
            raise MalformedError(
                f"bundle of format {number}, magic {magic!r}; update this software to read it"
            )
        if count != len(parts):
            raise MalformedError(f"bundle of {count} contents where {len(parts)} are expected")
        reader = StreamReader(memoryview(payload)[_HEADER.size :])
        kinds = tuple(_kind(value) for value in reader.read(count, count))
        table = reader.read(*[4 * sum(_SIZES[kind] for kind in kinds)] * 2)
        sizes: list[int] = np.frombuffer(table, "<u4").tolist()
        totals = _totals(parts, kinds, sizes)
        literals, dense, gaps, values, *word_planes = (
            memoryview(reader.read(total, total)) for total in totals
        )
        reader.finish()
        return cls(kinds, sizes[::-1], literals, dense, gaps, values, word_planes)

    def next_content(self, part: Part, kind: Kind, base: bytes) -> bytes:
        """Return the next content."""
        size = part.size_bytes
        if kind is Kind.STORED:
            return decode_blob_content(self._literal(), part.digest, size)
        if kind is Kind.DIFFERENCE:
            return apply_delta(self._literal(), base, part.digest, size)
        if len(base) != size:
            raise MalformedError(f"differences of {size} bytes to a base of {len(base)}")
        if kind is Kind.BYTES:
            taken, self.dense = self.dense[:size], self.dense[size:]
            return joined(_bytes_of(taken), base, Words.BYTES)
        if kind is Kind.SPARSE:
            gaps_size, values_size = self.sizes.pop(), self.sizes.pop()
            gaps, self.gaps = self.gaps[:gaps_size], self.gaps[gaps_size:]
            values, self.values = self.values[:values_size], self.values[values_size:]
            return joined(join_sparse(bytes(gaps), bytes(values), size), base, Words.BYTES)
        words = size // _PLANES
        found = np.stack([_bytes_of(plane[:words]) for plane in self.planes])
        self.planes = [plane[words:] for plane in self.planes]
        return joined(found, base, _WORDS[kind])

    def _literal(self) -> bytes:
        size = self.sizes.pop()
        taken, self.literals = self.literals[:size], self.literals[size:]
        return bytes(taken)


_SIZES = {
    Kind.STORED: 1, Kind.DIFFERENCE: 1, Kind.SPARSE: 2, Kind.BYTES: 0, Kind.WORDS: 0, Kind.SHORT_WORDS: 0,
}  # fmt: skip
"""How many sizes are told of a content."""


def _kind(value: int) -> Kind:
    if value >= len(Kind):
        raise MalformedError(f"content of kind {value} in a bundle; update this software to read it")
    return Kind(value)


def _totals(parts: Sequence[Part], kinds: Sequence[Kind], sizes: Sequence[int]) -> list[int]:
    """Return the sizes of literals, dense differences, gaps, values and planes, none above what the contents allow."""
    literals = dense = gaps = values = words = place = 0
    for part, kind in zip(parts, kinds, strict=True):
        size, told = part.size_bytes, sizes[place : place + _SIZES[kind]]
        place += len(told)
        if kind in (Kind.STORED, Kind.DIFFERENCE):
            is_possible = told[0] <= HEADER_BYTES + size
            literals += told[0]
        elif kind is Kind.SPARSE:
            is_possible = told[0] <= size // 2 + size // 255 and told[1] <= size // 2
            gaps, values = gaps + told[0], values + told[1]
        elif kind is Kind.BYTES:
            is_possible, dense = True, dense + size
        else:
            is_possible, words = size % _PLANES == 0, words + size // _PLANES
        if not is_possible:
            raise MalformedError(f"{kind.name} of sizes {told} for content of {size} bytes in a bundle")
    return [literals, dense, gaps, values, *[words] * _PLANES]


def _bytes_of(data: memoryview) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)
