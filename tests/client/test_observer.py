from dataclasses import replace

import models
import numpy as np
import onnxruntime as ort
import pytest
from artifacts import Example, example

from client.observer import Observer
from quantization.artifact import Artifact, decode_blob
from quantization.calibration_recipe import CalibrationRecipe, Strategy
from quantization.errors import ConfigurationError, DigestMismatchError, InvalidDataError, MalformedError
from quantization.histogram import DyadicHistogram
from quantization.moments import ChannelMoments
from quantization.renormalization import ChannelCorrection


def observer_of(artifact: Artifact, channels: bytes | None = None, batch_size: int = 32) -> Observer:
    overrides = {} if channels is None else {"channels": channels}
    return Observer(artifact.manifest, artifact.blobs.__getitem__, overrides, batch_size=batch_size)


def corrections(case: Example) -> dict[str, ChannelCorrection]:
    rng = np.random.default_rng(3)
    return {
        layer.name: ChannelCorrection(
            rng.uniform(0.5, 1.5, layer.channels), rng.normal(0, 0.2, layer.channels)
        )
        for layer in case.plan.corrected_layers
    }


def channels_of(artifact: Artifact) -> bytes:
    ref = next(ref for ref in artifact.manifest.stages[0].files if ref.location == "channels")
    return decode_blob(ref, artifact.blobs[ref.digest])


@pytest.mark.parametrize("name", models.ALL_MODELS)
def test_every_layer_and_site_of_the_plan_is_observed(name: str) -> None:
    case = example(name)
    observer = observer_of(case.artifact())
    x = case.inputs(20)
    ranges = observer.ranges(x)
    layers = {layer.name for layer in case.plan.corrected_layers}
    assert ranges.moments.keys() == layers == observer.references.keys()
    assert ranges.histograms.keys() == {site.name for site in case.plan.sites}
    assert all(histogram.count > 0 for histogram in ranges.histograms.values())
    sequential = observer.moments(x)
    assert sequential.moments.keys() == layers
    assert all(moments.devices == 1 for moments in sequential.moments.values())
    assert sequential.sample_count == ranges.sample_count == 20


def test_the_histogram_of_the_input_spans_it_exactly() -> None:
    x = example().inputs(40)
    histogram = observer_of(example().artifact()).ranges(x).histograms["x"]
    assert (histogram.minimum, histogram.maximum) == (float(x.min()), float(x.max()))


def test_the_first_layer_has_the_same_moments_plain_and_sequential() -> None:
    observer = observer_of(example().artifact())
    x = example().inputs(30)
    first = example().plan.corrected_layers[0].name
    plain, sequential = observer.ranges(x).moments[first], observer.moments(x).moments[first]
    assert plain.count == sequential.count
    np.testing.assert_allclose(plain.mean(), sequential.mean(), atol=1e-5)
    np.testing.assert_allclose(plain.variance(), sequential.variance(), rtol=1e-4)


def test_sequential_moments_do_not_follow_the_current_corrections() -> None:
    x = example().inputs(30)
    bare = observer_of(example().artifact()).moments(x)
    corrected = observer_of(example().artifact(1, corrections=corrections(example()))).moments(x)
    assert bare.moments == corrected.moments


def test_candidate_channels_take_the_place_of_the_artifacts_own() -> None:
    x = example().inputs(30)
    current, candidate = example().artifact(), example().artifact(1, corrections=corrections(example()))
    tried = observer_of(current, channels_of(candidate)).ranges(x)
    installed = observer_of(candidate).ranges(x)
    assert tried.histograms == installed.histograms
    assert tried.moments == installed.moments
    assert tried.moments != observer_of(current).ranges(x).moments


def test_candidate_channels_of_another_size_are_refused() -> None:
    with pytest.raises(MalformedError, match="8 bytes in the place of file 'channels'"):
        observer_of(example().artifact(), bytes(8))


def test_logits_are_those_of_the_float_model_but_for_the_rounding_of_weights() -> None:
    x = example().inputs(50)
    wanted = ort.InferenceSession(example().model).run(None, {"x": x})[0]
    logits = observer_of(example().artifact()).logits(x)
    assert np.abs(logits - wanted).max() < 0.05 * np.abs(wanted).max()


def test_histograms_see_the_same_values_whatever_the_batch_size() -> None:
    x = example().inputs(24)
    by_size = []
    for batch_size in (8, 24):
        seen: dict[str, list[np.ndarray]] = {}
        observation = observer_of(example().artifact(), batch_size=batch_size).ranges(
            x, lambda site, values, _, seen=seen: seen.setdefault(site, []).append(values)
        )
        pooled = {site: DyadicHistogram.from_values(np.concatenate(values)) for site, values in seen.items()}
        assert pooled == observation.histograms
        by_size.append(observation)
    for site, histogram in by_size[0].histograms.items():
        assert histogram.maximum == by_size[1].histograms[site].maximum


@pytest.mark.parametrize("count", [0, 1])
def test_an_empty_or_one_sample_device_gives_no_sequential_moments(count: int) -> None:
    observation = observer_of(example("digits_cnn").artifact()).moments(example("digits_cnn").inputs(count))
    assert observation.left_out_count == count
    for layer, moments in observation.moments.items():
        channels = observer_of(example("digits_cnn").artifact()).references[layer].channels
        assert moments == ChannelMoments.empty(channels)


def test_broken_inputs_are_left_out_of_both_observations() -> None:
    x = example().inputs(20)
    broken = np.concatenate([x, np.full_like(x[:2], np.nan), np.full_like(x[:1], np.inf)])
    observer = observer_of(example().artifact())
    assert observer.ranges(broken).histograms == observer.ranges(x).histograms
    assert observer.moments(broken).moments == observer.moments(x).moments
    assert observer.moments(broken).left_out_count == 3


