import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantization.arrays import IntArray
from quantization.errors import ConfigurationError
from simulation.partition import partition
from simulation.tasks.task import TaskData


def task(rows: int, labels: IntArray | None = None, owners: IntArray | None = None) -> TaskData:
    x = np.arange(rows, dtype=np.float32).reshape(-1, 1)
    one = x[:1]
    return TaskData(
        name="rows",
        domain="generic",
        model=b"",
        lab_x=one,
        lab_y=None,
        field_x=x,
        field_y=labels,
        field_owner=owners,
        test_x=one,
        test_y=None,
    )


@st.composite
def tasks(draw: st.DrawFn) -> TaskData:
    rows = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    labels = rng.integers(0, draw(st.integers(1, 10)), rows)
    return task(rows, labels, rng.integers(0, draw(st.integers(1, 8)), rows))


SCHEMES = st.sampled_from(
    ["auto", "owner", "iid", "classes:1", "classes:2", "classes:99", "dirichlet:0.05", "dirichlet:50"]
)


@settings(deadline=None)
@given(tasks(), st.integers(1, 70), SCHEMES, st.integers(0, 9))
def test_no_row_is_on_two_devices_and_devices_are_filled_as_far_as_rows_go(
    data: TaskData, devices: int, scheme: str, seed: int
) -> None:
    parts = partition(data, devices, scheme, seed)
    assert len(parts) == devices
    dealt = np.concatenate(parts)
    assert len(np.unique(dealt)) == len(dealt)
    assert dealt.min() >= 0
    assert dealt.max() < len(data.field_x)
    assert all(part.dtype == np.int64 and np.all(np.diff(part) > 0) for part in parts)
    if len(dealt) >= devices:
        assert all(len(part) > 0 for part in parts)


@given(tasks(), st.integers(1, 70), SCHEMES)
def test_the_same_seed_deals_the_same_rows(data: TaskData, devices: int, scheme: str) -> None:
    again = partition(data, devices, scheme, 5)
    for part, other in zip(partition(data, devices, scheme, 5), again, strict=True):
        np.testing.assert_array_equal(part, other)


def test_another_seed_deals_other_rows() -> None:
    data = task(100)
    first, second = partition(data, 2, "iid", 0)[0], partition(data, 2, "iid", 1)[0]
    assert not np.array_equal(first, second)


def test_with_more_devices_than_owners_each_device_has_one_owner_and_all_rows_are_used() -> None:
    owners = np.repeat([3, 1, 2], [10, 60, 30])
    parts = partition(task(100, owners=owners), 10, "owner")
    assert all(len(set(owners[part])) == 1 for part in parts)
    assert sum(len(part) for part in parts) == 100
    assert [sum(owners[part[0]] == name for part in parts) for name in (1, 2, 3)] == [6, 3, 1]
    for part in parts:  # contiguous among the owner's rows
        of_owner = np.flatnonzero(owners == owners[part[0]])
        assert np.all(np.diff(np.searchsorted(of_owner, part)) == 1)


def test_with_fewer_devices_than_owners_some_owners_take_part_whole() -> None:
    owners = np.repeat(np.arange(8), 5)
    parts = partition(task(40, owners=owners), 3, "owner", 1)
    assert all(len(part) == 5 and len(set(owners[part])) == 1 for part in parts)


def test_each_device_sees_as_many_classes_as_asked_for() -> None:
    labels = np.tile(np.arange(10), 100)
    parts = partition(task(1000, labels), 50, "classes:2")
    assert all(len(set(labels[part])) == 2 for part in parts)
    assert all(len(part) == 20 for part in parts)
    assert sum(len(part) for part in parts) == 1000
    pairs = {tuple(sorted(set(labels[part].tolist()))) for part in parts}
    assert len(pairs) > 10


def test_small_alpha_is_more_one_sided_than_large() -> None:
    labels = np.tile(np.arange(10), 200)
    data = task(2000, labels)

    def largest_share(scheme: str) -> float:
        counts = [np.bincount(labels[part], minlength=10) for part in partition(data, 20, scheme)]
        return float(np.mean([count.max() / count.sum() for count in counts]))

    assert largest_share("dirichlet:0.05") > 0.6
    assert largest_share("dirichlet:1000") < 0.2


@pytest.mark.parametrize(
    ("has_labels", "has_owners", "same_as"),
    [(True, True, "owner"), (False, True, "owner"), (True, False, "classes:2"), (False, False, "iid")],
)
def test_auto_takes_what_the_data_says(has_labels: bool, has_owners: bool, same_as: str) -> None:
    column = np.repeat(np.arange(4), 10)
    data = task(40, column if has_labels else None, column if has_owners else None)
    for part, other in zip(partition(data, 8, "auto"), partition(data, 8, same_as), strict=True):
        np.testing.assert_array_equal(part, other)


def test_more_devices_than_rows_leaves_some_empty() -> None:
    lengths = [len(part) for part in partition(task(3), 5, "iid")]
    assert sorted(lengths) == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("scheme", "told"),
    [
        ("owner", "needs owners"),
        ("classes:2", "needs labels"),
        ("dirichlet:0.5", "needs labels"),
        ("classes:0", "is unknown"),
        ("classes:two", "is unknown"),
        ("dirichlet:0", "is unknown"),
        ("dirichlet:nan", "is unknown"),
        ("dirichlet:inf", "is unknown"),
        ("owner:3", "is unknown"),
        ("shards", "is unknown"),
    ],
)
def test_a_scheme_that_cannot_be_used_is_refused(scheme: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        partition(task(10), 2, scheme)


def test_no_devices_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least 1"):
        partition(task(10), 0)
