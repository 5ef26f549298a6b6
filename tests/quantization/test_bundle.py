import struct
import tracemalloc
from collections.abc import Mapping

import numpy as np
import pytest
import zstandard
from artifacts import example
from hypothesis import given
from hypothesis import strategies as st

from quantization.artifact import Artifact
from quantization.blob import content_digest, decode_blob_content, encode_blob
from quantization.bundle import (
    MAX_BUNDLE_BYTES,
    Kind,
    Part,
    is_bundled,
    make_bundle,
    most_bundle_bytes,
    parts_between,
    read_bundle,
)
from quantization.delta import make_deltas
from quantization.delta_streams import write_streams
from quantization.errors import DigestMismatchError, MalformedError
from quantization.renormalization import ChannelCorrection

EXAMPLE = example("residual_cnn")
CORRECTIONS = {
    layer.name: ChannelCorrection(np.full(layer.channels, 1.1), np.full(layer.channels, 0.1))
    for layer in EXAMPLE.plan.corrected_layers
}
OLD = EXAMPLE.artifact(0)
TUNED = EXAMPLE.artifact(1, width=3.0, corrections=CORRECTIONS)
NARROW = EXAMPLE.artifact(1, bits=4)


def contents(*artifacts: Artifact) -> dict[str, bytes]:
    return {d: decode_blob_content(s, d) for a in artifacts for d, s in a.blobs.items()}


def bundle(old: Artifact, new: Artifact) -> tuple[tuple[Part, ...], bytes]:
    parts = parts_between(old.manifest, new.manifest)
    return parts, make_bundle(parts, contents(old, new).__getitem__, new.blobs.__getitem__)


@pytest.mark.parametrize("new", [TUNED, NARROW])
def test_a_bundle_holds_what_one_manifest_names_and_another_does_not(new: Artifact) -> None:
    parts, data = bundle(OLD, new)
    found = dict(read_bundle(data, parts, contents(OLD).__getitem__))
    assert found == {d: c for d, c in contents(new).items() if d not in OLD.blobs}
    assert len(data) <= most_bundle_bytes(parts)
    assert bundle(OLD, new)[1] == data


def test_what_stood_in_the_same_place_is_the_base() -> None:
    parts = parts_between(OLD.manifest, NARROW.manifest)
    before = {ref.location: ref.digest for ref in OLD.manifest.stages[0].files}
    after = {ref.digest: ref.location for ref in NARROW.manifest.stages[0].files}
    assert all(part.base_digest == before[after[part.digest]] for part in parts if part.digest in after)
    assert parts_between(OLD.manifest, OLD.manifest) == ()


def part_of(content: bytes, base: bytes | None) -> Part:
    return Part(
        content_digest(content),
        len(content),
        "" if base is None else content_digest(base),
        may_move=len(content) % 2 == 1,
    )


def made_of(pairs: list[tuple[bytes | None, bytes]]) -> tuple[list[Part], bytes, Mapping[str, bytes]]:
    parts = [part_of(content, base) for base, content in pairs]
    known = {content_digest(c): c for pair in pairs for c in pair if c is not None}
    return parts, make_bundle(parts, known.__getitem__, lambda d: encode_blob(known[d])), known


content_pairs = st.lists(
    st.one_of(
        st.tuples(st.none() | st.binary(max_size=60), st.binary(max_size=60)),
        st.binary(min_size=8, max_size=60).flatmap(
            lambda base: st.tuples(st.just(base), st.binary(min_size=len(base), max_size=len(base)))
        ),
        st.binary(min_size=8, max_size=200).map(lambda base: (base, base[:-1] + b"!")),
    ),
    max_size=6,
)


@given(content_pairs)
def test_reading_undoes_making(pairs: list[tuple[bytes | None, bytes]]) -> None:
    parts, data, known = made_of(pairs)
    assert list(read_bundle(data, parts, known.__getitem__)) == [(p.digest, known[p.digest]) for p in parts]
    assert len(data) <= most_bundle_bytes(parts)


def test_a_bundle_is_smaller_than_differences_one_by_one() -> None:
    rng = np.random.default_rng(0)
    pairs: list[tuple[bytes | None, bytes]] = []
    for _ in range(20):
        base = np.round(rng.laplace(0, 20, 2000)).clip(-127, 126).astype(np.int8)
        content = base.copy()
        content[rng.choice(2000, 10, replace=False)] += 1
        pairs.append((base.tobytes(), content.tobytes()))
    apart = sum(len(make_deltas(base or b"", content)[-1].payload) for base, content in pairs)
    assert len(made_of(pairs)[1]) < 0.6 * apart


