import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from simulation.tasks.splits import stratified_split


@given(st.integers(1, 200), st.integers(1, 10), st.integers(0, 99), st.data())
def test_parts_have_their_sizes_and_share_no_row(
    rows: int, classes: int, seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    first = data.draw(st.integers(0, rows))
    second = data.draw(st.integers(0, rows - first))
    parts = stratified_split(labels, (first, second), rng)
    assert [len(part) for part in parts] == [first, second]
    dealt = np.concatenate(parts)
    assert len(np.unique(dealt)) == len(dealt)


@given(st.integers(0, 99))
def test_every_part_has_every_class_in_proportion(seed: int) -> None:
    labels = np.repeat(np.arange(4), [100, 200, 300, 400])
    parts = stratified_split(labels, (100, 300, 600), np.random.default_rng(seed))
    for part in parts:
        counts = np.bincount(labels[part], minlength=4)
        np.testing.assert_allclose(counts, len(part) * np.array([0.1, 0.2, 0.3, 0.4]), atol=2.5)
