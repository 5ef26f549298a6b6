import numpy as np
import pytest

from quantization.errors import MalformedError
from quantization.im2col import ConvWindow, sample_columns, sampling_step

ALL = 1 << 30


@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((2, 4, 7, 5), ConvWindow((3, 3), (1, 1), (1, 1, 1, 1), (1, 1))),
        ((2, 4, 9, 8), ConvWindow((3, 2), (2, 3), (1, 0, 2, 1), (2, 1), groups=2)),
        ((2, 4, 6, 6), ConvWindow((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), groups=4)),
        ((3, 4, 20), ConvWindow((5,), (2,), (2, 2), (1,))),
        ((3, 4, 20), ConvWindow((3,), (1,), (0, 4), (4,), groups=4)),
    ],
)
def test_weights_times_columns_are_the_convolution(shape: tuple[int, ...], window: ConvWindow) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape)
    weight = rng.normal(size=(8, shape[1] // window.groups, *window.kernel))
    axes = len(window.kernel)
    pads = [p for axis in reversed(range(axes)) for p in (window.pads[axis], window.pads[axis + axes])]
    padded = torch.nn.functional.pad(torch.from_numpy(x), pads)
    convolution = torch.nn.functional.conv1d if axes == 1 else torch.nn.functional.conv2d
    expected = convolution(
        padded,
        torch.from_numpy(weight),
        stride=window.strides,
        dilation=window.dilations,
        groups=window.groups,
    ).numpy()
    columns = sample_columns(x, window, ALL)
    rows = weight.reshape(window.groups, 8 // window.groups, -1)
    outputs = np.concatenate(np.einsum("grk,gpk->grp", rows, columns))
    np.testing.assert_allclose(outputs, np.moveaxis(expected, 1, 0).reshape(8, -1), atol=1e-12)


def test_sample_is_bounded_and_reaches_every_row_and_column_of_an_image() -> None:
    x = np.indices((32, 32)).reshape(1, 2, 32, 32).astype(np.float32)
    columns = sample_columns(x, ConvWindow((1, 1), (1, 1), (0, 0, 0, 0), (1, 1)), 100)
    assert 50 < columns.shape[1] <= 100
    assert {*columns[0, :, 0]} == {*range(32)}
    assert {*columns[0, :, 1]} == {*range(32)}


def test_matrix_input_gives_its_rows() -> None:
    x = np.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(sample_columns(x, None, ALL), x.reshape(1, 6, 4))


@pytest.mark.parametrize("limit", [1, 7, 100, 5000])
def test_step_keeps_the_limit_and_divides_no_axis(limit: int) -> None:
    step = sampling_step(4096, limit, (32, 35))
    assert -(-4096 // step) <= limit
    assert step == 1 or (32 % step and 35 % step)


def test_input_that_does_not_fit_the_kernel_is_refused() -> None:
    window = ConvWindow((5, 5), (1, 1), (0, 0, 0, 0), (1, 1))
    with pytest.raises(MalformedError, match="smaller than the kernel"):
        sample_columns(np.zeros((1, 3, 4, 4), np.float32), window, 10)
    with pytest.raises(MalformedError):
        sample_columns(np.zeros((1, 3, 40), np.float32), window, 10)
