"""How a calibration recipe is written: as options, in a table of a scenario, and in a run's configuration.

[calibration]
strategy = "margin"
hard_sample_weight = 4.0
augmentations = ["flip", "noise=0.05"]
"""

import difflib
from collections.abc import Mapping
from typing import Final

from quantization.calibration_recipe import (
    DEFAULT_HARD_SAMPLE_WEIGHT,
    DEFAULT_RECIPE,
    CalibrationRecipe,
    Strategy,
    strategy_named,
)
from quantization.errors import ConfigurationError

STRATEGY, HARD_SAMPLE_WEIGHT, AUGMENTATIONS = "strategy", "hard_sample_weight", "augmentations"
KEYS: Final = (STRATEGY, HARD_SAMPLE_WEIGHT, AUGMENTATIONS)
"""Names of all settings in a table."""

RUN_CONFIG_KEYS: Final = {
    STRATEGY: "calibration-strategy",
    HARD_SAMPLE_WEIGHT: "hard-sample-weight",
    AUGMENTATIONS: "calibration-augmentations",
}
"""Their names in a Flower run configuration, where augmentations are words with spaces between them."""


def recipe_from_options(options: Mapping[str, object]) -> CalibrationRecipe:
    """Return the recipe that a table describes; what it leaves out has its default.

    Raises:
        ConfigurationError: A name is unknown, a value has the wrong type, or cannot be used.
    """
    for name in options:
        if name not in KEYS:
            near = difflib.get_close_matches(name.replace("-", "_").lower(), KEYS, n=1)
            known = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(KEYS)}"
            raise ConfigurationError(f"unknown setting {name!r} of calibration; {known}")
    strategy = _strategy(options.get(STRATEGY, DEFAULT_RECIPE.strategy.value))
    if HARD_SAMPLE_WEIGHT in options and strategy is Strategy.UNIFORM:
        raise ConfigurationError(
            f"{HARD_SAMPLE_WEIGHT} {options[HARD_SAMPLE_WEIGHT]!r} means nothing where all samples weigh the same;"
            f" give {STRATEGY} margin or loss with it, or leave it out"
        )
    weight = _weight(options.get(HARD_SAMPLE_WEIGHT, DEFAULT_HARD_SAMPLE_WEIGHT))
    return CalibrationRecipe(strategy, weight, _texts(options.get(AUGMENTATIONS, ())))


def replace_options(options: Mapping[str, object], typed: Mapping[str, object]) -> dict[str, object]:
    """Return `options` with those that are typed in their place; a strategy that is typed brings its own weight."""
    dropped = (HARD_SAMPLE_WEIGHT,) if typed.get(STRATEGY) == Strategy.UNIFORM else ()
    return {name: value for name, value in options.items() if name not in dropped} | dict(typed)


def recipe_from_run_config(config: Mapping[str, object]) -> CalibrationRecipe:
    """Return the recipe in a Flower run configuration, which holds the defaults of what was not set.

    Raises:
        ConfigurationError: A value has the wrong type, or cannot be used.
    """
    options = {name: config[key] for name, key in RUN_CONFIG_KEYS.items() if key in config}
    if options.get(HARD_SAMPLE_WEIGHT) == DEFAULT_HARD_SAMPLE_WEIGHT:
        del options[HARD_SAMPLE_WEIGHT]
    typed = options.get(AUGMENTATIONS)
    if isinstance(typed, str):
        options[AUGMENTATIONS] = typed.split()
    return recipe_from_options(options)


def recipe_to_options(recipe: CalibrationRecipe) -> dict[str, object]:
    """Return what differs from the defaults, as `recipe_from_options` reads it."""
    options: dict[str, object] = {}
    if recipe.strategy is not Strategy.UNIFORM:
        options[STRATEGY] = recipe.strategy.value
        if recipe.hard_sample_weight != DEFAULT_HARD_SAMPLE_WEIGHT:
            options[HARD_SAMPLE_WEIGHT] = recipe.hard_sample_weight
    if recipe.augmentations:
        options[AUGMENTATIONS] = recipe.augmentations
    return options


def _strategy(value: object) -> Strategy:
    if not isinstance(value, str):
        raise ConfigurationError(
            f"{STRATEGY} must be a text, one of {', '.join(Strategy)}, not {value!r:.80}"
        )
    return strategy_named(value)


def _weight(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(f"{HARD_SAMPLE_WEIGHT} must be a number, such as 2.0, not {value!r:.80}")
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ConfigurationError(
            f'{AUGMENTATIONS} must be a list of texts, such as ["flip", "noise=0.05"], not {value!r:.80}'
        )
    return tuple(value)
