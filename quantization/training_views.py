"""Views of a device's inputs to train on: flipped, shifted, mixed, new ones in every epoch.

A device holds few inputs, and a rounded model that is trained on the same ones again and again learns them by heart:
it comes nearer to the float model there, and moves away from it elsewhere. Views cost nothing to label, because the
float model answers them (Beyer et al. 2021, arXiv:2106.05237).

The rules:

1. Every augmentation, and mixing, happens to half of the inputs, each drawn anew.
2. A label belongs to an input as it was recorded: a digit that is flipped or half another one has none.
3. Mixing takes part of another input of the device (arXiv:1710.09412). Inputs of one axis stay unmixed: numbers of
   letters or of categories have no mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantization.arrays import FloatArray
from quantization.augmentation import augmented, fitting, parse_augmentations

SHARE = 0.5
"""Part of the inputs that something happens to."""

_LEAST_MIXED_AXES = 2


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """Inputs to train on.

    Attributes:
        inputs: float32 (N, ...).
        is_recorded: Inputs that nothing happened to, bool (N,).
    """

    inputs: FloatArray
    is_recorded: NDArray[np.bool_]


def draw_views(inputs: FloatArray, augmentations: Sequence[str], mixing: float, seed: int) -> Views:
    """Return one view of each input; the same call gives the same views.

    Args:
        inputs: float32 (N, ...), finite; not changed.
        augmentations: As typed; those that do not fit the inputs are left out.
        mixing: Most that an input takes of another one, 0 to 1.
        seed: Of everything drawn.
    """
    rng = np.random.default_rng(seed)
    views, is_recorded = inputs, np.ones(len(inputs), np.bool_)
    for augmentation in fitting(parse_augmentations(augmentations), inputs.shape[1:]):
        chosen = rng.random(len(inputs)) < SHARE
        views = views.copy() if views is inputs else views
        views[chosen] = augmented(augmentation, views[chosen], int(rng.integers(1 << 62)))
        is_recorded &= ~chosen
    if mixing > 0 and inputs.ndim - 1 >= _LEAST_MIXED_AXES and len(inputs) > 1:
        chosen = rng.random(len(inputs)) < SHARE
        share = np.where(chosen, rng.uniform(0, mixing, len(inputs)), 0.0).astype(np.float32)
        share = share.reshape(-1, *[1] * (inputs.ndim - 1))
        views = views + share * (views[rng.permutation(len(inputs))] - views)
        is_recorded &= ~chosen
    return Views(views, is_recorded)
