import numpy as np
import pytest

from quantization.errors import ConfigurationError
from simulation import effects
from simulation.drift import apply_drifts, parse_drifts

RNG = np.random.default_rng(0)


def test_brightness_saturates_at_white() -> None:
    raw = np.array([0.0, 0.5, 0.9], np.float32).reshape(1, 1, 1, 3)
    after = apply_drifts(raw, parse_drifts(["brightness=0.35"]), "image", RNG)
    np.testing.assert_allclose(after.ravel(), [0.35, 0.85, 1.0], atol=1e-6)


def test_contrast_of_images_acts_around_mid_grey() -> None:
    raw = np.array([0.0, 0.5, 1.0], np.float32).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(effects.contrast(raw, (0.3,), RNG).ravel(), [0.35, 0.5, 0.65], atol=1e-6)


def test_contrast_of_generic_rows_keeps_their_mean() -> None:
    raw = RNG.normal(3, 1, (2, 4, 5)).astype(np.float32)
    after = effects.contrast_around_mean(raw, (0.3,), RNG)
    np.testing.assert_allclose(after.mean((1, 2)), raw.mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(after.std((1, 2)), 0.3 * raw.std((1, 2)), rtol=1e-4)


def test_blur_is_the_mean_of_the_pixels_around() -> None:
    raw = RNG.uniform(0, 1, (2, 3, 7, 9)).astype(np.float32)
    after = effects.blur(raw, (3,), RNG)
    np.testing.assert_allclose(after[:, :, 3, 4], raw[:, :, 2:5, 3:6].mean((2, 3)), rtol=1e-5)
    corner = raw[:, :, [1, 0, 1]][:, :, :, [1, 0, 1]].mean((2, 3))  # the border is mirrored
    np.testing.assert_allclose(after[:, :, 0, 0], corner, rtol=1e-5)


def test_blur_refuses_rows_that_are_no_images() -> None:
    with pytest.raises(ConfigurationError, match="needs images"):
        effects.blur(np.zeros((2, 6, 128), np.float32), (3,), RNG)
    with pytest.raises(ConfigurationError, match="smaller width"):
        effects.blur(np.zeros((2, 1, 8, 8), np.float32), (33,), RNG)


def test_noise_has_the_standard_deviation_asked_for() -> None:
    after = effects.noise(np.zeros((100, 1, 32, 32), np.float32), (0.1,), RNG)
    assert after.std() == pytest.approx(0.1, rel=0.02)
    assert after.mean() == pytest.approx(0.0, abs=0.002)


def test_offset_takes_one_number_or_one_per_channel() -> None:
    raw = np.zeros((2, 3, 4), np.float32)
    assert (effects.offset(raw, (0.5,), RNG) == 0.5).all()
    np.testing.assert_array_equal(effects.offset(raw, (1, 2, 3), RNG)[1, :, 0], [1, 2, 3])
    with pytest.raises(ConfigurationError, match="2 values, and these rows have 3 channels"):
        effects.offset(raw, (1, 2), RNG)


def test_dead_channels_read_zero_and_others_stay() -> None:
    raw = np.ones((2, 6, 4), np.float32)
    after = effects.dead_channels(raw, (3, 5), RNG)
    np.testing.assert_array_equal(after[0, :, 0], [1, 1, 1, 0, 1, 0])
    with pytest.raises(ConfigurationError, match="channel 6, and there are 6"):
        effects.dead_channels(raw, (6,), RNG)


def test_accelerometer_offset_leaves_the_gyroscope_alone() -> None:
    after = effects.accelerometer_offset(np.zeros((2, 6, 4), np.float32), (0.3, 0.2, -0.2), RNG)
    np.testing.assert_allclose(after[1, :, 2], [0.3, 0.2, -0.2, 0, 0, 0], atol=1e-7)


def test_a_dead_gyroscope_reads_zero() -> None:
    after = effects.gyroscope_loss(np.ones((1, 6, 2), np.float32), (1.0,), RNG)
    np.testing.assert_array_equal(after[0, :, 0], [1, 1, 1, 0, 0, 0])


def test_rotation_turns_both_sensors_about_z_from_x_to_y() -> None:
    raw = np.zeros((1, 6, 1), np.float32)
    raw[0, :, 0] = [1, 0, 5, 0, 2, 7]
    np.testing.assert_allclose(effects.rotation(raw, (90,), RNG)[0, :, 0], [0, 1, 5, -2, 0, 7], atol=1e-6)


def test_rotation_keeps_lengths_and_turns_back() -> None:
    raw = RNG.normal(size=(5, 6, 16)).astype(np.float32)
    there = effects.rotation(raw, (33,), RNG)
    np.testing.assert_allclose((there[:, :3] ** 2).sum(1), (raw[:, :3] ** 2).sum(1), rtol=1e-4)
    np.testing.assert_allclose(effects.rotation(there, (-33,), RNG), raw, atol=1e-5)


def test_microphone_gain_is_in_decibels_of_amplitude_and_clips() -> None:
    raw = np.full((1, 8), 0.2, np.float32)
    np.testing.assert_allclose(effects.microphone_gain(raw, (-20,), RNG), 0.02, rtol=1e-5)
    after = apply_drifts(raw, parse_drifts(["mic-gain=20"]), "audio", RNG)
    np.testing.assert_array_equal(after, np.ones_like(raw))


def test_background_noise_has_the_ratio_of_powers_asked_for() -> None:
    waves = np.zeros((3, 80_000), np.float32)
    waves[:, :40_000] = 0.1 * np.sin(np.arange(40_000) / 7, dtype=np.float32)  # the rest is padding
    noise = effects.background_noise(waves, (10,), RNG) - waves
    speech_power = np.square(waves[:, :40_000]).mean(1)
    np.testing.assert_allclose(10 * np.log10(speech_power / np.square(noise).mean(1)), 10, atol=0.2)


def test_a_silent_clip_stays_silent() -> None:
    assert not effects.background_noise(np.zeros((2, 100), np.float32), (10,), RNG).any()
