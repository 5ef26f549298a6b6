import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quantization.errors import ConfigurationError
from simulation.drift import apply_drifts, parse_drifts
from simulation.evaluation import accuracy, float_model
from simulation.tasks import TASKS, TaskData, TaskSource, load_task


@pytest.fixture
def cache(model_cache: Path) -> Path:
    return model_cache


def field_accuracy(task: TaskData, *drifts: str) -> float:
    raw = apply_drifts(task.test_x, parse_drifts(drifts), task.domain, np.random.default_rng(0))
    found = accuracy(float_model(task.model), task.to_input(raw), task.test_y)
    assert found is not None
    return found


def test_the_digits_model_reads_digits_nobody_trained_it_with(digits: TaskData) -> None:
    assert field_accuracy(digits) >= 0.97
    assert field_accuracy(digits, "contrast=0.3") < 0.6


def test_no_digit_is_on_two_sides(digits: TaskData) -> None:
    sides = [{row.tobytes() for row in side} for side in (digits.lab_x, digits.field_x, digits.test_x)]
    assert [len(side) for side in sides] == [797, 500, 500]
    assert len(set.union(*sides)) == 1_797


def test_a_trained_model_is_kept(digits: TaskData, cache: Path) -> None:
    told: list[str] = []
    again = load_task("digits", 0, cache, lambda _share, text: told.append(text))
    assert again.model == digits.model
    assert not told
    np.testing.assert_array_equal(again.test_x, digits.test_x)


def test_a_kept_model_needs_no_torch(digits: TaskData, cache: Path) -> None:
    assert digits.model
    script = (
        "import sys; from pathlib import Path; from simulation.tasks.catalogue import load_task;"
        f"load_task('digits', 0, Path({str(cache)!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.slow
def test_training_is_repeatable_and_tells_how_far_it_is(digits: TaskData, tmp_path: Path) -> None:
    shares: list[float] = []
    again = load_task("digits", 0, tmp_path, lambda share, _text: shares.append(share))
    assert again.model == digits.model
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert shares[-1] == 1.0


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("digit", "did you mean 'digits'?"),
        ("imagenet", "known: digits, har, fsdd, fashion_mnist, cifar10"),
        ("", "unknown task ''"),
        ("digits:", "has no variants"),
        ("digits:big", "has no variants"),
        ("fsdd:", "give --task fsdd"),
    ],
)
def test_an_unknown_task_is_refused(name: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told.replace("?", r"\?")):
        load_task(name)


@pytest.mark.data
def test_an_unknown_speaker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no speaker 'nobody'; give one of george"):
        load_task("fsdd:nobody", 0, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("digits_vit", 0.95), ("unicode", 0.89)])
def test_transformers_reach_their_baselines(name: str, least: float, cache: Path) -> None:
    task = load_task(name, 0, cache)
    assert field_accuracy(task) >= least
    rows = [{row.tobytes() for row in side} for side in (task.lab_x, task.field_x, task.test_x)]
    assert not rows[1] & rows[2]
    assert not rows[0] & rows[2]


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least", "drift", "most"),
    [
        ("cifar10", 0.91, "contrast=0.3", 0.69),
        ("har", 0.91, "sensor-gain=1.5", 0.6),
        ("fashion_mnist", 0.875, "contrast=0.3", 0.5),
        ("fsdd:lucas", 0.75, "snr=0", 0.85),
    ],
)
def test_models_reach_their_baselines_and_lose_to_drift(
    name: str, least: float, drift: str, most: float, cache: Path
) -> None:
    task = load_task(name, 0, cache)
    assert field_accuracy(task) >= least
    assert field_accuracy(task, drift) <= most


def test_every_task_is_described() -> None:
    names = ["digits", "har", "fsdd", "fashion_mnist", "cifar10", "digits_vit", "unicode"]
    assert [task.name for task in TASKS] == names
    assert all(task.summary for task in TASKS)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_task_is_in_the_docs(task: TaskSource) -> None:
    text = (Path(__file__).parents[3] / "docs" / "scenarios.md").read_text()
    assert f"`{task.name}`" in text
