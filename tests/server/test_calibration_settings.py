import math

import models
import pytest
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st

from quantization.calibration_recipe import DEFAULT_RECIPE, CalibrationRecipe, Strategy
from quantization.device_class import ARM
from quantization.errors import ConfigurationError
from server.blob_store import BlobStore
from server.calibration_settings import (
    recipe_from_options,
    recipe_from_run_config,
    recipe_to_options,
    replace_options,
)
from server.lab import prepare_model
from server.registry import Registry
from server.settings import ServerSettings, to_json
from server.tuner import run_generation
from simulation.grid import InProcessGrid

weighted = st.builds(
    CalibrationRecipe,
    st.sampled_from([Strategy.MARGIN, Strategy.LOSS]),
    st.floats(1, 256),
    st.lists(st.sampled_from(["flip", "noise=0.05"]), unique=True).map(tuple),
)


@given(weighted)
def test_options_are_read_back(recipe: CalibrationRecipe) -> None:
    assert recipe_from_options(recipe_to_options(recipe)) == recipe


def test_no_options_are_the_default() -> None:
    assert recipe_from_options({}) == DEFAULT_RECIPE
    assert recipe_to_options(DEFAULT_RECIPE) == {}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stratgy": "margin"}, "unknown setting 'stratgy' of calibration; did you mean 'strategy'?"),
        ({"hard-sample-weight": 2.0}, "did you mean 'hard_sample_weight'?"),
        ({"x": 1}, "known: strategy, hard_sample_weight, augmentations"),
        ({"strategy": "entropy"}, "'entropy' is unknown; give one of uniform, margin, loss"),
        ({"strategy": 3}, "strategy must be a text, one of uniform, margin, loss, not 3"),
        ({"strategy": "margin", "hard_sample_weight": math.nan}, "is nan; give a number from 1 to 256"),
        ({"strategy": "margin", "hard_sample_weight": 0.5}, "is 0.5; give a number from 1 to 256"),
        ({"strategy": "margin", "hard_sample_weight": 10**400}, "is inf; give a number from 1 to 256"),
        ({"strategy": "margin", "hard_sample_weight": True}, "must be a number, such as 2.0, not True"),
        ({"strategy": "margin", "hard_sample_weight": "2"}, "must be a number, such as 2.0, not '2'"),
        ({"hard_sample_weight": 2.0}, "give strategy margin or loss with it, or leave it out"),
        ({"augmentations": "flip"}, "must be a list of texts"),
        ({"augmentations": [1]}, "must be a list of texts"),
        ({"augmentations": ["zoom=2"]}, "unknown augmentation 'zoom'; known: flip"),
        ({"augmentations": ["noise"]}, "give 'noise=0.05'"),
    ],
)
def test_what_is_no_recipe_is_refused_with_the_remedy(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        recipe_from_options(options)
    assert said in str(caught.value)


def test_a_run_configuration_holds_the_defaults_or_what_was_set() -> None:
    defaults = {
        "calibration-strategy": "uniform",
        "hard-sample-weight": 2.0,
        "calibration-augmentations": "",
    }
    assert recipe_from_run_config(defaults) == DEFAULT_RECIPE
    chosen = defaults | {"calibration-strategy": "loss", "calibration-augmentations": "flip noise=0.1"}
    assert recipe_from_run_config(chosen) == CalibrationRecipe(
        Strategy.LOSS, augmentations=("flip", "noise=0.1")
    )
    with pytest.raises(ConfigurationError, match="leave it out"):
        recipe_from_run_config(defaults | {"hard-sample-weight": 4.0})


def test_a_typed_strategy_that_weighs_nothing_drops_the_files_weight() -> None:
    file = {"strategy": "margin", "hard_sample_weight": 4.0, "augmentations": ["flip"]}
    assert replace_options(file, {"strategy": "uniform"}) == {
        "strategy": "uniform",
        "augmentations": ["flip"],
    }
    assert replace_options(file, {"strategy": "loss"}) == file | {"strategy": "loss"}


def test_the_servers_settings_take_the_recipe_and_keep_it_on_record() -> None:
    config = {"calibration-strategy": "margin", "hard-sample-weight": 3, "calibration-augmentations": "flip"}
    settings = ServerSettings.from_run_config(config)
    assert settings.calibration == CalibrationRecipe(Strategy.MARGIN, 3.0, ("flip",))
    assert '"calibration": "margin 3.0 flip"' in to_json(settings)
    assert settings.augmentation_seed(7) == 7
    assert ServerSettings().augmentation_seed(7) == 0


def test_a_run_refuses_augmentations_that_the_models_input_cannot_have(
    registry: Registry, blobs: BlobStore
) -> None:
    model = models.mlp()
    inputs = models.example_inputs(model, 20)
    prepare_model(model, inputs, name="mlp", device_classes=[ARM], registry=registry, blobs=blobs)
    settings = ServerSettings(model_name="mlp", calibration=CalibrationRecipe(augmentations=("rotation=5",)))
    unasked = InProcessGrid(ClientApp(), 1)
    with pytest.raises(ConfigurationError, match=r"'rotation' is for images .* leave it out"):
        run_generation(unasked, registry, blobs, settings)
