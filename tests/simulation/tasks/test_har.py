import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.arrays import IntArray
from simulation.data import read_data_file
from simulation.tasks.har import WINDOW_SAMPLES, Windows, split_windows


@st.composite
def recordings(draw: st.DrawFn) -> Windows:
    """Windows of a few people, in stretches that overlap by half, with gaps between."""
    columns: list[tuple[int, int, int, int]] = []
    for recording in range(draw(st.integers(1, 4))):
        person, sample = draw(st.integers(1, 3)), 0
        for _ in range(draw(st.integers(1, 6))):
            label = draw(st.integers(0, 2))
            for _ in range(draw(st.integers(1, 8))):
                columns.append((person, label, recording, sample))
                sample += WINDOW_SAMPLES // 2
            sample += WINDOW_SAMPLES // 2 + draw(st.integers(0, 300))
    person, label, recording, start = np.array(columns, np.int64).T
    return Windows(person, label, recording, start)


def shared_samples(windows: Windows, one: IntArray, other: IntArray) -> int:
    """Count pairs of windows, one of each half, that have samples in common."""
    is_same = windows.recording[one][:, None] == windows.recording[other][None]
    distance = np.abs(windows.start[one][:, None] - windows.start[other][None])
    return int(np.count_nonzero(is_same & (distance < WINDOW_SAMPLES)))


@given(recordings(), st.integers(0, 9))
def test_no_sample_is_in_both_halves(windows: Windows, seed: int) -> None:
    rows = np.arange(len(windows.start))
    halves = split_windows(rows, windows, np.random.default_rng(seed))
    assert shared_samples(windows, *halves) == 0
    assert len(np.unique(np.concatenate(halves))) == len(halves[0]) + len(halves[1])


def test_a_single_long_stretch_is_cut_in_the_middle() -> None:
    zeros = np.zeros(10, np.int64)
    windows = Windows(zeros, zeros, zeros, np.arange(10) * (WINDOW_SAMPLES // 2))
    halves = split_windows(np.arange(10), windows, np.random.default_rng(0))
    assert sorted(len(half) for half in halves) == [4, 5]  # one window lies across the cut


def test_other_rows_are_left_alone() -> None:
    zeros = np.zeros(10, np.int64)
    windows = Windows(zeros, zeros, zeros, np.arange(10) * WINDOW_SAMPLES)
    halves = split_windows(np.array([2, 5, 7]), windows, np.random.default_rng(0))
    assert sorted(np.concatenate(halves)) == [2, 5, 7]


@pytest.mark.data
@pytest.mark.parametrize("seed", [0, 1])
def test_people_in_the_field_have_every_activity_on_both_sides(seed: int) -> None:
    arrays = read_data_file("har.npz", ("subject", "y", "experiment", "start", "is_test"), "har").arrays
    windows = Windows(*(arrays[name].astype(np.int64) for name in ("subject", "y", "experiment", "start")))
    rows = np.flatnonzero(arrays["is_test"])
    field, test = split_windows(rows, windows, np.random.default_rng(seed))
    assert shared_samples(windows, field, test) == 0
    assert len(field) + len(test) > 0.99 * len(rows)
    for side in (field, test):
        seen = {
            (person, label) for person, label in zip(windows.person[side], windows.label[side], strict=True)
        }
        assert len(seen) == 6 * len(np.unique(windows.person[rows]))
        assert 0.4 < len(side) / len(rows) < 0.6
