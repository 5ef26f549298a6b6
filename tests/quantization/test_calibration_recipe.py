import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.arrays import FloatArray, IntArray
from quantization.calibration_recipe import (
    DEFAULT_RECIPE,
    CalibrationRecipe,
    Strategy,
    prepare_inputs,
    prepared_blocks,
    sample_weights,
    strategy_named,
)
from quantization.errors import ConfigurationError
from quantization.histogram import DyadicHistogram

MARGIN = CalibrationRecipe(Strategy.MARGIN, 4.0)
LOSS = CalibrationRecipe(Strategy.LOSS, 4.0)

recipes = st.builds(
    CalibrationRecipe,
    st.sampled_from(Strategy),
    st.floats(1.0, 256.0),
    st.lists(
        st.sampled_from(["flip", "noise=0.05", "brightness=0.1", "rotation=10"]), unique=True, max_size=4
    ).map(tuple),
)
logit_rows = st.lists(st.lists(st.floats(-50, 50), min_size=3, max_size=3), min_size=1, max_size=8)


def images(count: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).normal(size=(count, 1, 4, 4)).astype(np.float32)


def logits_of(rows: FloatArray) -> FloatArray:
    """A model: each row's first three values."""
    return rows.reshape(len(rows), -1)[:, :3]


@given(recipes)
def test_text_is_read_back(recipe: CalibrationRecipe) -> None:
    assert CalibrationRecipe.from_text(str(recipe)) == recipe


def test_the_default_changes_nothing() -> None:
    assert DEFAULT_RECIPE.changes_nothing
    assert CalibrationRecipe(Strategy.MARGIN, 1.0).changes_nothing
    assert not MARGIN.changes_nothing
    assert not CalibrationRecipe(augmentations=("flip",)).changes_nothing
    x = images(5)
    rows, weights = prepare_inputs(DEFAULT_RECIPE, x, logits_of)
    np.testing.assert_array_equal(rows, x)
    assert weights.tolist() == [256] * 5
    assert [steps for _, steps in prepared_blocks(DEFAULT_RECIPE, x, logits_of)] == [None]


@pytest.mark.parametrize("weight", [math.nan, math.inf, 0.99, 0.0, -2.0, 256.5, True])
def test_weights_out_of_range_are_refused(weight: float) -> None:
    with pytest.raises(ConfigurationError, match="give a number from 1 to 256"):
        CalibrationRecipe(Strategy.MARGIN, weight)


@pytest.mark.parametrize(
    "text", ["", "margin", "margin x", "entropy 2.0", "margin 2.0 fly", "margin 2.0 flip flip"]
)
def test_text_that_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        CalibrationRecipe.from_text(text)


def test_an_unknown_strategy_is_refused_with_those_that_are() -> None:
    with pytest.raises(ConfigurationError, match="'entropy' is unknown; give one of uniform, margin, loss"):
        strategy_named("entropy")


def test_the_surest_sample_weighs_one_and_the_hardest_as_much_as_asked() -> None:
    logits = np.array([[1000.0, 0.0, 0.0], [5.0, 5.0, -1000.0], [-3.0, -3.0, -1000.0]])
    assert sample_weights(MARGIN, logits).tolist() == [256, 1024, 1024]
    labels = np.array([0, 2, -1])
    assert sample_weights(LOSS, logits, labels).tolist() == [256, 1024, 1024]
    assert sample_weights(LOSS, logits, np.array([1, 0, 7])).tolist() == [1024, 640, 1024]


@given(st.floats(0, 20), st.floats(0, 20))
def test_a_smaller_margin_never_weighs_less(a: float, b: float) -> None:
    weights = sample_weights(MARGIN, np.array([[a, 0.0], [b, 0.0]]))
    assert (weights[0] >= weights[1]) or a > b
    assert (weights >= 256).all()
    assert (weights <= 1024).all()


@given(logit_rows, st.randoms(use_true_random=False))
def test_a_weight_is_a_function_of_the_sample_alone(rows: Sequence[Sequence[float]], random: object) -> None:
    logits, labels = np.array(rows), np.arange(len(rows)) % 4 - 1
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    for recipe in (MARGIN, LOSS):
        together = sample_weights(recipe, logits, labels)
        alone = [sample_weights(recipe, logits[[i]], labels[[i]])[0] for i in order]
        assert together[order].tolist() == alone


