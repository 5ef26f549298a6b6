import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization import packing
from quantization.errors import MalformedError
from quantization.packing import needed_bit_width, pack, packed_size_bytes, unpack

expand = pytest.importorskip("quantization._expand", reason="no compiler when quantfleet was installed")


@pytest.fixture(params=["compiled", "numpy"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Codes are expanded by the compiled module, or without it."""
    if request.param == "numpy":
        monkeypatch.setattr(packing, "expand_into", None)
    return str(request.param)


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
    if bit_width < 8:
        source = np.frombuffer(packed, np.uint8)
        np.testing.assert_array_equal(packing._unpack_words(source, bit_width)[: codes.size], codes)


@pytest.mark.parametrize("bit_width", range(2, 9))
@pytest.mark.parametrize("count", [65535, 65536, 65537, 200_003])
@pytest.mark.usefixtures("either_way")
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


@pytest.mark.parametrize("bit_width", range(2, 8))
def test_every_count_near_a_word_is_expanded_and_no_byte_behind(bit_width: int) -> None:
    half = 1 << (bit_width - 1)
    codes = np.random.default_rng(bit_width).integers(-half, half, 70).astype(np.int8)
    for count in range(len(codes)):
        target = np.full(count + 3, 77, np.int8)
        expand.expand_into(pack(codes[:count], bit_width), bit_width, target[:count])
        np.testing.assert_array_equal(target, [*codes[:count], 77, 77, 77])


@pytest.mark.parametrize(
    ("source", "bit_width", "target"),
    [
        (b"\0", 3, bytearray(3)),
        (b"\0\0", 3, bytearray(2)),
        (b"", 3, bytearray(1)),
        (b"\0", 1, bytearray(8)),
        (b"\0", 8, bytearray(1)),
        (b"\0", -1, bytearray(1)),
    ],
)
def test_the_compiled_module_refuses_sizes_that_do_not_fit(
    source: bytes, bit_width: int, target: bytearray
) -> None:
    with pytest.raises(ValueError, match="cannot hold"):
        expand.expand_into(source, bit_width, target)


def test_the_compiled_module_writes_to_nothing_that_is_read_only() -> None:
    with pytest.raises(TypeError):
        expand.expand_into(b"\0", 2, b"\0\0\0\0")


@pytest.mark.parametrize(("data", "count"), [(b"", 1), (b"\0\0", 1), (b"\0", 3), (b"\0", -1)])
@pytest.mark.usefixtures("either_way")
def test_data_of_another_length_is_refused(data: bytes, count: int) -> None:
    with pytest.raises(MalformedError, match="cannot hold"):
        unpack(data, 3, count)


def test_filling_bits_that_are_not_zero_are_refused() -> None:
    with pytest.raises(MalformedError, match="not zero"):
        unpack(b"\x80", 3, 2)
