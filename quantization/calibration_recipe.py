"""How a device prepares its inputs for calibration: which samples weigh more, and which augmented copies join them.

The rules:

1. A sample's weight is a function of that sample alone (of its logits, and of its label if it has one): never
   of its rank among others. So weighted sums are the same in any order and grouping, and a fleet's equal those
   of its pooled data.
2. Weights are integers in steps of 1/256: 256, which is weight 1, for the easiest sample, up to
   round(256 * hard_sample_weight) for the hardest; in between they grow with the sample's hardness, a number in [0, 1].
3. Hardness by "margin" is 1 - (p1 - p2), with p1 and p2 the two largest softmax probabilities; by "loss" it is
   1 - exp(-cross entropy) = 1 - p(label), and by margin where there is no label.
4. Each augmentation adds one copy of every input, which weighs by its own hardness: with A of them, N inputs become
   N (1 + A). The originals come first.
5. Weights count in histograms and second moments, which say where codes are worth spending. They never count in
   channel moments, which are compared with the lab's: its inputs all weigh the same. Copies count in histograms,
   second moments and sequential moments, where they help a small batch to normalise itself; never in plain moments,
   which judge how far the field's own inputs are from the lab's.
6. The default recipe changes nothing: no weights, no copies.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from quantization.arrays import AnyArray, FloatArray, IntArray
from quantization.augmentation import Augmentation, augmented, fitting, parse_augmentations
from quantization.errors import ConfigurationError
from quantization.histogram import WEIGHT_STEPS

MAX_HARD_SAMPLE_WEIGHT = 256.0
"""Most that the hardest sample may weigh: beyond it a device's statistics are those of a handful of samples."""

DEFAULT_HARD_SAMPLE_WEIGHT = 2.0

LogitsFunction = Callable[[FloatArray], FloatArray]
"""Inputs, (N, ...) with N >= 1, to the logits of the model that observes, (N, K) or (N, K, positions...)."""


class Strategy(StrEnum):
    """What makes a sample hard."""

    UNIFORM = "uniform"
    """Nothing: all samples weigh the same."""

    MARGIN = "margin"
    """A small margin between the two most probable classes; needs no label."""

    LOSS = "loss"
    """A large cross entropy; a small margin where the sample has no label."""