@given(st.lists(logit_rows, min_size=1, max_size=4))
def test_weighted_histograms_of_devices_merge_to_that_of_all_samples(
    devices: Sequence[Sequence[Sequence[float]]],
) -> None:
    merged = DyadicHistogram.empty()
    for rows in reversed(devices):
        logits = np.array(rows, np.float32)
        weights = sample_weights(MARGIN, logits)[:, None] / 256
        merged = DyadicHistogram.from_values(logits, weights).merge(merged)
    pooled = np.concatenate([np.array(rows, np.float32) for rows in devices])
    weights = sample_weights(MARGIN, pooled)[:, None] / 256
    assert merged == DyadicHistogram.from_values(pooled, weights)


def test_samples_that_cannot_be_judged_weigh_one() -> None:
    logits = np.array([[np.nan, 1.0], [np.inf, 0.0], [0.0, 0.0]])
    assert sample_weights(MARGIN, logits).tolist() == [256, 256, 1024]
    assert sample_weights(MARGIN, np.zeros((3, 1))).tolist() == [256] * 3
    assert sample_weights(MARGIN, np.zeros(3)).tolist() == [256] * 3


def test_positions_share_one_weight() -> None:
    sure, unsure = np.array([1000.0, 0.0]), np.array([0.0, 0.0])
    logits = np.stack([np.stack([sure, unsure], axis=1), np.stack([sure, sure], axis=1)])
    assert sample_weights(MARGIN, logits).tolist() == [640, 256]
    assert sample_weights(LOSS, logits, np.array([1, 1])).tolist() == [640, 256]


def test_each_augmentation_adds_one_copy_that_weighs_by_itself() -> None:
    recipe = CalibrationRecipe(Strategy.MARGIN, 4.0, ("flip", "noise=0.5"))
    x = images(6)
    rows, weights = prepare_inputs(recipe, x, logits_of, seed=3)
    assert rows.shape == (18, 1, 4, 4)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows[:6], x)
    np.testing.assert_array_equal(rows[6:12], x[..., ::-1])
    np.testing.assert_array_equal(weights, sample_weights(recipe, logits_of(rows)))


def test_copies_keep_the_labels_of_their_originals() -> None:
    recipe = CalibrationRecipe(Strategy.LOSS, 4.0, ("flip",))
    x, labels = images(4), np.array([0, 1, -1, 2])
    rows, weights = prepare_inputs(recipe, x, logits_of, labels)
    np.testing.assert_array_equal(
        weights, sample_weights(recipe, logits_of(rows), np.concatenate([labels, labels]))
    )


def test_inputs_that_are_not_finite_are_left_out_with_their_labels() -> None:
    x, labels = images(4), np.array([0, 1, 2, 0])
    broken = x.copy()
    broken[1, 0, 0, 0] = np.nan
    kept = np.array([0, 2, 3])
    for recipe in (DEFAULT_RECIPE, MARGIN, LOSS):
        rows, weights = prepare_inputs(recipe, broken, logits_of, labels)
        wanted_rows, wanted = prepare_inputs(recipe, x[kept], logits_of, labels[kept])
        np.testing.assert_array_equal(rows, wanted_rows)
        np.testing.assert_array_equal(weights, wanted)


def test_augmentations_that_do_not_fit_are_left_out() -> None:
    x = images(3).reshape(3, 16)
    rows, _ = prepare_inputs(CalibrationRecipe(augmentations=("flip", "noise=0.1")), x, logits_of)
    assert rows.shape == (6, 16)


def test_a_device_without_inputs_asks_its_model_nothing() -> None:
    def unasked(_: FloatArray) -> FloatArray:
        pytest.fail("there is nothing to ask about")

    weights: IntArray
    rows, weights = prepare_inputs(CalibrationRecipe(Strategy.MARGIN, 2.0, ("flip",)), images(0), unasked)
    assert rows.shape == (0, 1, 4, 4)
    assert weights.shape == (0,)
