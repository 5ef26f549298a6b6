import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.affine import params_from_range
from quantization.errors import MalformedError, UpdateRejectedError
from quantization.self_testing import ROWS, TOLERANCE, SelfTest, known_inputs

MODEL = "ab" * 32
GRID = params_from_range(-2.0, 2.0)
OUTPUTS = np.linspace(-3.0, 5.0, 12, dtype=np.float32).reshape(4, 3)
TEST = SelfTest.of_outputs(GRID, OUTPUTS)


def test_inputs_are_the_same_wherever_they_are_made() -> None:
    inputs = known_inputs(MODEL, (None, 1, 2, 3), GRID)
    assert (inputs.shape, inputs.dtype) == ((ROWS, 1, 2, 3), np.float32)
    # Written down once: devices that have other software must make the same.
    codes = np.rint(inputs.ravel()[:6] / GRID.scale).astype(int) + int(GRID.zero_point)
    assert codes.tolist() == [245, 210, 237, 102, 87, 54]
    assert not np.array_equal(inputs, known_inputs("cd" * 32, (None, 1, 2, 3), GRID))


def test_inputs_fill_the_grid_and_sizes_that_are_open_are_one() -> None:
    inputs = known_inputs(MODEL, (None, 3, None, 500), GRID)
    assert inputs.shape == (ROWS, 3, 1, 500)
    assert inputs.min() < -1.9
    assert inputs.max() > 1.9
    assert abs(inputs.mean()) < 0.1


SPREAD = np.float32(OUTPUTS.std())


def test_a_graph_that_gives_what_it_must_passes() -> None:
    TEST.check(OUTPUTS)
    TEST.check(OUTPUTS + SPREAD * np.float32(TOLERANCE * 0.9) * np.float32([[1], [-1], [1], [-1]]))


def test_outputs_that_do_not_vary_may_differ_by_one_code() -> None:
    test = SelfTest(GRID, GRID, np.full((2, 3), 7, np.uint8), 0.0)
    outputs = (np.full((2, 3), 7, np.float32) - np.float32(GRID.zero_point)) * GRID.scale
    test.check(outputs + GRID.scale)
    with pytest.raises(UpdateRejectedError):
        test.check(outputs + 2 * GRID.scale)


@pytest.mark.parametrize(
    "outputs",
    [
        OUTPUTS + SPREAD * np.float32(TOLERANCE * 1.1) * np.float32([[1], [-1], [1], [-1]]),
        OUTPUTS[::-1],
        OUTPUTS[:3],
        OUTPUTS.astype(np.float64),
        np.where(OUTPUTS > 4, np.float32(np.nan), OUTPUTS),
        OUTPUTS[:, :2],
        np.float32(0.0),
    ],
)
def test_a_graph_that_gives_something_else_is_refused(outputs: np.ndarray) -> None:
    with pytest.raises(UpdateRejectedError, match="self-test gave"):
        TEST.check(outputs)


@given(st.tuples(st.integers(1, 64), st.integers(1, 9)), st.floats(0.1, 1e3), st.integers(0, 255), st.data())
def test_the_bytes_say_all_of_it(
    shape: tuple[int, int], bound: float, tolerance: int, data: st.DataObject
) -> None:
    rows, values = shape
    codes = np.frombuffer(data.draw(st.binary(min_size=rows * values, max_size=rows * values)), np.uint8)
    test = SelfTest(GRID, params_from_range(-bound, 3.0), codes.reshape(rows, values), tolerance / 256)
    again = SelfTest.from_content(test.to_content())
    assert again.to_content() == test.to_content()
    np.testing.assert_array_equal(again.codes, test.codes)
    assert (again.tolerance, again.output_params.scale) == (tolerance / 256, test.output_params.scale)


@given(st.binary(max_size=60))
def test_bytes_that_are_no_self_test_are_refused(data: bytes) -> None:
    with contextlib.suppress(MalformedError):
        assert SelfTest.from_content(data).to_content() == data


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d[:16], lambda d: d[:-1], lambda d: bytes(4) + d[4:], lambda d: b"\0\0\xc0\x7f" + d[4:],
        lambda d: d[:11] + b"\1" + d[12:], lambda d: d[:12] + bytes(4) + d[16:],
        lambda d: d[:12] + b"\x41\0\0\0" + bytes(65),
    ],
)  # fmt: skip
def test_bytes_with_one_thing_wrong_are_refused(change: object) -> None:
    with pytest.raises(MalformedError):
        SelfTest.from_content(change(TEST.to_content()))  # type: ignore[operator]
