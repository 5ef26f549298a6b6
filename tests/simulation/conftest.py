import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from quantization.calibration import Range
from quantization.renormalization import LayerDrift
from simulation.result import Accuracy, ExperimentResult, GenerationResult
from simulation.tasks import TaskData, load_task

ResultFactory = Callable[..., ExperimentResult]


@pytest.fixture(autouse=True)
def _own_logs() -> Iterator[None]:
    """Let no test see the process-wide logs and warnings that a command before it configured."""
    with warnings.catch_warnings():
        yield
    logging.disable(logging.NOTSET)
    structlog.reset_defaults()


def _layers(count: int) -> tuple[str, ...]:
    return tuple(
        f"/layer{1 + i // 6}/layer{1 + i // 6}.{i // 2 % 3}/conv{1 + i % 2}/Conv" for i in range(count)
    )


def _generation(number: int, layers: tuple[str, ...], **changes: Any) -> GenerationResult:
    drift = {
        name: LayerDrift(1.4 / (1 + i / 5), 0.9 / (1 + i / 4), 30.0 / (1 + i))
        for i, name in enumerate(layers)
    }
    residual = {name: LayerDrift(0.06 + 0.01 * (i % 3), 0.05, 1.2) for i, name in enumerate(layers)}
    generation = GenerationResult(
        generation=number,
        accuracy=0.912,
        agreement=0.985,
        size_bytes=281_000,
        update_bytes=8_912,
        clients=47,
        dropped={"late": 2, "failed": 1},
        published=True,
        reason="labelled hits rose from 65.9 % to 91.0 %",
        drift=drift,
        residual_drift=residual,
        ranges={f"{name}_output": Range(0.0, 4.0 + i % 5) for i, name in enumerate(layers)},
        statistics_bytes=47 * 61_000,
        seconds=7.25,
    )
    return replace(generation, **changes)


@pytest.fixture
def make_generation() -> Callable[..., GenerationResult]:
    """Make a published generation of ResNet-20's size; arguments replace fields."""
    return lambda number=1, layer_count=4, **changes: _generation(number, _layers(layer_count), **changes)


@pytest.fixture
def make_result() -> ResultFactory:
    """Make the result of two generations, the second one not published; arguments replace fields."""

    def make(layer_count: int = 4, **changes: Any) -> ExperimentResult:
        names = _layers(layer_count)
        second = _generation(
            2, names, published=False, update_bytes=0, reason="no drift beyond chance", residual_drift={}
        )
        result = ExperimentResult(
            task="cifar10",
            seed=0,
            devices=50,
            drift={"contrast": 0.3},
            accuracy=Accuracy(fp32=0.666, frozen=0.661, tuned=0.912, lab_fp32=0.9172, lab_frozen=0.9163),
            generations=(_generation(1, names), second),
            size_bytes={"fp32": 1_089_000, "tuned": 281_000},
            update_bytes=8_912,
            federated_equals_pooled=True,
            wall_seconds=31.4,
            lab_ranges={f"{name}_output": Range(-0.5 * (i % 2), 3.0 + i % 7) for i, name in enumerate(names)},
            float_ops=("Pad_3 (Pad): no integer kernel",),
            layers=names,
        )
        return replace(result, **changes)

    return make


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep trained models for the session, all of its processes: each is trained once, in seconds."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "models"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def digits(model_cache: Path) -> TaskData:
    """Load the task digits with seed 0."""
    return load_task("digits", 0, model_cache)
