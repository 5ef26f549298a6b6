import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.errors import ConfigurationError, MalformedError
from quantization.sensitivity import (
    Gain,
    ProbeResult,
    corrected_gains,
    estimate_gain,
    tempered_divergence,
    usable_gains,
)


def _probes(gains: np.ndarray) -> list[ProbeResult]:
    return [ProbeResult(f"device-{i}", 0.5, float(g) * 0.5 * 20, 20) for i, g in enumerate(gains)]


@given(st.permutations(range(12)))
def test_order_of_arrival_does_not_matter(order: list[int]) -> None:
    probes = _probes(np.linspace(1, 2, 12))
    assert estimate_gain([probes[i] for i in order]) == estimate_gain(probes)


@given(st.integers(0, 200), st.integers(5, 60), st.sampled_from([0.0, 1e3]))
def test_liars_cannot_move_a_gain_beyond_the_honest(seed: int, devices: int, lie: float) -> None:
    rng = np.random.default_rng(seed)
    gains = rng.uniform(1, 3, devices)
    honest = gains.copy()
    liars = rng.permutation(devices)[: devices // 5]
    gains[liars] = lie
    kept = np.delete(honest, liars)
    rounding = 1 + 1e-9  # sums are divided by losses and counts
    assert kept.min() / rounding <= estimate_gain(_probes(gains)).value <= kept.max() * rounding


def test_interval_holds_the_truth_and_shrinks_with_devices() -> None:
    rng = np.random.default_rng(0)
    few, many = (estimate_gain(_probes(rng.gamma(4, 0.5, n))) for n in (10, 1000))
    assert many.high - many.low < few.high - few.low
    assert many.low < 2.0 * 1.05
    assert many.high > 2.0 * 0.9


def test_one_device_alone_says_nothing_about_confidence() -> None:
    gain = estimate_gain(_probes(np.array([2.0])))
    assert gain.value == pytest.approx(2.0)
    assert gain.high == float("inf")


def test_probes_of_one_device_count_as_one_voice() -> None:
    repeated = [ProbeResult("liar", 0.5, 1e3, 20) for _ in range(50)]
    assert estimate_gain([*_probes(np.ones(9)), *repeated]).value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("loss", "divergence", "count"),
    [
        (np.nan, 1, 1),
        (0, 1, 1),
        (1, -1, 1),
        (1, np.inf, 1),
        (1, np.nan, 1),
        (1, 1, 0),
        (1, 1e9, 1),
        (1, 1, 1 << 40),
    ],
)
def test_probe_that_nobody_can_have_measured_is_refused(loss: float, divergence: float, count: int) -> None:
    with pytest.raises(MalformedError):
        ProbeResult("d", loss, divergence, count)


def test_divergence_is_that_of_the_tempered_distributions() -> None:
    reference, probe = np.random.default_rng(0).normal(size=(2, 6, 5)) * 3

    def softmax(z: np.ndarray) -> np.ndarray:
        return np.exp(z) / np.exp(z).sum(1, keepdims=True)

    p, q = softmax(reference / 2), softmax(probe / 2)
    expected = 4 * (p * np.log(p / q)).sum()
    assert tempered_divergence(reference, probe, 2.0) == pytest.approx(expected)
    assert tempered_divergence(reference, reference + 7) == pytest.approx(0, abs=1e-12)
    assert tempered_divergence(reference * 1e4, probe * 1e4) < np.inf


def test_divergence_of_logits_that_are_not_numbers_is_refused() -> None:
    with pytest.raises(MalformedError):
        tempered_divergence(np.zeros((2, 3)), np.full((2, 3), np.nan))
    with pytest.raises(MalformedError):
        tempered_divergence(np.zeros((2, 3)), np.zeros((2, 4)))


def test_gain_needs_probes() -> None:
    with pytest.raises(ConfigurationError):
        estimate_gain([])


def test_layer_that_nobody_probed_is_kept_precise() -> None:
    gains = usable_gains({"a": Gain(0.0, 0, 0, 3), "b": Gain(2.0, 1, 3, 3)}, ["a", "b", "c"])
    assert gains["c"] == 2.0
    assert 0 < gains["a"] < 0.01
    assert usable_gains({}, ["a"]) == {"a": 1.0}


@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=6), st.floats(0.5, 3))
def test_corrected_gains_predict_what_was_measured(parts: list[float], factor: float) -> None:
    gains = {str(i): 2.0 for i in range(len(parts))}
    losses = {str(i): part for i, part in enumerate(parts)}
    measured = factor * 2.0 * sum(parts)
    corrected = corrected_gains(gains, losses, measured)
    assert sum(corrected[n] * losses[n] for n in gains) == pytest.approx(measured, rel=1e-6)
    ranked = sorted(gains, key=losses.__getitem__)
    moves = [abs(np.log(corrected[n] / gains[n])) for n in ranked]
    assert moves == sorted(moves)  # who contributed most moves most


def test_repeated_measurements_find_the_layer_that_was_misjudged() -> None:
    truth = {"a": 1.0, "b": 1.0, "c": 30.0}
    gains = dict.fromkeys(truth, 1.0)
    rng = np.random.default_rng(0)
    for _ in range(60):
        losses = {name: float(rng.uniform(0.1, 1)) for name in truth}
        gains = corrected_gains(gains, losses, sum(truth[n] * losses[n] for n in truth))
    assert gains["c"] > 5 * max(gains["a"], gains["b"])


@pytest.mark.parametrize("measured", [np.nan, np.inf, -1.0])
def test_impossible_measurement_is_refused(measured: float) -> None:
    with pytest.raises(MalformedError):
        corrected_gains({"a": 1.0}, {"a": 1.0}, measured)
