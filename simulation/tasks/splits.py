"""Dealing rows out to lab, field and test: seeded, and stratified by class."""

import itertools
from collections.abc import Sequence

import numpy as np

from quantization.arrays import IntArray


def stratified_split(labels: IntArray, sizes: Sequence[int], rng: np.random.Generator) -> list[IntArray]:
    """Return row numbers of parts with given sizes and nearly the same mix of classes, each part sorted.

    Args:
        labels: Class of each row (N,).
        sizes: Rows of each part; together N at most.
        rng: Chooses the rows.
    """
    order = rng.permutation(len(labels))
    rank_in_class = np.empty(len(labels), np.float64)
    for name in np.unique(labels):
        rows = order[labels[order] == name]
        rank_in_class[rows] = (np.arange(len(rows)) + rng.random()) / len(rows)
    spread = np.argsort(rank_in_class, kind="stable")
    # Rows next to each other in `spread` differ in class: any stretch of it has every class in proportion.
    cuts = np.cumsum([0, *sizes])
    return [np.sort(spread[start:stop]) for start, stop in itertools.pairwise(cuts)]
