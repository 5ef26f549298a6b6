import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damaged_archives import damaged_lzma
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantization.errors import InvalidDataError
from simulation import npz
from simulation.npz import read_npz


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array), allow_pickle=True)
    return stream.getvalue()


def header(text: str) -> bytes:
    body = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


def write(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def refusal(path: Path, *required: str, **options: Any) -> str:
    with pytest.raises(InvalidDataError) as caught:
        read_npz(path, required or ("x",), **options)
    told = str(caught.value)
    assert "\n" not in told
    assert str(path) in told
    return told


ARRAYS = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int16, np.uint8, np.bool_, "<U3", ">f4", "S2"]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


@settings(deadline=None, max_examples=60)
@given(ARRAYS, st.booleans(), st.booleans())
def test_what_numpy_saves_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, array: Any, is_fortran: bool, is_compressed: bool
) -> None:
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    stored = np.asfortranarray(array) if is_fortran else array
    (np.savez_compressed if is_compressed else np.savez)(path, x=stored)
    read = read_npz(path, ("x",))["x"]
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


def test_an_optional_array_may_be_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", x=npy([1.0]))
    assert set(read_npz(path, ("x",), ("y",))) == {"x"}


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", x=npy(np.array([{"a": 1}, None], object)))
    assert "array 'x' holds pickled Python objects" in refusal(path)


def test_records_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", x=npy(np.zeros(2, [("a", "f4"), ("b", "i4")])))
    assert "save it as a plain array of numbers" in refusal(path)


def test_a_huge_declared_shape_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000, 1000000), }"
    path = write(tmp_path / "a.npz", x=header(text) + b"1234")
    assert "declares shape (1000000, 1000000, 1000000)" in refusal(path)


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.npz", x=npy(np.zeros(100_000)))
    assert path.stat().st_size < 5_000
    monkeypatch.setattr(npz, "MAX_TOTAL_BYTES", 100_000)
    assert "unpacks to 800128 bytes; at most 100000 are read" in refusal(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not numpy at all",
        b"\x93NUMPY\x09\x00",
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }") + b"1234",
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }") + b"12345678",
        header("{'descr': 'nonsense', 'fortran_order': False, 'shape': (1,), }") + b"1234",
        header("__import__('os').system('true')"),
        header("(" * 500),
    ],
)
def test_an_entry_that_is_no_whole_array_is_refused(tmp_path: Path, content: bytes) -> None:
    assert "'x'" in refusal(write(tmp_path / "a.npz", x=content))


def test_a_missing_array_is_named_with_those_there_are(tmp_path: Path) -> None:
    told = refusal(write(tmp_path / "a.npz", inputs=npy([1.0])))
    assert "has no array 'x', only 'inputs'" in told
    assert "numpy.savez(x=...)" in told


def test_an_unknown_array_is_named_with_those_known(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", x=npy([1.0]), labels=npy([1]))
    assert "unknown array 'labels'; known: 'x', 'y'" in refusal(path, "x", optional=("y",))
    assert set(read_npz(path, ("x",), is_strict=False)) == {"x"}


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write(path, x=npy([1.0]))
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings(action="ignore"):
        archive.writestr("x.npy", npy([2.0]))
    assert "each once" in refusal(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "missing.npz")
    assert "is a folder" in refusal(tmp_path)


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(npy([1.0]))
    assert "is not an npz file" in refusal(path)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_damage_anywhere_is_refused_or_does_no_harm(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, x=np.arange(50, dtype=np.float32).reshape(5, 10), y=np.arange(5))
    content = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        read_npz(path, ("x",), ("y",))
    except InvalidDataError as error:
        assert str(path) in str(error)  # noqa: PT017 - no error is as good


def test_an_array_packed_by_a_method_whose_errors_are_its_own_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(damaged_lzma("x"))
    assert "is damaged" in refusal(path)