@pytest.mark.parametrize("fill", [0.0, 3.25])
def test_constant_inputs_give_finite_statistics(fill: float) -> None:
    x = np.full((16, 3, 12, 12), fill, np.float32)
    observer = observer_of(example().artifact())
    assert observer.moments(x).sample_count == 16
    histogram = observer.ranges(x).histograms["x"]
    assert (histogram.minimum, histogram.maximum, histogram.nonfinite_count) == (fill, fill, 0)


def test_inputs_of_another_shape_are_refused() -> None:
    observer = observer_of(example().artifact())
    for observe in (observer.moments, observer.ranges, observer.logits):
        with pytest.raises(InvalidDataError, match="shape"):
            observe(np.zeros((9, 1, 12, 12), np.float32))


def test_an_artifact_without_observation_graphs_says_so() -> None:
    with pytest.raises(ConfigurationError, match="no observation graph"):
        observer_of(example().artifact(is_observed=False))


def test_a_damaged_reference_is_refused() -> None:
    artifact = example().artifact()
    ref = artifact.manifest.stages[0].reference_files[0]
    stored = bytearray(artifact.blobs[ref.digest])
    stored[-1] ^= 1
    with pytest.raises((MalformedError, DigestMismatchError)):
        observer_of(Artifact(artifact.manifest, {**artifact.blobs, ref.digest: bytes(stored)}))


MARGIN = CalibrationRecipe(Strategy.MARGIN, 4.0)


def test_a_recipe_weighs_histograms_and_leaves_moments_alone() -> None:
    observer, x = observer_of(example().artifact()), example().inputs(40)
    plain, weighted = observer.ranges(x), observer.ranges(x, recipe=MARGIN)
    assert weighted.moments == plain.moments
    assert (weighted.sample_count, weighted.left_out_count) == (40, 0)
    for site, histogram in weighted.histograms.items():
        unweighted = plain.histograms[site]
        assert histogram.count == unweighted.count
        assert (histogram.minimum, histogram.maximum) == (unweighted.minimum, unweighted.maximum)
        assert 1 < histogram.counts.sum() / unweighted.counts.sum() < 4


def test_what_the_sink_sees_is_what_weighted_histograms_are_made_of() -> None:
    observer, x = observer_of(example().artifact(), batch_size=7), example().inputs(24)
    seen: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def keep(site: str, values: np.ndarray, steps: np.ndarray | None) -> None:
        assert steps is not None
        seen.setdefault(site, []).append((values, steps))

    observation = observer.ranges(x, keep, recipe=replace(MARGIN, augmentations=("noise=0.1",)), seed=2)
    for site, parts in seen.items():
        values, steps = (np.concatenate(column) for column in zip(*parts, strict=True))
        assert DyadicHistogram.from_values(values, steps / 256) == observation.histograms[site]


def test_labels_count_by_loss_alone() -> None:
    observer, x = observer_of(example().artifact()), example().inputs(20)
    right = observer.logits(x).argmax(axis=1)
    loss = CalibrationRecipe(Strategy.LOSS, 4.0)
    by_margin = observer.ranges(x, recipe=MARGIN).histograms
    assert observer.ranges(x, recipe=MARGIN, labels=right).histograms == by_margin
    assert observer.ranges(x, recipe=loss, labels=np.full(20, -1)).histograms == by_margin
    easy = observer.ranges(x, recipe=loss, labels=right).histograms["x"].counts.sum()
    hard = observer.ranges(x, recipe=loss, labels=(right + 1) % 10).histograms["x"].counts.sum()
    assert easy < hard


def test_copies_join_inputs_in_histograms_and_sequential_moments_alone() -> None:
    observer, x = observer_of(example().artifact()), example().inputs(6)
    recipe = CalibrationRecipe(augmentations=("noise=0.1", "brightness=0.2"))
    assert observer.moments(x).sample_count in (0, 6)
    seen = observer.moments(x, recipe, seed=1)
    assert (seen.sample_count, seen.left_out_count) == (18, 0)
    assert all(moments.devices == 1 for moments in seen.moments.values())
    plain = observer.ranges(x, recipe=recipe, seed=1)
    assert plain.sample_count == 6
    assert plain.histograms["x"].count == 3 * observer.ranges(x).histograms["x"].count
    assert plain.moments == observer.ranges(x).moments
    assert plain.histograms["x"].maximum > float(x.max())
    assert plain.histograms == observer.ranges(x, recipe=recipe, seed=1).histograms
    assert plain.histograms != observer.ranges(x, recipe=recipe, seed=2).histograms


def test_broken_inputs_are_counted_and_left_out_with_their_copies() -> None:
    x = example().inputs(20)
    broken = np.concatenate([x[:7], np.full_like(x[:2], np.nan), x[7:]])
    recipe = replace(MARGIN, augmentations=("noise=0.1",))
    observer = observer_of(example().artifact())
    seen, wanted = observer.ranges(broken, recipe=recipe), observer.ranges(x, recipe=recipe)
    assert seen.histograms == wanted.histograms
    assert seen.left_out_count == 2


@pytest.mark.parametrize(("count", "expected"), [(3, 0), (4, 8)])
def test_copies_help_a_small_batch_to_normalise_but_not_a_tiny_one(count: int, expected: int) -> None:
    case = example("digits_cnn")
    recipe = CalibrationRecipe(augmentations=("noise=0.1",))
    assert observer_of(case.artifact()).moments(case.inputs(count), recipe).sample_count == expected
