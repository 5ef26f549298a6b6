import bz2
import struct
import sys
import tracemalloc

import bsdiff4
import numpy as np
import pytest
import zstandard
from artifacts import example
from hypothesis import example as also
from hypothesis import given, settings
from hypothesis import strategies as st

from quantization.blob import MAX_CONTENT_BYTES, content_digest, decode_blob_content, encode_blob
from quantization.delta import SMALL_BYTES, Delta, Encoding, apply_delta, choose_delta, make_deltas
from quantization.delta_bsdiff import MAX_BSDIFF_BYTES, is_affordable
from quantization.delta_streams import StreamReader, join_sparse, split_sparse, write_streams
from quantization.delta_words import Words, joined, planes
from quantization.errors import DigestMismatchError, MalformedError
from quantization.renormalization import shortened

SUB, BSDIFF = Encoding.INT8_SUB_ZSTD, Encoding.BSDIFF
OVERHEAD_BYTES = SMALL_BYTES
"""What a difference may take more than the best of its peers: headers, and bsdiff not tried for little."""


def weights(seed: int = 0, shape: tuple[int, int] = (64, 576)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(np.round(rng.laplace(0, 20, shape)), -127, 127).astype(np.int8)


def moved(codes: np.ndarray, share: float, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    steps = rng.choice([-1, 1], codes.shape) * (rng.random(codes.shape) < share)
    return np.clip(codes + steps, -127, 127).astype(np.int8)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Two contents that may be unrelated, or made of the same pieces, or differ in a few values."""
    pieces = draw(st.lists(st.binary(max_size=60), min_size=1, max_size=4))
    base = b"".join(pieces) * draw(st.integers(1, 12))
    kind = draw(st.sampled_from(["other", "shuffled", "edited"]))
    if kind == "other":
        return base, draw(st.binary(max_size=200))
    if kind == "shuffled":
        return base, b"".join(draw(st.permutations(pieces))) * draw(st.integers(0, 12))
    edited = bytearray(base)
    for place in draw(st.lists(st.integers(0, max(0, len(base) - 1)), max_size=5)):
        if edited:
            edited[place] = draw(st.integers(0, 255))
    return base, bytes(edited)


@given(pairs())
@also((b"", b""))
@also((b"", b"new"))
@also((b"old", b""))
@also((b"abcdefghij" * 30, b"XX" + b"abcdefghij" * 20 + b"Q"))
def test_applying_undoes_making(pair: tuple[bytes, bytes]) -> None:
    base, content = pair
    for delta in make_deltas(base, content):
        assert apply_delta(delta.payload, base, content_digest(content), len(content)) == content


@given(pairs())
@settings(max_examples=50)
def test_the_same_contents_always_give_the_same_bytes(pair: tuple[bytes, bytes]) -> None:
    assert make_deltas(*pair) == make_deltas(*pair)


def smallest(base: bytes, content: bytes, stored: bytes) -> int:
    best = choose_delta(make_deltas(base, content, len(stored)), set(Encoding))
    return len(best.payload if best else stored)


def best_peer(base: bytes, content: bytes, stored: bytes) -> int:
    """Return the bytes of the best of: the full blob, plain subtraction, bsdiff, and zstd with a dictionary."""
    sizes = [len(stored), len(bsdiff4.diff(base, content))]
    known = zstandard.ZstdCompressionDict(base or b"\0" * 8, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    if len(base) >= 8:
        sizes.append(len(zstandard.ZstdCompressor(level=19, dict_data=known).compress(content)))
    if len(base) == len(content):
        difference = (np.frombuffer(content, np.uint8) - np.frombuffer(base, np.uint8)).tobytes()
        sizes += [len(zstandard.ZstdCompressor(level=19).compress(difference)), len(bz2.compress(difference))]
    return min(sizes)


@given(pairs())
def test_what_is_sent_is_never_more_than_the_best_way_and_a_header(pair: tuple[bytes, bytes]) -> None:
    base, content = pair
    stored = encode_blob(content)
    assert smallest(base, content, stored) <= min(
        len(stored), best_peer(base, content, stored) + OVERHEAD_BYTES
    )


OLD = weights()
COARSE = np.round(OLD / 14).clip(-8, 7).astype(np.int8)
CHANGES = {
    "2 % of channels re-scaled": np.vstack(
        [np.round(OLD[:2] * 1.02).clip(-127, 127).astype(np.int8), OLD[2:]]
    ),
    "all channels re-scaled": np.round(OLD * 1.02).clip(-127, 127).astype(np.int8),
    "a training round, 20 % moved": moved(OLD, 0.2),
    "a training round, 5 % moved": moved(OLD, 0.05),
    "0.1 % moved": moved(OLD, 0.001),
    "fewer bits": COARSE,
    "rows in another order": np.random.default_rng(2).permutation(OLD),
    "rows dropped": OLD[3:],
    "nothing in common": weights(7),
}


@pytest.mark.parametrize("name", CHANGES)
def test_updates_of_weights_are_never_more_than_the_best_way_and_a_header(name: str) -> None:
    base, content = OLD.tobytes(), CHANGES[name].tobytes()
    stored = encode_blob(content, is_codes=True)
    assert smallest(base, content, stored) <= best_peer(base, content, stored) + OVERHEAD_BYTES


def test_sparse_differences_beat_bzip2_and_zstd() -> None:
    base, content = OLD.tobytes(), moved(OLD, 0.01).tobytes()
    sent = smallest(base, content, encode_blob(content))
    assert sent < 0.95 * len(bsdiff4.diff(base, content))
    assert sent < 0.75 * best_peer_of_zstd(base, content)


def best_peer_of_zstd(base: bytes, content: bytes) -> int:
    difference = (np.frombuffer(content, np.uint8) - np.frombuffer(base, np.uint8)).tobytes()
    return len(zstandard.ZstdCompressor(level=19).compress(difference))


def test_differences_of_floats_are_taken_in_words() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 1, 4000).astype(np.float32)
    content = (base * (1 + rng.normal(0, 1e-3, 4000))).astype(np.float32)
    sent = smallest(base.tobytes(), content.tobytes(), encode_blob(content.tobytes()))
    assert sent < 0.8 * best_peer_of_zstd(base.tobytes(), content.tobytes())


def test_floats_with_few_significant_bits_are_told_apart_from_noise() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 1, 4000).astype(np.float32)
    gains = np.exp(rng.normal(0, 0.05, 4000))
    full, short = (base * gains).astype(np.float32), shortened(base * gains)
    sizes = [smallest(base.tobytes(), c.tobytes(), encode_blob(c.tobytes())) for c in (full, short)]
    assert sizes[1] < 0.6 * sizes[0]
    assert sizes[1] < 0.65 * best_peer_of_zstd(base.tobytes(), short.tobytes())


words_of_four = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40)


@given(words_of_four, st.lists(st.sampled_from([0, 1, 1 << 11, 0xFFFFFFFF]), min_size=40, max_size=40))
@pytest.mark.parametrize("words", Words)
def test_planes_are_joined_to_what_they_were(words: Words, base: list[int], change: list[int]) -> None:
    old = np.array(base, "<u4")
    new = old + np.array(change[: len(old)], "<u4")
    found = planes(old.tobytes(), new.tobytes(), words)
    assert found.shape == (words.size_bytes, 4 * len(old) // words.size_bytes)
    assert joined(found, old.tobytes(), words) == new.tobytes()
    assert joined(planes(new.tobytes(), old.tobytes(), words), new.tobytes(), words) == old.tobytes()


def test_words_that_stay_are_zeros() -> None:
    content = np.random.default_rng(0).bytes(400)
    for words in Words:
        assert not planes(content, content, words).any()


def test_contents_of_an_artifact_become_those_of_the_next() -> None:
    old, new = example().artifact(0).manifest.to_bytes(), example().artifact(1, width=3.0).manifest.to_bytes()
    best = choose_delta(make_deltas(old, new), set(Encoding))
    assert best is not None
    assert len(best.payload) < len(new) / 4
    assert apply_delta(best.payload, old, content_digest(new)) == new


def test_a_difference_that_does_not_pay_is_not_made() -> None:
    content = np.random.default_rng(1).bytes(5000)
    assert make_deltas(np.random.default_rng(2).bytes(5000), content, len(encode_blob(content))) == ()


def test_only_accepted_encodings_are_chosen() -> None:
    deltas = (Delta(SUB, b"longer"), Delta(BSDIFF, b"short"))
    assert choose_delta(deltas, {SUB, BSDIFF, Encoding.FULL}) == deltas[1]
    assert choose_delta(deltas, {SUB}) == deltas[0]
    assert choose_delta(deltas, {Encoding.FULL}) is None


def test_a_server_without_bsdiff4_still_subtracts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bsdiff4", None)
    base, content = OLD.tobytes(), CHANGES["a training round, 20 % moved"].tobytes()
    assert [delta.encoding for delta in make_deltas(base, content)] == [SUB]


def test_bsdiff_is_not_tried_where_it_takes_all_day() -> None:
    assert is_affordable(b"")
    assert is_affordable(OLD.tobytes())
    assert not is_affordable(bytes(MAX_BSDIFF_BYTES + 1))
    assert not is_affordable(b"ab" + bytes(20_000) + b"c")


@given(st.lists(st.integers(0, 600), max_size=8), st.integers(0, 600))
def test_sparse_streams_come_back(gaps: list[int], rest: int) -> None:
    values = np.array([v for gap in gaps for v in [0] * gap + [7]] + [0] * rest, np.uint8)
    assert np.array_equal(join_sparse(*split_sparse(values), len(values)), values)


# What a reader must refuse.

CONTENTS = {
    SUB: (OLD.tobytes(), CHANGES["0.1 % moved"].tobytes()),
    BSDIFF: (OLD.tobytes(), OLD[3:].tobytes() + b"end"),
}
PAYLOADS = {kind: make_deltas(*pair)[-1].payload for kind, pair in CONTENTS.items()}


def is_refused_or_right(kind: Encoding, payload: bytes) -> None:
    base, content = CONTENTS[kind]
    try:
        made = apply_delta(payload, base, content_digest(content), len(content))
    except (MalformedError, DigestMismatchError):
        return
    assert made == content


@pytest.mark.parametrize("kind", [SUB, BSDIFF])
def test_every_truncation_and_extension_is_refused(kind: Encoding) -> None:
    base, content = CONTENTS[kind]
    payload = PAYLOADS[kind]
    assert payload[2] == kind
    assert apply_delta(payload, base, content_digest(content)) == content
    for damaged in [payload[:n] for n in range(len(payload))] + [payload + b"\0", payload + payload]:
        with pytest.raises((MalformedError, DigestMismatchError)):
            apply_delta(damaged, base, content_digest(content))


@given(st.sampled_from([SUB, BSDIFF]), st.integers(0, 400), st.integers(0, 255), st.binary(max_size=3))
def test_any_change_of_a_difference_is_refused_or_harmless(
    kind: Encoding, place: int, value: int, more: bytes
) -> None:
    payload = PAYLOADS[kind]
    place %= len(payload)
    is_refused_or_right(kind, payload[:place] + bytes([value]) + more + payload[place + 1 :])


@given(st.sampled_from([SUB, BSDIFF]), st.integers(0, 3), st.binary(max_size=80))
def test_any_bytes_are_refused(kind: Encoding, layout: int, body: bytes) -> None:
    size = len(CONTENTS[kind][1])
    is_refused_or_right(kind, struct.pack("<2sBBI", b"QD", kind, layout, size) + body)


def test_the_wrong_base_is_refused() -> None:
    base, content = CONTENTS[SUB]
    with pytest.raises(DigestMismatchError):
        apply_delta(PAYLOADS[SUB], base[:-1] + b"!", content_digest(content))
    with pytest.raises(MalformedError, match="to a base of"):
        apply_delta(PAYLOADS[SUB], base[:-1], content_digest(content))
    with pytest.raises(MalformedError, match="outside of a base"):
        apply_delta(PAYLOADS[BSDIFF], base[:1000], content_digest(CONTENTS[BSDIFF][1]))


def payload_of(kind: int, size: int, *streams: bytes, layout: int = 0, magic: bytes = b"QD") -> bytes:
    return struct.pack("<2sBBI", magic, kind, layout, size) + write_streams(streams, 3)


def bomb(size: int) -> bytes:
    """A stream that says it has `size` bytes and whose frame has many more."""
    frame = zstandard.ZstdCompressor().compress(bytes(200 << 20))
    return struct.pack("<II", size, len(frame)) + frame


def pieces(*rows: tuple[int, int, int]) -> bytes:
    return np.array(rows, "<i4").T.tobytes()


HOSTILE = {
    "starts with": payload_of(SUB, 4, b"abcd", magic=b"QF"),
    "encoding 9": payload_of(9, 4, b"abcd"),
    "encoding 1 ": payload_of(1, 4, b"abcd"),
    "layout 6": payload_of(SUB, 4, b"abcd", layout=6),
    "short words are not sparse": payload_of(SUB, 4, b"", b"", layout=5),
    "stream of 2 bytes where 1": payload_of(SUB, 4, b"a", b"bb", b"c", b"d", layout=4),
    "words of 4 to": payload_of(SUB, 6, b"a", b"b", b"c", b"d", layout=4),
    "layout 2": payload_of(BSDIFF, 4, layout=2),
    "at most": payload_of(SUB, MAX_CONTENT_BYTES + 1),
    "words of 4": payload_of(SUB, 5, b"abcde", layout=2),
    "stream of 5 bytes where 4": payload_of(SUB, 4, b"abcde"),
    "is no|ends before": payload_of(SUB, 4),
    "stored in": payload_of(SUB, 4, b"abcd")[:-1],
    "frame of 209715200": payload_of(SUB, 8000) + bomb(8000),
    "cannot be decompressed": payload_of(SUB, 64)
    + struct.pack("<II", 64, 9)
    + b"\x28\xb5\x2f\xfd\x20\x40\xff\xff\xff",
    "gaps lead to": payload_of(SUB, 4, b"\x04", b"x", layout=1),
    "and value 2 of 1": payload_of(SUB, 4, b"\0\0", b"x", layout=1),
    "gaps for 0 of 1": payload_of(SUB, 4, b"", b"x", layout=1),
    "stream of 3 bytes where 0 to 2": payload_of(SUB, 4, b"\0", b"xyz", layout=1),
    "gaps for 0 of 0": payload_of(SUB, 600, bytes([255]), b"", layout=1),
    "13 bytes of pieces": payload_of(BSDIFF, 2, bytes(13)),
    "pieces of 3 bytes": payload_of(BSDIFF, 2, pieces((0, 0, 3))),
    "pieces of -1": payload_of(BSDIFF, 2, pieces((0, -3, 2))),
    "pieces of 2 bytes": payload_of(BSDIFF, 2, pieces((0, 0, 2), (0, 0, 0))),
    "outside of a base": payload_of(BSDIFF, 2, pieces((-1, 2, 0))),
    "outside of": payload_of(BSDIFF, 2, pieces((1 << 30, 2, 0))),
    "at most 4194304": payload_of(BSDIFF, MAX_BSDIFF_BYTES + 1),
}


@pytest.mark.parametrize("message", HOSTILE)
def test_hostile_differences_are_refused_without_taking_memory(message: str) -> None:
    payload = HOSTILE[message]
    size = struct.unpack_from("<I", payload, 4)[0]
    base = bytes(min(size, 10_000))
    tracemalloc.start()
    with pytest.raises(MalformedError, match=message):
        apply_delta(payload, base, "0" * 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_size_other_than_the_manifest_says_is_refused() -> None:
    base, content = CONTENTS[SUB]
    with pytest.raises(MalformedError, match="where 7 are expected"):
        apply_delta(PAYLOADS[SUB], base, content_digest(content), 7)


def test_streams_are_read_in_order_and_whole() -> None:
    reader = StreamReader(memoryview(write_streams([b"one", bytes(500)], 3)))
    assert (reader.read(3, 3), reader.read(0, 500)) == (b"one", bytes(500))
    reader.finish()


def test_blobs_of_any_encoding_have_one_name() -> None:
    base, content = CONTENTS[BSDIFF]
    name = content_digest(content)
    patched = apply_delta(PAYLOADS[BSDIFF], base, name)
    assert decode_blob_content(encode_blob(patched, level=1), name) == content
