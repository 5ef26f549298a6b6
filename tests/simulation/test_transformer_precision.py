"""Transformers in a fleet: a tenth of the bytes, found by the devices, without training."""

from pathlib import Path

import pytest

from server.precision_settings import PrecisionSettings
from simulation.experiment import run_experiment
from simulation.scenario import Scenario

pytestmark = [pytest.mark.slow]


@pytest.fixture
def cache(model_cache: Path) -> Path:
    return model_cache


@pytest.mark.parametrize("task", ["digits_vit", "unicode"])
def test_transformer_keeps_its_answers_at_a_tenth_of_its_bytes(task: str, cache: Path) -> None:
    scenario = Scenario(
        task=task, devices=6, generations=1, cache_dir=cache, precision=PrecisionSettings(size_ratio=10.0)
    )
    result = run_experiment(scenario)
    assert result.precision is not None
    assert result.precision.size_ratio >= 10.0
    assert result.accuracy.tuned is not None
    assert result.accuracy.fp32 is not None
    assert result.accuracy.tuned >= result.accuracy.fp32 - 0.015
