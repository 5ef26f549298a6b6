import numpy as np
import pytest

from simulation.tasks.log_mel import FLOOR_POWER, log_mel, mel_filters

SECONDS = np.arange(8_000) / 8_000


def test_a_second_has_61_frames_of_32_mels() -> None:
    spectrograms = log_mel(np.zeros((3, 8_000), np.float32))
    assert spectrograms.shape == (3, 1, 32, 61)
    assert spectrograms.dtype == np.float32
    assert len(np.unique(spectrograms)) == 1  # digital silence is the floor everywhere
    assert np.isfinite(np.log(FLOOR_POWER))


def test_gain_moves_every_value_by_the_same_amount() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 8_000)).astype(np.float32)
    moved = log_mel(noise) - log_mel(noise * np.float32(0.5))
    np.testing.assert_allclose(moved, np.log(4) / 4, atol=1e-2)


def test_a_higher_tone_is_in_a_higher_filter() -> None:
    def loudest(hertz: float) -> int:
        tone = np.sin(2 * np.pi * hertz * SECONDS, dtype=np.float32)[None]
        return int(log_mel(tone)[0, 0].mean(1).argmax())

    found = [loudest(hertz) for hertz in (150, 500, 1_000, 2_000, 3_500)]
    assert found == sorted(set(found))


def test_clips_do_not_depend_on_each_other() -> None:
    waves = np.random.default_rng(0).normal(0, 0.1, (130, 1_000)).astype(np.float32)
    np.testing.assert_allclose(log_mel(waves)[129:], log_mel(waves[129:]), atol=1e-6)


def test_filters_are_means() -> None:
    filters = mel_filters()
    assert filters.shape == (32, 129)
    assert filters.min() >= 0
    np.testing.assert_allclose(filters.sum(1), 1.0, rtol=1e-5)
    assert pytest.approx(0.0) == filters[:, 0].max()  # nothing from below 60 Hz