@dataclass(frozen=True, slots=True)
class CalibrationRecipe:
    """How devices prepare their inputs for calibration.

    Attributes:
        strategy: What makes a sample hard.
        hard_sample_weight: Weight of the hardest samples, 1 to 256; read with "margin" and "loss" alone.
        augmentations: As typed, "flip", "noise=0.05"; kept in their canonical spelling.
        parsed: The augmentations as values.
    """

    strategy: Strategy = Strategy.UNIFORM
    hard_sample_weight: float = DEFAULT_HARD_SAMPLE_WEIGHT
    augmentations: tuple[str, ...] = ()
    parsed: tuple[Augmentation, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what no device could do."""
        weight = self.hard_sample_weight
        if isinstance(weight, bool) or not 1.0 <= weight <= MAX_HARD_SAMPLE_WEIGHT:  # NaN compares false
            raise ConfigurationError(
                f"hard sample weight is {weight!r}; give a number from 1 to {MAX_HARD_SAMPLE_WEIGHT:g}"
            )
        parsed = parse_augmentations(self.augmentations)
        object.__setattr__(self, "parsed", parsed)
        object.__setattr__(self, "augmentations", tuple(str(augmentation) for augmentation in parsed))

    @property
    def is_weighted(self) -> bool:
        """Whether samples may weigh differently."""
        return self.strategy is not Strategy.UNIFORM and self.hard_weight_steps > WEIGHT_STEPS

    @property
    def changes_nothing(self) -> bool:
        """Whether calibration with this recipe is calibration without one."""
        return not self.is_weighted and not self.augmentations

    @property
    def hard_weight_steps(self) -> int:
        """Weight of the hardest samples in steps of 1/256."""
        return round(WEIGHT_STEPS * self.hard_sample_weight)

    @property
    def copies(self) -> int:
        """How many augmented copies each input gets, if its shape allows all of them."""
        return len(self.augmentations)

    @property
    def unweighted(self) -> "CalibrationRecipe":
        """The same augmentations, with all samples weighing the same."""
        return CalibrationRecipe(augmentations=self.augmentations)

    def __str__(self) -> str:
        """Return the recipe in words, as `from_text` reads it: "margin 2.0 flip noise=0.05"."""
        return " ".join([self.strategy.value, repr(self.hard_sample_weight), *self.augmentations])

    @classmethod
    def from_text(cls, text: str) -> "CalibrationRecipe":
        """Return the recipe that `str` gave this text.

        Raises:
            ConfigurationError: It is not one.
        """
        words = text.split()
        strategy, weight = (*words, "", "")[:2]
        try:
            number = float(weight)
        except ValueError:
            raise ConfigurationError(
                f"calibration {text[:80]!r} has no weight behind its strategy;"
                ' give "STRATEGY WEIGHT AUGMENTATION...", such as "margin 2.0 flip"'
            ) from None
        return cls(strategy_named(strategy), number, tuple(words[2:]))


def strategy_named(text: str) -> Strategy:
    """Return the strategy of that name.

    Raises:
        ConfigurationError: There is none.
    """
    try:
        return Strategy(text)
    except ValueError:
        known = ", ".join(Strategy)
        raise ConfigurationError(
            f"calibration strategy {text[:80]!r} is unknown; give one of {known}"
        ) from None


DEFAULT_RECIPE = CalibrationRecipe()


def sample_weights(recipe: CalibrationRecipe, logits: FloatArray, labels: IntArray | None = None) -> IntArray:
    """Return the weight of each sample in steps of 1/256, int64 (N,): 256 to `recipe.hard_weight_steps`.

    Samples that cannot be judged (logits that are not finite, or of fewer than two classes) weigh 256.

    Args:
        recipe: Says what is hard, and how much it weighs.
        logits: Class scores, (N, K) or (N, K, positions...); with positions, hardness is their mean.
        labels: Class of each sample, int64 (N,), -1 where unknown; read by "loss" alone, and not with positions.
    """
    if not recipe.is_weighted or logits.ndim < 2 or logits.shape[1] < 2:
        return np.full(len(logits), WEIGHT_STEPS, np.int64)
    scores: AnyArray = np.moveaxis(np.asarray(logits, np.float64), 1, -1)
    is_finite = np.isfinite(scores).all(axis=tuple(range(1, scores.ndim)))
    scores = np.where(is_finite.reshape(-1, *[1] * (scores.ndim - 1)), scores, 0.0)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares = powers / powers.sum(axis=-1, keepdims=True)
    largest = np.partition(shares, -2, axis=-1)
    hardness = 1.0 - (largest[..., -1] - largest[..., -2])
    hardness = hardness.mean(axis=tuple(range(1, hardness.ndim)))
    if recipe.strategy is Strategy.LOSS and labels is not None and scores.ndim == 2:
        is_known = (labels >= 0) & (labels < shares.shape[1])
        right = shares[np.arange(len(shares)), np.where(is_known, labels, 0)]
        hardness = np.where(is_known, 1.0 - right, hardness)
    extra = np.rint((recipe.hard_weight_steps - WEIGHT_STEPS) * hardness).astype(np.int64)
    return np.where(is_finite, WEIGHT_STEPS + extra, WEIGHT_STEPS)


def prepared_blocks(
    recipe: CalibrationRecipe,
    inputs: FloatArray,
    logits_function: LogitsFunction,
    labels: IntArray | None = None,
    seed: int = 0,
) -> Iterator[tuple[FloatArray, IntArray | None]]:
    """Yield inputs with their weights (None: all alike): first the originals, then one block per augmentation.

    Block by block, a device holds its inputs and one copy of them, not all copies at once.

    Args:
        recipe: What to do.
        inputs: Shape (N, ...), float32; those that are not finite are left out. N may be 0.
        logits_function: Of the model that observes; called where samples may weigh differently, a block at a time.
        labels: Class of each input, int64 (N,), -1 where unknown.
        seed: Of the augmentations.
    """
    is_finite = np.isfinite(inputs).all(axis=tuple(range(1, inputs.ndim)))
    rows = inputs if is_finite.all() else inputs[is_finite]
    known = None if labels is None else labels[is_finite]
    yield _weighed(recipe, rows, logits_function, known)
    for augmentation in fitting(recipe.parsed, rows.shape[1:]):
        yield _weighed(recipe, augmented(augmentation, rows, seed), logits_function, known)


def prepare_inputs(
    recipe: CalibrationRecipe,
    inputs: FloatArray,
    logits_function: LogitsFunction,
    labels: IntArray | None = None,
    seed: int = 0,
) -> tuple[FloatArray, IntArray]:
    """Return all inputs and copies, (N', ...) float32, with the weight of each in steps of 1/256, int64 (N',).

    Arguments are those of `prepared_blocks`, whose blocks these are, one after another.
    """
    blocks = list(prepared_blocks(recipe, inputs, logits_function, labels, seed))
    weights = [
        np.full(len(rows), WEIGHT_STEPS, np.int64) if steps is None else steps for rows, steps in blocks
    ]
    rows = blocks[0][0] if len(blocks) == 1 else np.concatenate([rows for rows, _ in blocks])
    return rows, np.concatenate(weights)


def _weighed(
    recipe: CalibrationRecipe, rows: FloatArray, logits_function: LogitsFunction, labels: IntArray | None
) -> tuple[FloatArray, IntArray | None]:
    if not recipe.is_weighted or len(rows) == 0:
        return rows, None
    return rows, sample_weights(recipe, logits_function(rows), labels)
