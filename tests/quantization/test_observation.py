from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.errors import InvalidDataError, MalformedError
from quantization.histogram import DyadicHistogram
from quantization.moments import ChannelMoments, ChannelReference
from quantization.observation import (
    BatchFloor,
    batches,
    finite_rows,
    histogram_of,
    mixed_batches,
    observe,
    observe_moments,
    observe_ranges,
    value_weights,
)

REFERENCES = {"conv": ChannelReference(np.array([0.5, -1.0]), np.array([2.0, 0.5]), 100)}
POSITIONS = 4


def run(batch: np.ndarray) -> Mapping[str, Any]:
    """A graph whose layer has the input's two channels, and whose site is the whole input."""
    values = batch.astype(np.float64)
    return {
        "mean:conv": values.mean(axis=(0, 2)).astype(np.float32),
        "var:conv": values.var(axis=(0, 2)).astype(np.float32),
        "count:conv": np.array(batch.shape[0] * batch.shape[2]),
        "values:site": batch.reshape(-1),
    }


def inputs(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 2, POSITIONS)).astype(np.float32)


def test_batches_that_are_observed_mix_neighbours_and_lose_no_row() -> None:
    rows = np.arange(100)
    parts = list(mixed_batches(rows, 32))
    assert [len(part) for part in parts] == [25, 25, 25, 25]
    assert all(part.max() - part.min() > 90 for part in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), rows)


