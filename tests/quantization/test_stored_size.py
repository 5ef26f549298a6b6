import numpy as np
import pytest

from quantization.blob import encode_blob
from quantization.stored_size import EXACT_CODES, estimated_size_bytes, stored_size_bytes


def _codes(rows: int, columns: int, step: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    weights = rng.standard_t(5, (rows, columns)) * np.exp(0.4 * rng.normal(size=(rows, 1)))
    return np.rint(weights / step).clip(-127, 127).astype(np.int8)


def test_size_is_that_of_the_blob_and_of_the_scales() -> None:
    codes = _codes(64, 144, 0.5)
    assert stored_size_bytes(codes) == len(encode_blob(codes.tobytes(), is_codes=True)) + 4 * 64


def test_layers_that_encode_quickly_are_sized_exactly() -> None:
    codes = _codes(EXACT_CODES // 256, 256, 0.8)
    assert estimated_size_bytes(codes) == stored_size_bytes(codes)


@pytest.mark.parametrize("step", [0.15, 0.5, 1.0, 1.6])
def test_estimate_of_a_wide_layer_is_close_to_its_size(step: float) -> None:
    codes = _codes(384, 1024, step)
    assert estimated_size_bytes(codes) == pytest.approx(stored_size_bytes(codes), rel=0.05)


def test_one_outlier_does_not_mislead_the_estimate() -> None:
    codes = _codes(384, 1024, 1.0)
    codes[200, 500] = 127  # needs eight bits; the sample need not meet it
    assert estimated_size_bytes(codes) == pytest.approx(stored_size_bytes(codes), rel=0.05)


def test_wide_layer_of_zeros_has_a_size() -> None:
    codes = np.zeros((512, 512), np.int8)
    assert 4 * 512 < estimated_size_bytes(codes) < 4 * 512 + 4096
