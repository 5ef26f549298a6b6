import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantization.augmentation import (
    AUGMENTATION_KINDS,
    Augmentation,
    augmented,
    fitting,
    parse_augmentations,
    require_augmentations,
)
from quantization.errors import ConfigurationError

ALL = parse_augmentations([kind.example for kind in AUGMENTATION_KINDS.values()])
IMAGE, SENSORS, FEATURES = (3, 8, 6), (6, 20), (7,)
LARGEST = float(np.finfo(np.float32).max)


def rows(shape: tuple[int, ...], count: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(1.0, 2.0, size=(count, *shape)).astype(np.float32)


def named(text: str) -> Augmentation:
    return parse_augmentations([text])[0]


@given(
    st.sampled_from([IMAGE, SENSORS, FEATURES]).flatmap(
        lambda shape: arrays(
            np.float32, (2, *shape), elements=st.floats(-LARGEST, LARGEST, width=32), fill=st.just(0.0)
        )
    ),
    st.integers(0, 2**62),
)
def test_copies_have_the_shape_and_type_of_their_inputs_and_are_finite(x: np.ndarray, seed: int) -> None:
    before = x.copy()
    for augmentation in fitting(ALL, x.shape[1:]):
        copies = augmented(augmentation, x, seed)
        assert copies.shape == x.shape
        assert copies.dtype == np.float32
        assert np.isfinite(copies).all()
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("augmentation", ALL, ids=str)
def test_a_copy_depends_on_seed_and_content_alone(augmentation: Augmentation) -> None:
    x = rows(IMAGE)
    copies = augmented(augmentation, x, seed=7)
    np.testing.assert_array_equal(augmented(augmentation, x[::-1], seed=7), copies[::-1])
    np.testing.assert_array_equal(augmented(augmentation, x[2:3], seed=7), copies[2:3])
    if augmentation.severity:
        assert (augmented(augmentation, x, seed=8) != copies).any()


@pytest.mark.parametrize("augmentation", ALL, ids=str)
def test_a_copy_differs_from_its_input(augmentation: Augmentation) -> None:
    x = rows(IMAGE)
    assert (augmented(augmentation, x, 0) != x).any(axis=(1, 2, 3)).all()


def test_flip_mirrors_left_and_right() -> None:
    x = rows(IMAGE)
    np.testing.assert_array_equal(augmented(named("flip"), x, 0), x[..., ::-1])


def test_shift_moves_an_image_and_repeats_its_edges() -> None:
    image = np.arange(64, dtype=np.float32).reshape(1, 1, 8, 8)
    seen = set()
    for seed in range(300):
        moved = augmented(named("shift=0.25"), image, seed)[0, 0]
        down, right = (int(n) for n in np.unravel_index(int(np.abs(moved - 27).argmin()), (8, 8)))
        down, right = down - 3, right - 3  # 27 lies at (3, 3), too far in to leave
        places = [np.clip(np.arange(8) - by, 0, 7) for by in (down, right)]
        np.testing.assert_array_equal(moved, image[0, 0][np.ix_(*places)])
        seen.add((down, right))
    assert seen == {(down, right) for down in range(-2, 3) for right in range(-2, 3)}


def test_shift_moves_a_window_along_time_alone() -> None:
    window = np.arange(60, dtype=np.float32).reshape(1, 6, 10)
    moved = augmented(named("shift=0.5"), window, 1)[0]
    assert (np.diff(moved, axis=0) == 10).all()


def test_brightness_shifts_each_input_by_one_number_within_its_spread() -> None:
    x = rows(IMAGE, 400)
    shifts = (augmented(named("brightness=0.5"), x, 0) - x).reshape(400, -1)
    relative = shifts.mean(axis=1) / x.reshape(400, -1).std(axis=1)
    np.testing.assert_allclose(shifts, shifts[:, :1].repeat(shifts.shape[1], axis=1), atol=1e-5)
    assert np.abs(relative).max() <= 0.5 + 1e-5
    assert relative.min() < -0.45
    assert relative.max() > 0.45
    assert abs(relative.mean()) < 0.05


def test_noise_is_white_and_relative_to_the_inputs_spread() -> None:
    x = rows((3, 40, 40), 3) * np.array([1.0, 10.0, 100.0], np.float32).reshape(3, 1, 1, 1)
    added = (augmented(named("noise=0.1"), x, 0) - x).astype(np.float64)
    relative = added.reshape(3, -1).std(axis=1) / x.reshape(3, -1).std(axis=1)
    np.testing.assert_allclose(relative, 0.1, rtol=0.05)
    flat = added.reshape(3, -1) / added.reshape(3, -1).std(axis=1, keepdims=True)
    assert np.abs(flat.mean(axis=1)).max() < 0.05
    assert abs((flat**4).mean() - 3.0) < 0.3  # as of a normal distribution
    assert abs(np.corrcoef(flat)[0, 1]) < 0.05
    assert abs((flat[:, 1:] * flat[:, :-1]).mean()) < 0.05


def test_constant_inputs_stay_as_they_are() -> None:
    x = np.full((2, *IMAGE), 3.0, np.float32)
    for augmentation in ALL:
        np.testing.assert_allclose(augmented(augmentation, x, 0), x, rtol=1e-6)


def test_an_image_turns_about_its_centre_within_the_angle() -> None:
    y, x = np.mgrid[-20:21, -20:21]
    image = np.exp(-((x - 10.0) ** 2 + y**2) / 4.0).astype(np.float32)[None, None]
    found = []
    for seed in range(60):
        turned = augmented(named("rotation=30"), image, seed)[0, 0]
        centre = np.array([(turned * axis).sum() / turned.sum() for axis in (x, y)])
        assert abs(np.linalg.norm(centre) - 10.0) < 0.1
        found.append(np.degrees(np.arctan2(centre[1], centre[0])))
    assert np.abs(found).max() <= 30.5
    assert min(found) < -20 < 20 < max(found)


def test_turned_sensors_keep_lengths_and_the_angle_between_both() -> None:
    x = rows(SENSORS, 50)
    turned = augmented(named("rotation=40"), x, 1)
    before, after = (values.reshape(50, 2, 3, -1).astype(np.float64) for values in (x, turned))
    np.testing.assert_allclose(np.linalg.norm(after, axis=2), np.linalg.norm(before, axis=2), rtol=1e-5)
    inner = [(values[:, 0] * values[:, 1]).sum(axis=1) for values in (before, after)]
    np.testing.assert_allclose(inner[0], inner[1], atol=1e-4)
    cosine = (before * after).sum(axis=2) / (before**2).sum(axis=2)
    assert cosine.min() >= np.cos(np.radians(40)) - 1e-5
    assert cosine.min() < np.cos(np.radians(30))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fly", "unknown augmentation 'fly'; known: flip (left and right"),
        ("nois=1", "did you mean 'noise'?"),
        ("", "unknown augmentation ''"),
        ("noise", "'noise' has no severity; give 'noise=0.05'"),
        ("noise=much", "'much' is no number"),
        ("noise=nan", "'noise' has severity nan; give standard deviation"),
        ("noise=inf", "above 0 to 10"),
        ("noise=-1", "above 0 to 10"),
        ("noise=0", "above 0 to 10"),
        ("rotation=181", "degrees, above 0 to 180"),
        ("flip=1", "'flip' takes no severity"),
        ("flip=0", "'flip' takes no severity"),
    ],
)
def test_what_is_no_augmentation_is_refused_with_the_remedy(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_augmentations([text])
    assert said in str(caught.value)


def test_an_augmentation_given_twice_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'noise' is given 2 times"):
        parse_augmentations(["noise=0.1", "flip", "noise=0.2"])


@pytest.mark.parametrize("augmentation", ALL, ids=str)
def test_names_are_read_back(augmentation: Augmentation) -> None:
    assert parse_augmentations([str(augmentation)]) == (augmentation,)


def test_augmentations_are_refused_for_shapes_that_they_are_not_for() -> None:
    require_augmentations(ALL, IMAGE)
    require_augmentations(parse_augmentations(["rotation=10", "noise=0.1"]), SENSORS)
    require_augmentations(parse_augmentations(["flip"]), (None, None, None))
    for text, shape in (("flip", SENSORS), ("flip", FEATURES), ("rotation=10", (5, 20))):
        with pytest.raises(ConfigurationError, match=r"is for images .*the model takes \(.*leave it out"):
            require_augmentations(parse_augmentations([text]), shape)
    assert [a.name for a in fitting(ALL, FEATURES)] == ["brightness", "noise"]
