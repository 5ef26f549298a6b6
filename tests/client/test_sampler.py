import io
import threading
import time
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.sampler import Keep, Sampler
from quantization.errors import ConfigurationError, MalformedError


def numbered(start: int, count: int) -> np.ndarray:
    """Inputs of shape (2,) that say which ones they are."""
    return np.arange(start, start + count, dtype=np.float32)[:, None].repeat(2, axis=1)


def numbers(sampler: Sampler) -> list[int]:
    return sampler.inputs()[:, 0].astype(int).tolist()


def sampler_of(capacity: int, **options: object) -> Sampler:
    return Sampler((2,), max_bytes=8 * capacity, **options)  # type: ignore[arg-type]


@given(st.lists(st.integers(1, 12), max_size=12))
def test_latest_keeps_the_last_inputs_in_order(sizes: list[int]) -> None:
    sampler = sampler_of(10)
    start = 0
    for size in sizes:
        sampler.offer(numbered(start, size))
        start += size
    assert numbers(sampler) == list(range(max(0, start - 10), start))
    assert sampler.seen == start


def test_uniform_keeps_every_input_with_the_same_probability() -> None:
    hits = np.zeros(100)
    for seed in range(300):
        sampler = sampler_of(20, keep=Keep.UNIFORM, seed=seed)
        sampler.offer(numbered(0, 100))
        kept = numbers(sampler)
        assert len(kept) == 20
        assert kept == sorted(kept)
        hits[kept] += 1
    expected = 300 * 20 / 100
    assert np.abs(hits - expected).max() < 5 * np.sqrt(expected)
    assert abs(hits[:50].sum() / hits.sum() - 0.5) < 0.05


def test_the_rate_thins_out_what_is_looked_at() -> None:
    sampler = sampler_of(5000, rate=0.25, seed=1)
    sampler.offer(numbered(0, 4000))
    assert abs(sampler.seen - 1000) < 150
    assert len(sampler) == sampler.seen


def test_equal_seeds_choose_equally_and_others_differently() -> None:
    chosen = []
    for seed in (1, 1, 2):
        sampler = sampler_of(10, keep=Keep.UNIFORM, rate=0.5, seed=seed)
        sampler.offer(numbered(0, 500))
        chosen.append(numbers(sampler))
    assert chosen[0] == chosen[1] != chosen[2]


def test_kept_inputs_are_copies() -> None:
    sampler = sampler_of(4)
    batch = numbered(0, 2)
    sampler.offer(batch)
    batch[:] = -1
    sampler.inputs()[:] = -1
    assert numbers(sampler) == [0, 1]


def test_memory_is_bounded_by_what_was_asked_for() -> None:
    sampler = Sampler((3, 32, 32), max_bytes=1_000_000)
    for _ in range(20):
        sampler.offer(np.zeros((32, 3, 32, 32), np.float32))
    assert len(sampler) == sampler.capacity == 1_000_000 // (4 * 3 * 32 * 32)
    assert sampler.inputs().nbytes <= 1_000_000


def test_inputs_of_another_shape_are_ignored() -> None:
    sampler = sampler_of(4)
    sampler.offer(np.zeros((3, 5), np.float32))
    assert (len(sampler), sampler.seen, sampler.inputs().shape) == (0, 0, (0, 2))


@pytest.mark.parametrize("keep", list(Keep))
def test_a_restored_sampler_goes_on_where_it_was(keep: Keep) -> None:
    before = sampler_of(10, keep=keep)
    before.offer(numbered(0, 25))
    after = sampler_of(10, keep=keep)
    after.restore(before.to_bytes())
    assert numbers(after) == numbers(before)
    assert after.seen == 25
    after.offer(numbered(25, 3))
    if keep is Keep.LATEST:
        assert numbers(after) == list(range(18, 28))


def test_a_smaller_sampler_takes_the_latest_of_a_stored_sample() -> None:
    before = sampler_of(10)
    before.offer(numbered(0, 10))
    after = sampler_of(4)
    after.restore(before.to_bytes())
    assert numbers(after) == [6, 7, 8, 9]
    after.offer(numbered(10, 1))
    assert numbers(after) == [7, 8, 9, 10]


