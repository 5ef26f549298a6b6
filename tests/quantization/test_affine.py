"""The affine map, beside ONNX Runtime's and Jacob et al.'s."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from quantization.affine import (
    AffineParams,
    dequantize,
    fake_quantize,
    params_from_range,
    quantize,
    range_grids,
    sqnr_db,
    symmetric_weight_params,
)
from quantization.errors import ConfigurationError

FLOATS = st.floats(width=32, allow_nan=False)
BOUNDS = st.floats(min_value=-(2.0**122), max_value=2.0**122, width=32)


def run_onnx(op: str, x: np.ndarray, params: AffineParams, axis: int = 0) -> np.ndarray:
    """Return what ONNX Runtime's own kernel makes of `x`."""
    code_type = TensorProto.INT8 if params.is_signed else TensorProto.UINT8
    types = [TensorProto.FLOAT, code_type]
    if op == "DequantizeLinear":
        types.reverse()
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "scale", "zero_point"], ["y"], axis=axis)],
        "g",
        [helper.make_tensor_value_info("x", types[0], x.shape)],
        [helper.make_tensor_value_info("y", types[1], x.shape)],
        [
            numpy_helper.from_array(np.squeeze(params.scale), "scale"),
            numpy_helper.from_array(np.squeeze(params.zero_point), "zero_point"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def hard_values(scale: float, seed: int) -> np.ndarray:
    """Values where rounding, ties, saturation and denormals could differ; a length that leaves a SIMD tail."""
    rng = np.random.default_rng(seed)
    ties = (np.arange(-300, 300) + 0.5) * scale
    beside = np.concatenate([np.nextafter(ties.astype(np.float32), np.float32(s)) for s in (-np.inf, np.inf)])
    extremes = [0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38, np.inf, -np.inf]
    spread = rng.standard_normal(1001) * scale * 200
    return np.concatenate([ties, beside, extremes, spread]).astype(np.float32)


@pytest.mark.parametrize(
    "bounds", [(-1.0, 3.0), (0.0, 6.0), (-5.0, 0.0), (-1e-3, 1e3), (0.0, 1e-30), (-7e20, 3e20)]
)
def test_codes_and_values_equal_onnx_runtime_bit_for_bit(bounds: tuple[float, float]) -> None:
    params = params_from_range(*bounds)
    x = hard_values(float(params.scale), seed=1)
    codes = quantize(x, params)
    np.testing.assert_array_equal(codes, run_onnx("QuantizeLinear", x, params))
    values = dequantize(codes, params)
    np.testing.assert_array_equal(
        values.view(np.uint32), run_onnx("DequantizeLinear", codes, params).view(np.uint32)
    )


@pytest.mark.parametrize("axis", [0, 1])
def test_codes_per_channel_equal_onnx_runtime(axis: int) -> None:
    weights = (np.random.default_rng(2).standard_normal((7, 5, 3, 3)) * 0.1).astype(np.float32)
    params = symmetric_weight_params(weights, axis)
    codes = quantize(weights, params)
    np.testing.assert_array_equal(codes, run_onnx("QuantizeLinear", weights, params, axis))
    back = run_onnx("DequantizeLinear", codes, params, axis)
    np.testing.assert_array_equal(dequantize(codes, params), back)


@given(BOUNDS, BOUNDS, st.integers(2, 8))
def test_zero_is_a_code_and_comes_back_exactly(a: float, b: float, bit_width: int) -> None:
    params = params_from_range(min(a, b), max(a, b), bit_width)
    zero = np.zeros(1, np.float32)
    assert quantize(zero, params)[0] == params.zero_point
    assert fake_quantize(zero, params)[0] == 0.0


@given(BOUNDS, BOUNDS, st.lists(FLOATS, min_size=1, max_size=20), st.integers(2, 8))
def test_error_is_at_most_half_a_step_inside_and_values_stay_finite(
    a: float, b: float, values: list[float], bit_width: int
) -> None:
    params = params_from_range(min(a, b), max(a, b), bit_width)
    x = np.array(values, np.float32)
    scale, zero_point = float(params.scale), int(params.zero_point)
    y = fake_quantize(x, params).astype(np.float64)
    assert np.isfinite(y).all()
    grid_lo, grid_hi = -zero_point * scale, (params.qmax - zero_point) * scale
    inside = (x >= grid_lo) & (x <= grid_hi)
    assert np.all(np.abs(y - x)[inside] <= scale * 0.5000002 + np.abs(x[inside]) * 1e-6)


@given(st.lists(FLOATS, min_size=1, max_size=50), st.integers(2, 8))
def test_codes_stay_within_the_bit_width_and_in_order(values: list[float], bit_width: int) -> None:
    params = params_from_range(-1.5, 2.5, bit_width)
    codes = quantize(np.sort(np.array(values, np.float32)), params)
    assert codes.dtype == np.uint8
    assert codes.max() <= params.qmax == 2**bit_width - 1
    assert np.all(np.diff(codes.astype(int)) >= 0)


def test_ties_round_to_even() -> None:
    params = params_from_range(0.0, 255.0)
    assert quantize(np.array([0.5, 1.5, 2.5, 3.5], np.float32), params).tolist() == [0, 2, 2, 4]


def test_known_range_gives_known_parameters() -> None:
    params = params_from_range(-1.0, 3.0)
    assert params.scale == np.float32(4 / 255)
    assert params.zero_point == 64
    assert params.scale.shape == params.zero_point.shape == ()


def test_range_is_widened_to_hold_zero() -> None:
    assert params_from_range(2.0, 4.0).scale == np.float32(4 / 255)
    assert params_from_range(-4.0, -2.0).zero_point == 255


def test_range_of_nothing_copes() -> None:
    params = params_from_range(0.0, 0.0)
    assert (float(params.scale), int(params.zero_point)) == (1.0, 0)
    assert fake_quantize(np.zeros(3, np.float32), params).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("bit_width", range(2, 9))
@pytest.mark.parametrize("bounds", [(-3.4e38, 3.4e38), (0.0, 3.4e38), (-1e-42, 1e-44)])
def test_extreme_ranges_never_give_infinity(bounds: tuple[float, float], bit_width: int) -> None:
    params = params_from_range(*bounds, bit_width)
    x = np.array([*bounds, 0.0, np.inf, -np.inf], np.float32)
    assert np.isfinite(fake_quantize(x, params)).all()
    assert params.scale >= np.finfo(np.float32).tiny


@pytest.mark.parametrize("bounds", [(np.nan, 1.0), (0.0, np.inf), (1.0, -1.0)])
def test_impossible_ranges_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(ConfigurationError, match="finite bounds"):
        params_from_range(*bounds)


@pytest.mark.parametrize("bit_width", [1, 9])
def test_impossible_bit_widths_are_refused(bit_width: int) -> None:
    with pytest.raises(ConfigurationError, match="bit_width"):
        params_from_range(0.0, 1.0, bit_width)


def test_many_grids_equal_one_by_one() -> None:
    lo, hi = np.array([-1.0, 0.0, 0.0, -3e38]), np.array([3.0, 6.0, 0.0, 1e-3])
    scales, zero_points = range_grids(lo, hi, 8)
    for i, bounds in enumerate(zip(lo, hi, strict=True)):
        params = params_from_range(*bounds)
        assert (float(params.scale), int(params.zero_point)) == (scales[i], zero_points[i])


@pytest.mark.parametrize("bit_width", [2, 4, 7, 8])
def test_weight_scale_puts_the_greatest_magnitude_on_the_greatest_code(bit_width: int) -> None:
    weights = np.random.default_rng(3).standard_normal((6, 4, 3, 3)).astype(np.float32)
    params = symmetric_weight_params(weights, 0, bit_width)
    codes = quantize(weights, params)
    assert params.scale.shape == (6, 1, 1, 1)
    assert codes.dtype == np.int8
    assert np.abs(codes.astype(int)).max(axis=(1, 2, 3)).tolist() == [2 ** (bit_width - 1) - 1] * 6
    assert not params.zero_point.any()


def test_channel_of_zeros_has_scale_one() -> None:
    weights = np.array([[0.0, 0.0], [0.5, -1.0]], np.float32)
    params = symmetric_weight_params(weights, 0)
    assert params.scale.ravel().tolist() == [1.0, float(np.float32(1 / 127))]
    assert quantize(weights, params)[0].tolist() == [0, 0]


def test_weights_without_an_axis_share_one_scale() -> None:
    params = symmetric_weight_params(np.array([[-2.54, 1.0]], np.float32), None)
    assert params.scale.shape == ()
    assert params.scale == np.float32(2.54) / np.float32(127)


def test_impossible_weights_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="finite"):
        symmetric_weight_params(np.array([1.0, np.nan], np.float32), 0)
    with pytest.raises(ConfigurationError, match="no axis 2"):
        symmetric_weight_params(np.zeros((2, 2), np.float32), 2)


def test_impossible_parameters_are_refused() -> None:
    one, zero = np.float32(1).reshape(()), np.zeros((), np.uint8)
    for scale, zero_point in [(one * 0, zero), (np.full((2,), np.nan, np.float32), np.zeros(2, np.uint8))]:
        with pytest.raises(ConfigurationError, match="scale"):
            AffineParams(np.asarray(scale), zero_point)
    with pytest.raises(ConfigurationError, match="zero_point"):
        AffineParams(np.asarray(one), np.zeros((), np.int8))
    with pytest.raises(ConfigurationError, match="zero_point"):
        AffineParams(np.asarray(one), np.full((), 16, np.uint8), bit_width=4)


def test_sqnr_of_a_uniform_signal_gains_six_decibels_a_bit() -> None:
    x = np.random.default_rng(4).random(200_000).astype(np.float32)
    sqnr = [sqnr_db(x, fake_quantize(x, params_from_range(0.0, 1.0, b))) for b in range(4, 9)]
    np.testing.assert_allclose(np.diff(sqnr), 20 * np.log10(2), atol=0.4)


def test_sqnr_of_equal_and_of_silent_signals() -> None:
    assert sqnr_db(np.ones(2, np.float32), np.ones(2, np.float32)) == np.inf
    assert sqnr_db(np.zeros(2, np.float32), np.ones(2, np.float32)) == -np.inf
