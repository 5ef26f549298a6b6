import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.transport import Payload
from client.verifying import ArrivingContent
from quantization.blob import HEADER_BYTES, content_digest, encode_blob
from quantization.delta import Encoding

CONTENT = np.random.default_rng(0).bytes(300)
CODES = bytes(300)  # zstd makes them smaller


def payload_of(content: bytes, stored: bytes) -> Payload:
    return Payload(content_digest(content), Encoding.FULL, "", len(stored), content_digest(stored))


def came(
    stored: bytes, payload: Payload, size_bytes: int, *, cuts: list[int] | None = None, is_exact: bool = True
) -> bool:
    """Say whether a payload that comes in pieces is found right."""
    arriving = ArrivingContent(payload, size_bytes, is_exact=is_exact)
    for start, end in itertools.pairwise([0, *sorted(cuts or []), len(stored)]):
        arriving.take(memoryview(stored)[start:end])
    return arriving.is_right()


@given(content=st.binary(max_size=100), cuts=st.lists(st.integers(0, 100), max_size=20))
def test_content_that_is_stored_as_it_is_is_right_however_it_comes(content: bytes, cuts: list[int]) -> None:
    stored = encode_blob(content)
    within = [min(cut, len(stored)) for cut in cuts]
    is_plain = len(stored) == HEADER_BYTES + len(content)
    assert came(stored, payload_of(content, stored), len(content), cuts=within) is is_plain


def test_encoded_content_is_for_others_to_judge() -> None:
    for is_codes in (False, True):
        stored = encode_blob(CODES, is_codes=is_codes)
        assert not came(stored, payload_of(CODES, stored), len(CODES))


@pytest.mark.parametrize("place", [*range(HEADER_BYTES + 2), 150, 307])
def test_no_bit_may_differ(place: int) -> None:
    stored = encode_blob(CONTENT)
    damaged = bytearray(stored)
    damaged[place] ^= 1
    assert came(stored, payload_of(CONTENT, stored), len(CONTENT))
    assert not came(bytes(damaged), payload_of(CONTENT, stored), len(CONTENT))


def test_nothing_may_lack_or_follow() -> None:
    stored = encode_blob(CONTENT)
    payload = payload_of(CONTENT, stored)
    for wrong in (b"", stored[:5], stored[:HEADER_BYTES], stored[:-1], stored + b"x"):
        assert not came(wrong, payload, len(CONTENT))
        assert not came(wrong, payload_of(CONTENT, wrong + bytes(8)), len(CONTENT))


def test_the_size_is_what_is_expected() -> None:
    stored = encode_blob(CONTENT)
    payload = payload_of(CONTENT, stored)
    for size, is_exact, is_right in (
        (299, True, False),
        (301, True, False),
        (299, False, False),
        (301, False, True),
    ):
        assert came(stored, payload, size, is_exact=is_exact) is is_right