def test_every_kind_is_used_where_it_suits() -> None:
    rng = np.random.default_rng(0)
    codes = np.round(rng.laplace(0, 20, 4000)).clip(-127, 127).astype(np.int8)
    floats = rng.normal(size=1000).astype(np.float32)
    short = (floats * 1.05).view(np.uint32) & np.uint32(0xFFFFF800)
    moved = codes.copy()
    moved[rng.choice(4000, 120, replace=False)] ^= 1
    noise = rng.bytes(2000)
    pairs: list[tuple[bytes | None, bytes]] = [
        (None, rng.bytes(500)),
        (codes.tobytes(), (codes + rng.integers(-1, 2, 4000).astype(np.int8)).tobytes()),
        (codes.tobytes(), moved.tobytes()),
        (floats.tobytes(), (floats * (1 + rng.normal(0, 1e-4, 1000)).astype(np.float32)).tobytes()),
        (floats.tobytes(), short.tobytes()),
        (rng.bytes(1000) + noise, b"new" + noise),
    ]
    parts, data, known = made_of(pairs)
    size = struct.unpack_from("<I", data, 8)[0]
    assert set(data[16 : 16 + size]) == set(Kind)
    assert dict(read_bundle(data, parts, known.__getitem__)) == {p.digest: known[p.digest] for p in parts}


def test_bundles_have_a_bound() -> None:
    part = Part("a" * 64, MAX_BUNDLE_BYTES, "", may_move=False)
    assert is_bundled([part])
    assert not is_bundled([part, Part("b" * 64, 1, "", may_move=False)])
    assert not is_bundled([])


BASE, CONTENT = b"abcdefgh", b"abcdefgX"
PARTS = [part_of(CONTENT, BASE)]


def payload_of(kind: int, *streams: bytes, count: int = 1, magic: bytes = b"QB", version: int = 1) -> bytes:
    filled = [*streams, *[b""] * (9 - len(streams))]
    return struct.pack("<2sBBI", magic, version, 0, count) + write_streams([bytes([kind]), *filled], 3)


def bomb(size: int) -> bytes:
    frame = zstandard.ZstdCompressor().compress(bytes(200 << 20))
    return struct.pack("<II", size, len(frame)) + frame


HOSTILE = {
    "are no bundle": b"QB",
    "bundle of format 1, magic": payload_of(1, magic=b"QD"),
    "bundle of format 2": payload_of(1, version=2),
    "bundle of 2 contents where 1": payload_of(1, count=2),
    "content of kind 6": payload_of(6),
    "stream of 4 bytes where 0": payload_of(1, b"1234"),
    "stream of 0 bytes where 4": payload_of(0),
    "STORED of sizes": payload_of(0, struct.pack("<I", 1 << 31)),
    "DIFFERENCE of sizes": payload_of(5, struct.pack("<I", 17)),
    "SPARSE of sizes": payload_of(2, struct.pack("<II", 5, 0)),
    "stream of 7 bytes where 8": payload_of(1, b"", b"", bytes(7)),
    "stream of 0 bytes where 2": payload_of(3, b"", b"", b"", b"", b"", b"12", b"12", b"12", b""),
    "behind the last stream": payload_of(1, b"", b"", bytes(8)) + b"x",
    "gaps lead to": payload_of(2, struct.pack("<II", 1, 1), b"", b"", b"\x09", b"x"),
    "a blob starts with": payload_of(0, struct.pack("<I", 8), b"notablob"),
    "a difference starts with": payload_of(5, struct.pack("<I", 8), b"notadiff"),
}


@pytest.mark.parametrize("message", HOSTILE)
def test_hostile_bundles_are_refused_without_taking_memory(message: str) -> None:
    tracemalloc.start()
    with pytest.raises(MalformedError, match=message):
        list(read_bundle(HOSTILE[message], PARTS, {content_digest(BASE): BASE}.__getitem__))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_frame_that_says_another_size_is_not_decompressed() -> None:
    data = payload_of(1)[:8] + write_streams([b"\1", b"", b""], 3) + bomb(8000)
    tracemalloc.start()
    with pytest.raises(MalformedError, match="frame of 209715200"):
        list(read_bundle(data, [part_of(bytes(8000), BASE)], {content_digest(BASE): BASE}.__getitem__))
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_other_content_is_refused() -> None:
    data = payload_of(1, b"", b"", bytes(8))
    with pytest.raises(DigestMismatchError, match="bundle gives content"):
        list(read_bundle(data, PARTS, {content_digest(BASE): BASE}.__getitem__))


def test_differences_to_a_base_of_another_size_are_refused() -> None:
    with pytest.raises(MalformedError, match="to a base of 7"):
        list(read_bundle(payload_of(1, b"", b"", bytes(8)), PARTS, lambda _: BASE[:7]))
