import numpy as np
import pytest

from quantization.arrays import FloatArray
from quantization.errors import ConfigurationError
from quantization.moments import ChannelMoments, ChannelReference
from quantization.renormalization import (
    SIGNIFICANT_BITS,
    ChannelCorrection,
    DriftRule,
    decide,
    layer_drift,
    restore,
    shortened,
)

CHANNELS = 16
REFERENCE = ChannelReference(np.linspace(-1, 1, CHANNELS), np.linspace(0.5, 2, CHANNELS), 1000)


def fleet(
    shift: float, spread: float, devices: int, device_std: float = 0.2, seed: int = 0
) -> ChannelMoments:
    """Return merged moments of devices whose means scatter by `device_std` around a common shift."""
    rng = np.random.default_rng(seed)
    merged = ChannelMoments.empty(CHANNELS)
    for _ in range(devices):
        u = shift + rng.normal(0, device_std, CHANNELS)
        mean, variance = REFERENCE.mean + REFERENCE.std * u, (REFERENCE.std * spread) ** 2
        merged = merged.merge(ChannelMoments.from_batch(mean, variance, 500, REFERENCE).as_device())
    return merged


def corrected(field: FloatArray, correction: ChannelCorrection) -> FloatArray:
    return np.asarray(correction.gain * field + correction.offset)


def test_correction_restores_the_labs_mean_and_spread() -> None:
    moments = fleet(shift=1.5, spread=0.3, devices=200, device_std=0.02)
    correction = restore(moments, REFERENCE)
    field = np.random.default_rng(3).normal(
        REFERENCE.mean + 1.5 * REFERENCE.std, 0.3 * REFERENCE.std, (20_000, CHANNELS)
    )
    after = corrected(field, correction)
    np.testing.assert_allclose(after.mean(0), REFERENCE.mean, atol=0.05)
    np.testing.assert_allclose(after.std(0), REFERENCE.std, rtol=0.05)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("devices", [3, 7, 50])
def test_fleet_without_drift_keeps_what_it_has(devices: int, seed: int) -> None:
    moments = {"a": fleet(0.0, 1.0, devices, seed=seed), "b": fleet(0.0, 1.0, devices, seed=seed + 99)}
    current = {"a": ChannelCorrection.identity(CHANNELS)}
    decision = decide(moments, moments, dict.fromkeys("ab", REFERENCE), current)
    assert not decision.is_drifted
    assert decision.corrections == current


def test_significant_trifle_is_not_corrected() -> None:
    moments = {"a": fleet(0.05, 1.0, 2000, device_std=0.1)}
    assert layer_drift(moments["a"]).significance > 10
    assert not decide(moments, moments, {"a": REFERENCE}, {}).is_drifted


def test_drifted_fleet_is_corrected_in_every_layer() -> None:
    plain = {"a": fleet(0.8, 0.5, 50, device_std=0.02), "b": fleet(0.0, 1.0, 50, seed=5)}
    decision = decide(plain, plain, dict.fromkeys("ab", REFERENCE), {})
    assert decision.is_drifted
    assert set(decision.corrections) == {"a", "b"}
    np.testing.assert_allclose(decision.corrections["a"].gain, 2.0, rtol=0.05)


def test_layer_without_drift_is_left_nearly_alone() -> None:
    plain = {"a": fleet(0.8, 0.5, 50), "b": fleet(0.0, 1.0, 50, seed=5)}
    still = decide(plain, plain, dict.fromkeys("ab", REFERENCE), {}).corrections["b"]
    np.testing.assert_allclose(still.gain, 1.0, atol=0.05)
    assert np.max(np.abs(still.offset) / REFERENCE.std) < 0.05


def test_few_noisy_devices_are_trusted_less_than_many() -> None:
    few = restore(fleet(0.4, 1.0, 2, device_std=0.5), REFERENCE)
    many = restore(fleet(0.4, 1.0, 500, device_std=0.5), REFERENCE)
    assert np.abs(few.offset / REFERENCE.std).mean() < np.abs(many.offset / REFERENCE.std).mean()


def test_one_device_is_corrected_only_for_a_large_drift() -> None:
    small, large = {"a": fleet(0.4, 1.0, 1)}, {"a": fleet(3.0, 1.0, 1)}
    assert not decide(small, small, {"a": REFERENCE}, {}).is_drifted
    assert decide(large, large, {"a": REFERENCE}, {}).is_drifted


def test_silent_channel_is_not_amplified_without_bound() -> None:
    rule = DriftRule(max_gain=8.0)
    assert restore(fleet(0.0, 1e-9, 50), REFERENCE, rule).gain.max() <= 8.0


def test_layers_that_no_device_saw_keep_their_correction() -> None:
    plain = {"a": fleet(0.8, 0.5, 50)}
    kept = ChannelCorrection(np.full(CHANNELS, 2.0), np.zeros(CHANNELS))
    decision = decide(plain, {"a": ChannelMoments.empty(CHANNELS)}, {"a": REFERENCE}, {"a": kept})
    assert decision.corrections["a"] == kept


@pytest.mark.parametrize(("gain", "offset"), [(-1.0, 0.0), (np.nan, 0.0), (1.0, np.inf), (0.0, 0.0)])
def test_impossible_correction_is_refused(gain: float, offset: float) -> None:
    with pytest.raises(ConfigurationError):
        ChannelCorrection(np.array([gain]), np.array([offset]))


def test_shortened_floats_have_few_significant_bits_and_are_as_near_as_these_allow() -> None:
    values = np.random.default_rng(0).normal(size=1000) * np.logspace(-30, 30, 1000)
    short = shortened(values)
    assert not (short.view(np.uint32) & 0x7FF).any()
    assert np.abs(short / values - 1).max() <= 2.0**-SIGNIFICANT_BITS
    np.testing.assert_array_equal(shortened(short), short)
    np.testing.assert_array_equal(
        shortened(np.array([0.0, -1.0, 8191.5, 8192.5])), [0.0, -1.0, 8192.0, 8192.0]
    )
