import numpy as np
import pytest

from quantization.training_views import Views, draw_views

IMAGES = np.random.default_rng(0).normal(size=(400, 3, 8, 8)).astype(np.float32)
ALL = ("flip", "shift=0.125", "noise=0.1")


def _same(a: Views, b: Views) -> bool:
    return np.array_equal(a.inputs, b.inputs) and np.array_equal(a.is_recorded, b.is_recorded)


def test_views_follow_from_the_seed() -> None:
    first = draw_views(IMAGES, ALL, 0.5, 1)
    assert _same(first, draw_views(IMAGES, ALL, 0.5, 1))
    assert not _same(first, draw_views(IMAGES, ALL, 0.5, 2))


def test_without_settings_inputs_are_those_recorded() -> None:
    views = draw_views(IMAGES, (), 0.0, 1)
    assert views.inputs is IMAGES
    assert views.is_recorded.all()


def test_inputs_are_not_changed() -> None:
    before = IMAGES.copy()
    draw_views(IMAGES, ALL, 1.0, 3)
    np.testing.assert_array_equal(IMAGES, before)


@pytest.mark.parametrize(
    ("augmentations", "mixing", "share"), [(("flip",), 0.0, 0.5), ((), 0.5, 0.5), (("flip",), 0.5, 0.25)]
)
def test_what_is_left_as_recorded_is_said_to_be(
    augmentations: tuple[str, ...], mixing: float, share: float
) -> None:
    views = draw_views(IMAGES, augmentations, mixing, 1)
    np.testing.assert_array_equal(views.inputs[views.is_recorded], IMAGES[views.is_recorded])
    assert abs(views.is_recorded.mean() - share) < 0.1
    changed = (views.inputs != IMAGES).any(axis=(1, 2, 3))
    assert not (changed & views.is_recorded).any()
    assert views.inputs.dtype == np.float32


def test_mixtures_lie_between_two_inputs() -> None:
    constant = np.broadcast_to(np.arange(50, dtype=np.float32)[:, None, None], (50, 2, 4))
    views = draw_views(np.ascontiguousarray(constant), (), 1.0, 1)
    assert views.inputs.min() >= 0
    assert views.inputs.max() <= 49
    assert (np.ptp(views.inputs, axis=(1, 2)) < 1e-5).all()
    assert not views.is_recorded.all()


def test_rows_of_one_axis_are_never_mixed() -> None:
    letters = np.arange(40, dtype=np.float32).reshape(4, 10)
    assert draw_views(letters, ("flip", "shift=0.125"), 1.0, 1).inputs is letters


def test_a_single_input_has_nothing_to_mix_with() -> None:
    views = draw_views(IMAGES[:1], (), 1.0, 1)
    assert views.is_recorded.all()
