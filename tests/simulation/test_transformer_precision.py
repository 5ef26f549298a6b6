"""Transformers in a fleet: a tenth of the bytes, found by the devices, without training."""

from pathlib import Path

import pytest

from server.precision_settings import PrecisionSettings
from simulation.experiment import run_experiment
from simulation.scenario import Scenario

pytestmark = [pytest.mark.slow]


@pytest.mark.parametrize("task", ["digits_vit", "unicode"])
def test_transformer_keeps_its_answers_at_a_tenth_of_its_bytes(task: str, model_cache: Path) -> None:
    scenario = Scenario(
        task=task, devices=6, generations=1, cache_dir=model_cache, precision=PrecisionSettings(size_ratio=10.0)
    )
    result = run_experiment(scenario)
    assert result.precision is not None
    assert result.precision.size_ratio >= 10.0
    assert result.accuracy_tuned >= result.accuracy_fp32 - 0.015
