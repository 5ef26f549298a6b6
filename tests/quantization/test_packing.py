import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.errors import MalformedError
from quantization.packing import needed_bit_width, pack, packed_size_bytes, unpack


@st.composite
def codes_and_width(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    bit_width = draw(st.integers(2, 8))
    half = 1 << (bit_width - 1)
    codes = draw(st.lists(st.integers(-half, half - 1), max_size=200))
    return np.array(codes, np.int8), bit_width


@given(codes_and_width())
def test_unpack_inverts_pack(case: tuple[np.ndarray, int]) -> None:
    codes, bit_width = case
    packed = pack(codes, bit_width)
    assert len(packed) == packed_size_bytes(codes.size, bit_width)
    np.testing.assert_array_equal(unpack(packed, bit_width, codes.size), codes)


@pytest.mark.parametrize("bit_width", range(2, 9))
@pytest.mark.parametrize("count", [65535, 65536, 65537, 200_003])
def test_tensors_of_more_than_one_block_are_packed_without_a_seam(bit_width: int, count: int) -> None:
    half = 1 << (bit_width - 1)
    codes = np.random.default_rng(bit_width).integers(-half, half, count).astype(np.int8)
    packed = pack(codes, bit_width)
    np.testing.assert_array_equal(unpack(packed, bit_width, count), codes)
    number = int.from_bytes(packed, "little")  # the whole as one integer, as the format page defines it
    for i in (0, 1, 65534, count - 1):
        assert (number >> (i * bit_width)) & ((1 << bit_width) - 1) == int(codes[i]) & ((1 << bit_width) - 1)


def test_bits_lie_where_the_format_page_says() -> None:
    assert pack(np.array([1, -1, 2, -4], np.int8), 3) == bytes([0b10_111_001, 0b1000])


@given(codes_and_width())
def test_needed_bit_width_is_the_least_that_holds_every_code(case: tuple[np.ndarray, int]) -> None:
    codes, _ = case
    needed = needed_bit_width(codes)
    fits = [b for b in range(2, 9) if all(-(1 << (b - 1)) <= c < 1 << (b - 1) for c in codes.tolist())]
    assert needed == fits[0]


def test_codes_that_need_more_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="4 bits"):
        pack(np.array([4], np.int8), 3)


@pytest.mark.parametrize(("data", "count"), [(b"", 1), (b"\0\0", 1), (b"\0", 3), (b"\0", -1)])
def test_data_of_another_length_is_refused(data: bytes, count: int) -> None:
    with pytest.raises(MalformedError, match="cannot hold"):
        unpack(data, 3, count)


def test_filling_bits_that_are_not_zero_are_refused() -> None:
    with pytest.raises(MalformedError, match="not zero"):
        unpack(b"\x80", 3, 2)