@given(st.integers(0, 200), st.integers(1, 40))
def test_batches_are_few_even_and_complete(count: int, batch_size: int) -> None:
    rows = np.arange(count, dtype=np.float32)
    parts = list(batches(rows, batch_size))
    assert len(parts) == -(-count // batch_size)
    np.testing.assert_array_equal(np.concatenate([rows[:0], *parts]), rows)
    sizes = [len(part) for part in parts]
    assert not sizes or (max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1)


def test_a_batch_size_that_is_not_positive_is_refused() -> None:
    with pytest.raises(InvalidDataError, match="not positive"):
        list(batches(inputs(3), 0))


def test_histograms_are_those_of_all_values_whatever_the_batches() -> None:
    x = inputs(50)
    whole = DyadicHistogram.from_values(x)
    for batch_size in (1, 7, 50, 500):
        assert observe_ranges(run, x, ["site"], batch_size) == {"site": whole}


def test_moments_are_those_of_the_inputs_in_reference_units() -> None:
    x = inputs(60)
    moments = observe_moments(run, x, REFERENCES, 16)["conv"]
    scaled = (x - REFERENCES["conv"].mean[:, None]) / REFERENCES["conv"].std[:, None]
    assert (moments.count, moments.devices) == (60 * POSITIONS, 1)
    np.testing.assert_allclose(moments.mean(), scaled.mean(axis=(0, 2)), atol=1e-5)
    np.testing.assert_allclose(moments.variance(), scaled.var(axis=(0, 2)), rtol=1e-5)


def test_one_pass_gives_both_and_the_sink_sees_what_the_histograms_see() -> None:
    x = inputs(40)
    seen: list[np.ndarray] = []
    observation = observe(
        run, x, REFERENCES, 16, sites=["site"], values_sink=lambda _, values, __: seen.append(values)
    )
    assert observation.histograms["site"] == DyadicHistogram.from_values(np.concatenate(seen))
    assert observation.moments["conv"] == observe_moments(run, x, REFERENCES, 16)["conv"]
    assert (observation.sample_count, observation.left_out_count) == (40, 0)


def test_a_device_without_inputs_contributes_the_identity() -> None:
    observation = observe(run, inputs(0), REFERENCES, 32, sites=["site"])
    assert observation.moments == {"conv": ChannelMoments.empty(2)}
    assert observation.histograms == {"site": DyadicHistogram.empty()}
    assert (observation.sample_count, observation.left_out_count) == (0, 0)


@pytest.mark.parametrize("count", [1, 7])
def test_a_device_with_too_few_samples_to_normalise_contributes_nothing(count: int) -> None:
    observation = observe(run, inputs(count), REFERENCES, 32, floor=BatchFloor(samples=8, values=100))
    assert observation.moments == {"conv": ChannelMoments.empty(2)}
    assert (observation.sample_count, observation.left_out_count) == (0, count)


@pytest.mark.parametrize(("count", "values"), [(8, 100), (1, POSITIONS), (33, 100)])
def test_enough_samples_or_enough_positions_are_used(count: int, values: int) -> None:
    floor = BatchFloor(samples=8, values=values)
    observation = observe(run, inputs(count), REFERENCES, 32, floor=floor)
    assert (observation.sample_count, observation.left_out_count) == (count, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_inputs_that_are_not_finite_are_left_out_and_counted(bad: float) -> None:
    x = inputs(20)
    x[3, 1, 2] = bad
    observation = observe(run, x, REFERENCES, 32, sites=["site"])
    kept = np.delete(x, 3, axis=0)
    assert observation.histograms["site"] == DyadicHistogram.from_values(kept)
    assert (observation.sample_count, observation.left_out_count) == (19, 1)
    np.testing.assert_array_equal(finite_rows(x), kept)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_activations_that_cannot_be_summed_leave_their_batch_out(bad: float) -> None:
    def broken(batch: np.ndarray) -> Mapping[str, Any]:
        outputs = dict(run(batch))
        outputs["mean:conv"] = np.array([bad, 0.0], np.float32)
        outputs["values:site"] = np.array([bad, 1.0], np.float32)
        return outputs

    observation = observe(broken, inputs(4), REFERENCES, 32, sites=["site"])
    assert observation.moments == {"conv": ChannelMoments.empty(2)}
    assert observation.histograms["site"] == DyadicHistogram.from_values(np.array([bad, 1.0], np.float32))
    assert observation.histograms["site"].nonfinite_count == int(not np.isfinite(bad))
    assert observation.left_out_count == 4


def test_a_graph_without_the_wanted_output_is_refused() -> None:
    with pytest.raises(MalformedError, match="values:other"):
        observe_ranges(run, inputs(4), ["other"], 32)


def test_a_graph_with_other_channels_is_refused() -> None:
    with pytest.raises(MalformedError, match="channels"):
        observe_moments(run, inputs(4), {"conv": ChannelReference(np.zeros(3), np.ones(3), 1)}, 32)


STEP = 3
"""Every third value is sampled, as an observation graph does with large tensors."""


def run_sampled(batch: np.ndarray) -> Mapping[str, Any]:
    """A graph whose site is sampled, with the minimum and maximum behind the sample."""
    flat = batch.reshape(-1)
    return {**run(batch), "values:site": np.concatenate([flat[::STEP], [flat.min(), flat.max()]])}


@given(st.integers(1, 9), st.integers(1, 40), st.sampled_from([1, 2, 3, 5, 7]))
def test_values_weigh_as_the_input_they_come_from(count: int, row_size: int, step: int) -> None:
    steps = np.arange(256, 256 + count)
    flat = np.repeat(steps, row_size)[::step]
    weights = value_weights(steps, flat.size + 2)
    assert weights[-2:].tolist() == [256, 256]
    is_off = weights[:-2] != flat
    assert np.abs(weights[:-2] - flat).max() <= max(1, step // row_size + 1)
    if row_size > step:
        assert is_off.sum() < count  # at most one at each border
    if step == 1:
        assert not is_off.any()


def test_histograms_count_values_by_the_weight_of_their_input() -> None:
    x = inputs(12)
    weights = np.linspace(256, 1024, 12).astype(np.int64)
    seen: list[tuple[np.ndarray, np.ndarray | None]] = []
    histogram = observe(
        run_sampled,
        x,
        {},
        5,
        sites=["site"],
        weights=weights,
        values_sink=lambda _, values, steps: seen.append((values, steps)),
    ).histograms["site"]
    values, steps = (np.concatenate(part) for part in zip(*seen, strict=True))
    assert histogram == histogram_of(values, steps)
    assert int(histogram.counts.sum()) == int(steps.sum())
    assert histogram.count == values.size
    assert (histogram.minimum, histogram.maximum) == (float(x.min()), float(x.max()))


def test_equal_weights_of_one_give_the_histogram_without_weights() -> None:
    x = inputs(20)
    weighted = observe(run_sampled, x, {}, 7, sites=["site"], weights=np.full(20, 256))
    assert weighted.histograms == observe(run_sampled, x, {}, 7, sites=["site"]).histograms


def test_weights_of_inputs_that_are_left_out_are_left_out() -> None:
    x = inputs(6)
    x[2, 0, 0] = np.nan
    weights = np.array([256, 300, 9999, 400, 500, 600])
    kept = observe(run_sampled, np.delete(x, 2, axis=0), {}, 8, sites=["site"], weights=np.delete(weights, 2))
    assert observe(run_sampled, x, {}, 8, sites=["site"], weights=weights).histograms == kept.histograms


def test_moments_are_of_the_inputs_as_they_are_whatever_they_weigh() -> None:
    x = inputs(16)
    weighted = observe(run_sampled, x, REFERENCES, 16, sites=["site"], weights=np.full(16, 1024))
    assert weighted.moments == observe(run_sampled, x, REFERENCES, 16).moments