def test_clear_forgets_the_inputs() -> None:
    sampler = sampler_of(4)
    sampler.offer(numbered(0, 6))
    sampler.clear()
    assert numbers(sampler) == []
    sampler.offer(numbered(6, 5))
    assert numbers(sampler) == [7, 8, 9, 10]


def npz(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    fields: dict[str, object] = {
        "version": np.int64(1), "rows": numbered(0, 2), "order": np.arange(2), "seen": np.int64(2),
    }  # fmt: skip
    np.savez(buffer, allow_pickle=True, **{**fields, **arrays})  # type: ignore[arg-type]
    return buffer.getvalue()


BAD_FILES = {
    "pickled": npz(rows=np.array([object(), object()])),
    "other shape": npz(rows=np.zeros((2, 3), np.float32)),
    "scalar rows": npz(rows=np.float32(1)),
    "other type": npz(rows=numbered(0, 2).astype(np.float64)),
    "not finite": npz(rows=np.full((2, 2), np.nan, np.float32)),
    "order too short": npz(order=np.arange(1)),
    "order not rising": npz(order=np.array([1, 0])),
    "order beyond seen": npz(order=np.array([0, 2])),
    "negative order": npz(order=np.array([-1, 0])),
    "order of text": npz(order=np.array(["a", "b"])),
    "seen is an array": npz(seen=np.arange(2)),
    "other version": npz(version=np.int64(2)),
    "empty": b"",
    "no zip": b"PK" + bytes(50),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_are_no_sample_are_refused_and_change_nothing(case: str) -> None:
    sampler = sampler_of(4)
    sampler.offer(numbered(5, 2))
    with pytest.raises(MalformedError):
        sampler.restore(BAD_FILES[case])
    assert numbers(sampler) == [5, 6]


@given(st.integers(0, 700), st.integers(0, 255))
def test_any_damage_to_a_stored_sample_is_noticed_or_harmless(place: int, value: int) -> None:
    data = bytearray(npz())
    data[place % len(data)] = value
    sampler = sampler_of(4)
    try:
        sampler.restore(bytes(data))
    except MalformedError:
        return
    assert sampler.inputs().shape[1:] == (2,)


@pytest.mark.parametrize("field", ["version", "rows", "order", "seen"])
def test_a_sample_with_a_field_that_is_no_array_is_refused(field: str) -> None:
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(npz())) as stored, zipfile.ZipFile(changed, "w") as archive:
        for name in stored.namelist():
            archive.writestr(name, bytes(8) if name == f"{field}.npy" else stored.read(name))
    with pytest.raises(MalformedError, match=f"'{field}' is no array"):
        sampler_of(4).restore(changed.getvalue())


@pytest.mark.parametrize("seen", [np.float64("nan"), np.float64(2), np.timedelta64("nat"), np.str_("2")])
def test_a_count_that_is_no_whole_number_is_refused(seen: object) -> None:
    with pytest.raises(MalformedError, match="order"):
        sampler_of(4).restore(npz(seen=seen))


def test_a_sample_without_a_field_is_refused() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, rows=numbered(0, 2))
    with pytest.raises(MalformedError, match="version"):
        sampler_of(4).restore(buffer.getvalue())


def test_a_sample_that_unpacks_to_too_much_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.sampler.MAX_FILE_BYTES", 1 << 20)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, rows=np.zeros((1 << 18) + 1, np.float32))
    assert len(buffer.getvalue()) < 1 << 13
    with pytest.raises(MalformedError, match="at most"):
        sampler_of(4).restore(buffer.getvalue())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_bytes": 7}, "allow 8"),
        ({"max_bytes": 1 << 40}, "allow 8"),
        ({"rate": 1.5}, "not between"),
        ({"rate": float("nan")}, "not between"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Sampler((2,), **options)  # type: ignore[arg-type]


def test_threads_may_offer_at_the_same_time() -> None:
    sampler = sampler_of(50)
    threads = [
        threading.Thread(target=lambda t=t: [sampler.offer(numbered(1000 * t + i, 1)) for i in range(500)])
        for t in range(4)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert len(sampler.inputs()) <= 50
        time.sleep(0.001)
    assert (sampler.seen, len(sampler)) == (2000, 50)
    rows = sampler.inputs()
    np.testing.assert_array_equal(rows[:, 0], rows[:, 1])  # no row is half one input and half another
