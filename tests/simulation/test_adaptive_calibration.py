"""Recipes end to end: from a scenario, through the rounds, to ranges that equal those of the pooled data."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from benches import open_bench, tune

from quantization.calibration_recipe import DEFAULT_RECIPE, CalibrationRecipe, Strategy
from quantization.errors import ConfigurationError
from server.generation import Generation
from simulation.bench import Bench
from simulation.tasks import TaskData

RECIPE = CalibrationRecipe(Strategy.LOSS, 4.0, ("flip", "noise=0.1"))


@dataclass(frozen=True)
class Tuned:
    """A bench behind a generation that devices calibrated by a recipe for."""

    bench: Bench
    generation: Generation


@pytest.fixture(scope="module")
def tuned(digits: TaskData) -> Iterator[Tuned]:
    with open_bench(
        digits, devices=10, drifts=("contrast=0.3",), labelled=0.5, stragglers=0.1, seed=1, calibration=RECIPE
    ) as bench:
        yield Tuned(bench, tune(bench)["x86-vnni"])


def test_ranges_by_a_recipe_are_those_of_the_pooled_data(tuned: Tuned) -> None:
    assert tuned.generation.policy, tuned.generation.reason
    assert tuned.bench.equals_pooled(tuned.generation)


@pytest.mark.parametrize(
    "other",
    [
        DEFAULT_RECIPE,
        replace(RECIPE, hard_sample_weight=2.0),
        replace(RECIPE, strategy=Strategy.MARGIN),
        replace(RECIPE, augmentations=("flip",)),
    ],
    ids=str,
)
def test_the_check_sees_another_recipe(tuned: Tuned, other: CalibrationRecipe) -> None:
    bench = replace(tuned.bench, settings=replace(tuned.bench.settings, calibration=other))
    assert not bench.equals_pooled(tuned.generation)


def test_the_recipe_is_on_record(tuned: Tuned) -> None:
    assert str(RECIPE) in tuned.generation.settings


def test_a_recipe_that_weighs_all_samples_one_gives_what_no_recipe_gives(digits: TaskData) -> None:
    policies = []
    for recipe in (DEFAULT_RECIPE, CalibrationRecipe(Strategy.MARGIN, 1.0)):
        with open_bench(digits, devices=6, drifts=("contrast=0.3",), calibration=recipe) as bench:
            policies.append(tune(bench)["x86-vnni"].policy)
    assert policies[0] == policies[1]
    assert policies[0]


def test_copies_let_devices_with_few_inputs_take_part(digits: TaskData) -> None:
    hits = {}
    for augmentations in ((), ("rotation=5",)):
        recipe = CalibrationRecipe(augmentations=augmentations)
        with open_bench(digits, devices=20, drifts=("contrast=0.3",), calibration=recipe) as bench:
            bench.fleet.rows = tuple(rows[::6][:4] for rows in bench.fleet.rows)
            tune(bench)
            served = {name: entry.manifest_digest for name, entry in bench.serving().items()}
            hits[augmentations] = bench.mean_accuracy(served, bench.field_inputs) or 0.0
    assert hits[()] < 0.5
    assert hits["rotation=5",] > 0.9


def test_an_augmentation_that_the_models_input_cannot_have_is_refused_before_a_round(
    digits: TaskData,
) -> None:
    flat = replace(digits, to_input=lambda raw: np.asarray(raw, np.float32).reshape(len(raw), -1))
    recipe = CalibrationRecipe(augmentations=("flip",))
    with (
        pytest.raises(
            ConfigurationError, match=r"'flip' is for images .* the model takes \(64\); leave it out"
        ),
        open_bench(flat, devices=6, calibration=recipe),
    ):
        pytest.fail("there is nothing to calibrate with")
