import struct
import tracemalloc
from hashlib import sha256

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from quantization.blob import (
    HEADER_BYTES,
    MAX_CONTENT_BYTES,
    Codec,
    content_digest,
    content_size_bytes,
    decode_blob_content,
    encode_blob,
    encoded_sizes,
)
from quantization.errors import DigestMismatchError, MalformedError


def header(codec: int, bit_width: int, size: int, magic: bytes = b"QF") -> bytes:
    return struct.pack("<2sBBI", magic, codec, bit_width, size)


def normal_codes(bits: int, count: int = 4000) -> bytes:
    limit = 2 ** (bits - 1) - 1
    values = np.random.default_rng(bits).normal(0, limit / 2.5, count)
    return np.clip(np.round(values), -limit, limit).astype(np.int8).tobytes()


@given(st.binary(max_size=300), st.booleans())
def test_decode_inverts_encode(content: bytes, is_codes: bool) -> None:
    stored = encode_blob(content, is_codes=is_codes)
    assert decode_blob_content(stored, sha256(content).hexdigest()) == content
    assert content_size_bytes(stored) == len(content)
    assert stored == encode_blob(content, is_codes=is_codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 7, 8])
def test_wide_layers_take_no_more_than_zstd_searching_for_long(bits: int) -> None:
    content = normal_codes(bits, 200_000)
    stored = encode_blob(content, is_codes=True)
    assert decode_blob_content(stored, content_digest(content)) == content
    assert len(stored) <= 1.01 * len(zstandard.ZstdCompressor(level=19).compress(content))


def test_wide_layers_of_few_bits_take_less_than_zstd_searching_for_long() -> None:
    rng = np.random.default_rng(0)
    spread = 0.8 * np.exp(0.4 * rng.normal(size=(256, 1)))  # rows of different sizes
    content = np.rint(spread * rng.standard_t(5, (256, 1024))).clip(-127, 127).astype(np.int8).tobytes()
    stored = encode_blob(content, is_codes=True)
    assert len(stored) < 0.99 * len(zstandard.ZstdCompressor(level=19).compress(content))


def test_sizes_of_all_encodings_are_told() -> None:
    content = normal_codes(3)
    assert min(encoded_sizes(content, 3)) == len(encode_blob(content, is_codes=True)) - HEADER_BYTES
    assert len(encoded_sizes(content, 3)) == len(Codec)
    assert encoded_sizes(content, 4)[Codec.PACKED] == 2000  # as a part of a layer that needs four bits


def test_the_smallest_codec_wins() -> None:
    noise = np.random.default_rng(0).bytes(4000)
    few_bits = np.random.default_rng(0).integers(-4, 4, 4000).astype(np.int8).tobytes()
    assert encode_blob(noise)[2] == Codec.RAW
    assert encode_blob(bytes(4000))[2] == Codec.RAW_ZSTD
    assert encode_blob(few_bits, is_codes=True)[2] == Codec.PACKED
    assert encode_blob(bytes(40_000), is_codes=True)[2] == Codec.PACKED_ZSTD


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_of_fewer_bits_take_no_more_than_their_bits(bits: int) -> None:
    content = normal_codes(bits)
    assert len(encode_blob(content, is_codes=True)) <= 8 + len(content) * bits / 8


def test_every_truncation_and_extension_is_refused() -> None:
    for content, is_codes in [
        (b"abc", False),
        (bytes(200), False),
        (normal_codes(4, 50), True),
        (bytes(999), True),
    ]:
        stored = encode_blob(content, is_codes=is_codes)
        digest = content_digest(content)
        for damaged in [stored[:n] for n in range(len(stored))] + [stored + b"\0", stored + stored]:
            with pytest.raises((MalformedError, DigestMismatchError)):
                decode_blob_content(damaged, digest)


def test_other_content_is_refused_by_its_digest() -> None:
    with pytest.raises(DigestMismatchError, match="digest"):
        decode_blob_content(encode_blob(b"abd"), content_digest(b"abc"))


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (header(4, 8, 0), "codec 4 is unknown; update"),
        (header(0, 8, 0, b"ZZ"), "starts with"),
        (header(0, 7, 0), "RAW and 7 bits"),
        (header(2, 8, 0), "PACKED and 8 bits"),
        (header(2, 1, 0), "PACKED and 1 bits"),
        (header(0, 8, MAX_CONTENT_BYTES + 1), "at most"),
        (header(0, 8, 5) + b"abc", "holds 3 bytes"),
        (header(2, 3, 5) + b"abc", "holds 3 bytes"),
        (header(1, 8, 5) + b"not zstd", "zstd|decompress"),
        (b"", "no blob"),
    ],
)
def test_what_the_format_page_says_is_refused(stored: bytes, message: str) -> None:
    with pytest.raises(MalformedError, match=message):
        decode_blob_content(stored, "0" * 64)


def frame(content: bytes, *, declares_size: bool = True) -> bytes:
    return zstandard.ZstdCompressor(level=19, write_content_size=declares_size).compress(content)


@pytest.mark.parametrize(
    "body",
    [
        frame(bytes(200 << 20)),  # declares 200 MB, header says 1 kB
        frame(bytes(50 << 20), declares_size=False),  # declares nothing
        frame(bytes(1000)) + b"\0",  # something behind the frame
        frame(bytes(500)) + frame(bytes(500)),  # two frames
    ],
    ids=["larger", "undeclared", "extra byte", "extra frame"],
)
def test_a_decompression_bomb_is_refused_before_memory_is_spent(body: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(MalformedError):
        decode_blob_content(header(1, 8, 1000) + body, content_digest(bytes(1000)))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@given(st.binary(max_size=100))
def test_any_bytes_are_a_blob_or_refused(stored: bytes) -> None:
    with pytest.raises((MalformedError, DigestMismatchError)):
        decode_blob_content(stored, content_digest(b"something else"))


@given(st.sampled_from(list(Codec)), st.integers(0, 9), st.integers(0, 300), st.binary(max_size=80))
def test_any_body_behind_a_likely_header_is_a_blob_or_refused(
    codec: Codec, bit_width: int, size: int, body: bytes
) -> None:
    with pytest.raises((MalformedError, DigestMismatchError)):
        decode_blob_content(header(codec, bit_width, size) + body, content_digest(b"something else"))


@pytest.mark.parametrize("digest", ["", "../" + "0" * 61, "0" * 63, "G" * 64, "A" * 64, "0" * 64 + "\n"])
def test_a_name_that_is_no_digest_is_refused(digest: str) -> None:
    with pytest.raises(MalformedError, match="not a digest"):
        decode_blob_content(encode_blob(b""), digest)
