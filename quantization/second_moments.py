"""Mergeable second moments of a layer's input, exact in any order of merging.

What error-compensating rounding and the exact prediction of a weight error's cost need: with x the input of one
output value (a column of im2col), `gram` = sum x x^T and `total` = sum x. The rules:

1. Sums are int64 in steps of 2^(exponent - 24), rounded once per contribution, with 2^exponent about the largest
   mean square of a column in the lab. Integer addition is associative: a fleet's sums are the same in any order and
   grouping, bit for bit, equal pooled data within 1e-9 relative, and can be summed under encryption.
2. A grouped convolution keeps one matrix per group. A wide layer keeps blocks on the diagonal, `block` columns
   each; the last block of a group may stand for fewer columns, and is zero beyond them.
3. With `cross` the reference model ran beside: x_r is its input at the same positions, `cross` = sum x_r x^T and
   `reference_total` = sum x_r; what refitting the weights to an already rounded prefix needs.
4. Columns may weigh differently, in whole steps of 1/256: then all contributions to a sum count in these steps.
5. Readers refuse what no input can have produced: wrong lengths, a negative count, a matrix that is negative along
   some direction.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from quantization.arrays import FloatArray, IntArray
from quantization.errors import IncompatibleStatsError, MalformedError

FRACTION_BITS = 24
"""Sums are kept in steps of 2^(exponent - 24)."""

MAX_MAGNITUDE = 1 << 62
"""No sum may pass this, so that adding two of them stays inside int64."""

MAX_COUNT = 1 << 48
MAX_GROUPS = 1 << 16
MAX_COLUMNS = 1 << 16
MAX_ELEMENTS = 1 << 26
"""Most elements of one matrix of blocks: 512 MiB."""

_HEADER = 6  # groups, columns, block, exponent, count, 1 with cross moments
_NEGATIVE_TOLERANCE = 1e-6  # of the mean variance: float32 inputs and rounding to steps stay far below


@dataclass(frozen=True, slots=True, eq=False)
class SecondMoments:
    """Sums over sampled columns of a layer's input, in steps of 2^(exponent - 24) units of the input squared.

    Attributes:
        columns: Inputs of one output value within a group, K.
        exponent: Fixes the step; both sides of a merge have the same.
        count: Columns of im2col that were summed, per group; with weights, the sum of these.
        gram: Sum of x x^T, (G, N, B, B): groups, blocks on the diagonal, columns of a block. Full where N is 1.
        total: Sum of x, (G, N, B), in steps of 2^(ceil(exponent / 2) - 24) units of the input.
        cross: Sum of x_reference x^T, as `gram`; None where no reference ran beside.
        reference_total: Sum of x_reference, as `total`; None where no reference ran beside.
    """

    columns: int
    exponent: int
    count: int
    gram: IntArray
    total: IntArray
    cross: IntArray | None = None
    reference_total: IntArray | None = None

    @classmethod
    def empty(
        cls,
        columns: int,
        exponent: int,
        *,
        groups: int = 1,
        block: int | None = None,
        with_cross: bool = False,
    ) -> "SecondMoments":
        """Return the identity of `merge`.

        Args:
            columns: Inputs of one output value within a group, K.
            exponent: See `exponent_for`.
            groups: Groups of a convolution, G.
            block: Columns of a block on the diagonal; None for the full matrix.
            with_cross: Whether a reference model runs beside.
        """
        width = min(columns, block or columns)
        if not (0 < columns <= MAX_COLUMNS and 0 < groups <= MAX_GROUPS and width > 0):
            raise MalformedError(
                f"second moments of {groups} groups of {columns} columns in blocks of {block}"
            )
        blocks = -(-columns // width)
        if groups * blocks * width * width > MAX_ELEMENTS:
            raise MalformedError(f"{groups} x {blocks} blocks of {width} columns; choose narrower blocks")
        if not -126 <= exponent <= 127:
            raise MalformedError(f"exponent {exponent} of second moments is not in -126 to 127")
        gram = np.zeros((groups, blocks, width, width), np.int64)
        total = np.zeros((groups, blocks, width), np.int64)
        cross, reference_total = (gram, total) if with_cross else (None, None)
        return cls(columns, exponent, 0, gram, total, cross, reference_total)

    def add_columns(
        self, x: FloatArray, reference: FloatArray | None = None, weights: IntArray | None = None
    ) -> "SecondMoments":
        """Return the sums with these columns added.

        Args:
            x: (G, P, K): for each group, P columns of im2col (`im2col.sample_columns`).
            reference: The reference model's columns at the same positions, likewise; required with, and refused
                without, cross moments.
            weights: What each column weighs, (P,), > 0, in steps of 1/256; None counts columns as they are, and
                must not be mixed with it.

        Raises:
            MalformedError: If the shapes do not fit, or a value is not finite or too large for the exponent.
        """
        added = self._sums(x, reference, weights)
        return added if self.count == 0 and not self.gram.any() else self.merge(added)

    def _sums(self, x: FloatArray, reference: FloatArray | None, weights: IntArray | None) -> "SecondMoments":
        """Return the sums over these columns alone."""
        if x.ndim != 3 or x.shape[::2] != (self.groups, self.columns):
            raise MalformedError(f"columns of shape {x.shape} must be ({self.groups}, P, {self.columns})")
        if weights is not None and (weights.shape != x.shape[1:2] or bool((weights <= 0).any())):
            raise MalformedError(f"{weights.shape} weights for {x.shape[1]} columns; all must be positive")
        if (reference is None) != (self.cross is None) or (
            reference is not None and reference.shape != x.shape
        ):
            raise MalformedError("cross moments take a reference of the shape of x, plain ones take none")
        roots = None if weights is None else np.sqrt(weights)[:, None]
        count = x.shape[1] if weights is None else int(weights.sum())
        blocks = self._blocked(x, roots)
        added = replace(
            self,
            count=count,
            gram=self._in_steps(np.swapaxes(blocks, 2, 3) @ blocks, self.exponent),
            total=self._in_steps(_over_columns(blocks, roots), self._total_exponent),
        )
        if reference is None:
            return added
        others = self._blocked(reference, roots)
        return replace(
            added,
            cross=self._in_steps(np.swapaxes(others, 2, 3) @ blocks, self.exponent),
            reference_total=self._in_steps(_over_columns(others, roots), self._total_exponent),
        )

    def merge(self, other: "SecondMoments") -> "SecondMoments":
        """Return the sums over both sides' columns.

        Raises:
            IncompatibleStatsError: If shapes, exponents or kinds differ, or a sum would leave 62 bits.
        """
        if self.parameters != other.parameters:
            raise IncompatibleStatsError(
                f"second moments (columns, exponent, blocks, cross) {self.parameters} cannot merge with"
                f" {other.parameters}"
            )
        cross = reference_total = None
        if self.cross is not None and other.cross is not None:
            cross = _added(self.cross, other.cross)
        if self.reference_total is not None and other.reference_total is not None:
            reference_total = _added(self.reference_total, other.reference_total)
        return SecondMoments(
            self.columns,
            self.exponent,
            self.count + other.count,
            _added(self.gram, other.gram),
            _added(self.total, other.total),
            cross,
            reference_total,
        )

    @property
    def groups(self) -> int:
        """Groups of the convolution, G."""
        return int(self.gram.shape[0])

    @property
    def block(self) -> int:
        """Columns of a block on the diagonal, B; `columns` where the matrix is full."""
        return int(self.gram.shape[2])

    @property
    def parameters(self) -> tuple[object, ...]:
        """What both sides of a merge must share: columns, exponent, shape of the blocks, presence of cross moments."""
        return self.columns, self.exponent, self.gram.shape, self.cross is not None

    def mean(self) -> NDArray[np.float64]:
        """Return the mean of x, (G, N, B)."""
        return self._per_column(self.total, self._total_exponent)

    def reference_mean(self) -> NDArray[np.float64]:
        """Return the mean of x_reference, (G, N, B)."""
        return self._per_column(_present(self.reference_total), self._total_exponent)

    def covariance(self) -> NDArray[np.float64]:
        """Return the covariance of x, (G, N, B, B): H about the mean, for layers whose bias absorbs a mean."""
        mean = self.mean()
        square = mean[..., :, None] * mean[..., None, :]
        return np.asarray(self._per_column(self.gram, self.exponent) - square, np.float64)

    def mean_square(self) -> NDArray[np.float64]:
        """Return the mean of x x^T, (G, N, B, B): H / count."""
        return self._per_column(self.gram, self.exponent)

    def cross_covariance(self) -> NDArray[np.float64]:
        """Return the covariance of x_reference (rows) and x (columns), (G, N, B, B)."""
        means = self.reference_mean()[..., :, None] * self.mean()[..., None, :]
        return np.asarray(self._per_column(_present(self.cross), self.exponent) - means, np.float64)

    def cross_mean_square(self) -> NDArray[np.float64]:
        """Return the mean of x_reference x^T, (G, N, B, B): C / count."""
        return self._per_column(_present(self.cross), self.exponent)

    def energy(self) -> float:
        """Return the mean square of a column, summed over columns, blocks and groups: the trace of H / count."""
        return float(self._diagonal().sum() * self._step(self.exponent) / max(self.count, 1))

    def largest_mean_square(self) -> float:
        """Return the largest mean square of one column: what `exponent_for` takes."""
        return float(self._diagonal().max() * self._step(self.exponent) / max(self.count, 1))

    def check_plausible(self, usual_energy: float, limit: float = 4.0) -> None:
        """Refuse a contribution with far more energy than the lab's, which would drown all others.

        Args:
            usual_energy: `energy` of the lab's moments of the same layer.
            limit: Greatest ratio to it that passes.

        Raises:
            MalformedError: If the energy is above `limit` times the usual, or cross moments are larger than a
                reference with that much energy can have (by the inequality of Cauchy and Schwarz).
        """
        energy, bound = self.energy(), limit * usual_energy
        if energy > bound:
            raise MalformedError(
                f"an energy of {energy:.3g}, the lab's is {usual_energy:.3g}; at most {limit:g} times pass"
            )
        if self.cross is None or self.reference_total is None:
            return
        step, bound = self._step(self.exponent), bound * (1 + _NEGATIVE_TOLERANCE)
        mean_squares = (
            self._diagonal() * (step / max(self.count, 1)) + step
        )  # what rounding to steps may hide
        largest = np.maximum(self.cross.max(2), -self.cross.min(2)) * (step / max(self.count, 1))
        if (largest > np.sqrt(bound * mean_squares) + step).any():
            raise MalformedError("cross moments larger than any plausible reference's")
        if (np.square(self.reference_mean()) > bound + step).any():
            raise MalformedError("a mean of the reference beyond any plausible one")

    def to_array(self) -> IntArray:
        """Return every field as one int64 vector; a symmetric matrix travels as its upper triangle."""
        rows, cols = _upper_triangle(self.block)
        header = [
            self.groups,
            self.columns,
            self.block,
            self.exponent,
            self.count,
            int(self.cross is not None),
        ]
        parts = [np.array(header, np.int64), self.gram[:, :, rows, cols].ravel(), self.total.ravel()]
        if self.cross is not None and self.reference_total is not None:
            parts += [self.cross.ravel(), self.reference_total.ravel()]
        return np.concatenate(parts)

    @classmethod
    def from_array(cls, array: IntArray) -> "SecondMoments":
        """Return the moments that `to_array` wrote.

        Raises:
            MalformedError: If no columns can have these sums, or the vector is not one of `to_array`.
        """
        if array.ndim != 1 or array.dtype != np.int64 or array.size < _HEADER:
            raise MalformedError(f"second moments are an int64 vector, not {array.dtype} of {array.shape}")
        groups, columns, block, exponent, count, with_cross = (int(v) for v in array[:_HEADER])
        if with_cross not in (0, 1) or not 0 <= count <= MAX_COUNT or not 0 < block <= columns:
            raise MalformedError(f"second moments with count {count}, block {block} and cross {with_cross}")
        matrices = groups * -(-columns // block)
        sums = matrices * (block * (block + 3) // 2 + with_cross * block * (block + 1))
        if array.size != _HEADER + sums:  # before anything is allocated
            raise MalformedError(f"{array.size} elements cannot be moments of {groups} x {columns} columns")
        shape = cls.empty(columns, exponent, groups=groups, block=block, with_cross=bool(with_cross))
        moments = _read_body(shape, array[_HEADER:], count)
        _check_possible(moments)
        return moments

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecondMoments) and np.array_equal(self.to_array(), other.to_array())

    __hash__ = None  # type: ignore[assignment]  # holds arrays

    def _diagonal(self) -> NDArray[np.float64]:
        """Return the sums of squares, (G, N, B), as floats: their own sum may leave int64."""
        return np.asarray(np.einsum("gnbb->gnb", self.gram), np.float64)

    def _per_column(self, sums: IntArray, exponent: int) -> NDArray[np.float64]:
        return np.asarray(sums * (self._step(exponent) / max(self.count, 1)), np.float64)

    @staticmethod
    def _step(exponent: int) -> float:
        return 2.0 ** (exponent - FRACTION_BITS)

    def _blocked(self, x: FloatArray, roots: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """Return (G, P, K) as float64 (G, N, P, B), zero beyond the last column, times the roots of weights (P, 1)."""
        groups, samples, columns = x.shape
        blocks = self.gram.shape[1]
        if blocks == 1:
            spread = np.asarray(x, np.float64)[:, None]
        else:
            padded = np.zeros((groups, samples, blocks * self.block))
            padded[..., :columns] = x
            spread = np.moveaxis(padded.reshape(groups, samples, blocks, self.block), 2, 1)
        return np.asarray(spread if roots is None else spread * roots, np.float64)

    @property
    def _total_exponent(self) -> int:
        return -(-self.exponent // 2)

    def _in_steps(self, sums: NDArray[np.float64], exponent: int) -> IntArray:
        with np.errstate(over="ignore", invalid="ignore"):
            steps = sums * 2.0 ** (FRACTION_BITS - exponent)  # a power of two: exact
        np.rint(steps, out=steps)
        if steps.size and not (
            steps.max() <= MAX_MAGNITUDE and steps.min() >= -MAX_MAGNITUDE
        ):  # NaN compares false
            raise MalformedError(
                f"columns that are not finite, or too large for second moments with exponent {self.exponent}"
            )
        return steps.astype(np.int64)


def exponent_for(mean_square: float) -> int:
    """Return the exponent of the least power of two >= a layer's largest mean square in the lab (0 for none)."""
    return int(np.clip(np.ceil(np.log2(mean_square)), -126, 127)) if mean_square > 0 else 0


