import gc
import hashlib
from pathlib import Path

import numpy as np
import pytest

from protos.quantfleet.v1 import update_pb2 as pb
from quantization.blob import content_digest, encode_blob
from quantization.delta import Encoding
from quantization.errors import NotFoundError
from server.blob_store import BlobStore
from server.delta_store import DeltaStore
from server.payloads import CHUNK_BYTES, Payload, PayloadSource

SIZE = 10_000
CONTENTS = [np.random.default_rng(0).bytes(SIZE)[:-1] + bytes([k]) for k in range(4)]
NAMES = [content_digest(content) for content in CONTENTS]
ALL = frozenset(Encoding)


def source(folder: Path, cache_bytes: int = 1 << 20) -> PayloadSource:
    blobs = BlobStore(folder / "blobs")
    for name, content in zip(NAMES, CONTENTS, strict=True):
        blobs.put(name, encode_blob(content))
    return PayloadSource(blobs, DeltaStore(blobs, folder / "deltas"), cache_bytes)


def data_of(payload: Payload, start: int) -> bytes:
    """Return what a device makes of the messages, checked."""
    messages = [pb.BlobChunk.FromString(message) for message in payload.messages(start)]
    assert messages[0].payload == payload.head
    data, size = b"", payload.head.total_bytes
    for message in messages:
        assert message.offset_bytes == start + len(data)
        assert len(message.data) <= CHUNK_BYTES
        assert message.data or start == size
        data += message.data
    assert start + len(data) == size
    assert not any(message.HasField("payload") for message in messages[1:])
    return data


def test_a_payload_can_be_sent_from_any_offset() -> None:
    for size in (8, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES):
        data = np.random.default_rng(size).bytes(size)
        payload = Payload.of(NAMES[0], Encoding.FULL, "", data)
        assert payload.size_bytes == size
        for start in {0, 1, 7, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, size - 1, size}:
            if start <= size:
                assert data_of(payload, start) == data[start:]


def test_a_full_blob_is_sent_as_stored(tmp_path: Path) -> None:
    payload = source(tmp_path).full(NAMES[0])
    assert (payload.head.digest.hex(), payload.encoding, payload.head.base_digest) == (
        NAMES[0],
        Encoding.FULL,
        b"",
    )
    assert data_of(payload, 0) == encode_blob(CONTENTS[0])
    assert payload.head.payload_digest == hashlib.sha256(data_of(payload, 0)).digest()


def test_the_smallest_accepted_encoding_is_chosen(tmp_path: Path) -> None:
    payloads = source(tmp_path)
    payload = payloads.smallest(NAMES[1], NAMES[0], ALL)
    assert (payload.encoding, payload.head.base_digest.hex()) == (Encoding.INT8_SUB_ZSTD, NAMES[0])
    assert payload.size_bytes < 100
    assert payloads.smallest(NAMES[1], NAMES[0], frozenset({Encoding.BSDIFF})).encoding == Encoding.FULL
    assert payloads.smallest(NAMES[1], NAMES[0], frozenset({Encoding.FULL})).encoding == Encoding.FULL


def test_all_streams_share_one_copy(tmp_path: Path) -> None:
    payloads = source(tmp_path)
    assert payloads.known(NAMES[0], None, frozenset()) is None
    first = payloads.full(NAMES[0])
    assert payloads.full(NAMES[0]) is first
    assert payloads.known(NAMES[0], None, frozenset()) is first
    small = payloads.smallest(NAMES[1], NAMES[0], ALL)
    assert payloads.known(NAMES[1], NAMES[0], ALL) is small
    assert payloads.known(NAMES[1], NAMES[2], ALL) is None


def test_memory_is_bounded_and_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    payloads = source(tmp_path, cache_bytes=2 * len(encode_blob(CONTENTS[0])))
    for name in (NAMES[0], NAMES[1], NAMES[0], NAMES[2]):
        payloads.full(name)
    gc.collect()
    held = [payloads.known(name, None, frozenset()) is not None for name in NAMES]
    assert held == [True, False, True, False]


def test_what_is_too_large_to_keep_is_shared_while_it_is_in_use(tmp_path: Path) -> None:
    payloads = source(tmp_path, cache_bytes=10)
    in_use = payloads.full(NAMES[0])
    assert payloads.full(NAMES[0]) is in_use
    del in_use
    gc.collect()
    assert payloads.known(NAMES[0], None, frozenset()) is None


def test_what_is_not_stored_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        source(tmp_path).full("0" * 64)
