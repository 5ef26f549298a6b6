import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantization.errors import MalformedError
from strategies.wire import (
    array_record,
    config_record,
    content_size_bytes,
    decode_bytes,
    decode_vector,
    encode_bytes,
    encode_vector,
    read_bool,
    read_int,
    read_text,
    read_texts,
)

DTYPES = ("uint8", "uint16", "uint32", "int64", "float32")


@given(st.sampled_from(DTYPES).flatmap(lambda d: hnp.arrays(d, st.integers(0, 50))))
def test_a_vector_comes_back_bit_for_bit(vector: np.ndarray) -> None:
    back = decode_vector(encode_vector(vector), "v", DTYPES, (0, 50))
    assert back.dtype == vector.dtype
    assert back.tobytes() == vector.tobytes()


@given(st.sampled_from(DTYPES).flatmap(lambda d: hnp.arrays(d, st.integers(0, 50))))
def test_flower_itself_reads_the_vectors(vector: np.ndarray) -> None:
    assert encode_vector(vector).numpy().tobytes() == vector.tobytes()


def test_reads_what_flower_itself_writes() -> None:
    vector = np.arange(7, dtype=np.int64)
    assert np.array_equal(decode_vector(Array(vector), "v", ("int64",), (7, 7)), vector)


def test_a_read_vector_cannot_be_written() -> None:
    vector = decode_vector(encode_vector(np.arange(3)), "v", ("int64",), (3, 3))
    with pytest.raises(ValueError, match="read-only"):
        vector[0] = 1


def test_bytes_come_back() -> None:
    assert decode_bytes(encode_bytes(b"\x00ab"), "b", 3) == b"\x00ab"


def _array(**changes: object) -> Array:
    good = encode_vector(np.arange(4, dtype=np.int64))
    fields = {"dtype": good.dtype, "shape": good.shape, "stype": good.stype, "data": good.data}
    return Array(**(fields | changes))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (None, "v is missing"),
        (_array(dtype="float64"), "has type 'float64', expected int64"),
        (_array(dtype="object"), "has type 'object'"),
        (_array(shape=(2, 2)), "must be one vector"),
        (_array(shape=()), "must be one vector"),
        (_array(stype="torch.tensor"), "must be one vector"),
        (_array(shape=(5,)), "holds .* bytes that are not 5 elements"),
        (_array(shape=(1 << 60,)), "elements, expected 0 to 9"),
        (_array(shape=(-1,)), "has -1 elements"),
        (_array(data=b""), "holds 0 bytes"),
        (_array(data=_array().data[:-1]), "holds"),
        (_array(data=_array().data + b"\x00"), "holds"),
        (_array(data=b"\x93NUMPY\x01\x00" + _array().data[8:].replace(b"<i8", b"|O8")), "holds"),
    ],
)
def test_malformed_vectors_are_refused(array: Array | None, message: str) -> None:
    with pytest.raises(MalformedError, match=message):
        decode_vector(array, "v", ("int64",), (0, 9))


def test_records_of_another_kind_are_refused() -> None:
    content = RecordDict({"a": ArrayRecord(), "c": ConfigRecord()})
    with pytest.raises(MalformedError, match="'c' is missing or holds no arrays"):
        array_record(content, "c")
    with pytest.raises(MalformedError, match="'a' is missing or holds no settings"):
        config_record(content, "a")


@pytest.mark.parametrize("value", [True, 1.0, "1", -1, 11, None, [1]])
def test_a_whole_number_is_of_its_type_and_range(value: object) -> None:
    with pytest.raises(MalformedError, match="k must be a whole number from 0 to 10"):
        read_int({"k": value}, "k", 0, 10)


@pytest.mark.parametrize("value", [1, "true", None])
def test_a_truth_value_is_of_its_type(value: object) -> None:
    with pytest.raises(MalformedError, match="k must be true or false"):
        read_bool({"k": value}, "k")


@pytest.mark.parametrize("value", [1, "abcd", b"abc", None])
def test_a_text_is_of_its_type_and_length(value: object) -> None:
    with pytest.raises(MalformedError, match="k must be a text of at most 3"):
        read_text({"k": value}, "k", 3)


@pytest.mark.parametrize("value", ["a", ["a", "a"], ["abcd"], ["a", "b", "c"], [1], None])
def test_a_list_of_texts_is_bounded_and_without_repeats(value: object) -> None:
    with pytest.raises(MalformedError, match="k "):
        read_texts({"k": value}, "k", 2, 3)


def test_size_counts_arrays_and_settings() -> None:
    content = RecordDict(
        {"a": ArrayRecord({"x": encode_bytes(bytes(1000))}), "c": ConfigRecord({"s": "abc", "n": [1, 2]})}
    )
    assert 1000 < content_size_bytes(content) < 1200
    assert content_size_bytes(RecordDict()) == 0