def _over_columns(blocks: NDArray[np.float64], roots: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Return the sum over columns of (G, N, P, B), which are multiplied by `roots` (P, 1) once already."""
    return np.asarray(blocks.sum(2) if roots is None else (blocks * roots).sum(2), np.float64)


@lru_cache(maxsize=4)
def _upper_triangle(size: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return rows and columns of the upper triangle; cached, as a fleet's replies are all of a few sizes."""
    rows, cols = np.triu_indices(size)
    return rows, cols


def _present(sums: IntArray | None) -> IntArray:
    if sums is None:
        raise IncompatibleStatsError("these second moments hold no cross moments: no reference ran beside")
    return sums


def _added(a: IntArray, b: IntArray) -> IntArray:
    """Return a + b, both within MAX_MAGNITUDE, refusing a result beyond it."""
    result = a + b
    if result.size and (int(result.max()) > MAX_MAGNITUDE or int(result.min()) < -MAX_MAGNITUDE):
        raise IncompatibleStatsError(
            "the merged sums would leave 62 bits; start a new round with fewer devices"
        )
    return result


def _read_body(shape: SecondMoments, body: IntArray, count: int) -> SecondMoments:
    rows, cols = _upper_triangle(shape.block)
    sizes = [shape.total.size // shape.block * rows.size, shape.total.size]
    sizes += [shape.gram.size, shape.total.size] if shape.cross is not None else []
    if int(body.min()) < -MAX_MAGNITUDE or int(body.max()) > MAX_MAGNITUDE:
        raise MalformedError("second moments with sums beyond 62 bits")
    parts = np.split(body, np.cumsum(sizes)[:-1])
    gram = np.empty_like(shape.gram)
    gram[:, :, rows, cols] = gram[:, :, cols, rows] = parts[0].reshape(*shape.gram.shape[:2], -1)
    total = parts[1].reshape(shape.total.shape)
    if shape.cross is None:
        return replace(shape, count=count, gram=gram, total=total)
    cross, reference_total = parts[2].reshape(gram.shape), parts[3].reshape(total.shape)
    return SecondMoments(shape.columns, shape.exponent, count, gram, total, cross, reference_total)


def _negativity_of_rounding(moments: SecondMoments) -> NDArray[np.float64]:
    """Return how far below zero, (G, N), rounding may put an eigenvalue of each block's covariance.

    Sums are rounded to half a step per contribution, of which there are at most as many as columns; an error of d in
    each entry of a block moves an eigenvalue by its width times d at most. Float32 inputs add a little.
    """
    squares = moments._diagonal() * (moments._step(moments.exponent) / moments.count)  # noqa: SLF001
    steps = (moments._step(kind) for kind in (moments.exponent, moments._total_exponent))  # noqa: SLF001
    of_square, of_mean = steps
    entry = of_square / 2 + np.sqrt(np.maximum(squares.max(2), 0)) * of_mean
    return np.asarray(_NEGATIVE_TOLERANCE * np.abs(squares).mean(2) + moments.block * entry, np.float64)


def _check_possible(moments: SecondMoments) -> None:
    """Refuse sums that no columns have: of none, beyond the last column, or negative along a direction."""
    filling = moments.block * moments.gram.shape[1] - moments.columns
    beyond = moments.gram[:, -1, moments.block - filling :], moments.total[:, -1, moments.block - filling :]
    if any(part.any() for part in beyond) or (
        moments.count == 0 and (moments.gram.any() or moments.total.any())
    ):
        raise MalformedError("second moments of columns that are not there")
    if moments.count == 0:
        return
    covariance = moments.covariance()
    slack = _negativity_of_rounding(moments)
    covariance[..., np.arange(moments.block), np.arange(moments.block)] += slack[..., None]
    try:
        np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError as error:
        raise MalformedError("second moments that are negative along some direction") from error
