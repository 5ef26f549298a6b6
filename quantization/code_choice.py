"""Which code a weight takes, given the real value that would be best: the nearest, or a cheaper neighbour."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantization.errors import ConfigurationError

RealArray = NDArray[np.float64]


def greatest_code(bit_width: int) -> int:
    """Return the greatest code of `bit_width` bits, 2 to 8; the least is its negative."""
    if not 2 <= bit_width <= 8:
        raise ConfigurationError(f"bit_width must be 2 to 8, got {bit_width}")
    return (1 << (bit_width - 1)) - 1


def greatest_codes(bit_width: int | NDArray[np.int64], rows: int) -> RealArray:
    """Return the greatest code of each row, (R,), for one bit-width or one per row."""
    widths = np.broadcast_to(np.asarray(bit_width, np.int64), (rows,))
    codes = {int(width): greatest_code(int(width)) for width in np.unique(widths)}
    return np.array([codes[int(width)] for width in widths], np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class CodeChoice:
    """Chooses the codes of one column at a time, for R rows of each of M matrices.

    With prices, the best of two codes is taken: with t the ideal truncated and f what is left, the code t + 1 (away
    from zero) costs c (1 - f)^2 + price, the code t costs c f^2 + price; so it is t + 1 where
    c (2 f - 1) > price[t + 1] - price[t], and never where f < 1/2.

    Attributes:
        qmax: Greatest code of each row, (R,).
        price: Price of the codes -qmax to qmax, one after another for each part of the rows; None for none.
        margin: What the outer code costs more than the inner, at least 0, likewise with one more at each end.
        offset: Where a row's code 0 lies in `price`, (R,).
        margin_offset: Where it lies in `margin`, (R,).
    """

    qmax: RealArray
    price: RealArray | None = None
    margin: RealArray | None = None
    offset: NDArray[np.int64] | None = None
    margin_offset: NDArray[np.int64] | None = None

    @classmethod
    def of(
        cls, bit_width: int | NDArray[np.int64], rows: int, price: RealArray | None = None
    ) -> "CodeChoice":
        """Return the choice for `rows` rows.

        Args:
            bit_width: 2 to 8; one per row, (R,), where codes have no price.
            rows: R.
            price: Price of the codes -qmax to qmax in each of P equal parts of the rows, (P, 2 qmax + 1), in units
                of the loss; None for none.
        """
        qmax = greatest_codes(bit_width, rows)
        if price is None:
            return cls(qmax)
        parts, width = price.shape
        if rows % parts or np.any(2 * qmax + 1 != width):
            raise ConfigurationError(f"prices {price.shape} for {rows} rows of {bit_width} bits")
        most = width // 2
        margin = np.full((parts, width + 2), np.inf)
        margin[:, 1 : most + 1] = price[:, :most] - price[:, 1 : most + 1]
        margin[:, most + 2 : -1] = price[:, most + 1 :] - price[:, most:-1]
        part = np.repeat(np.arange(parts), rows // parts)
        offsets = part * width + most, part * (width + 2) + most + 1
        return cls(qmax, price.ravel(), np.maximum(margin, 0.0).ravel(), *offsets)

    def part(self, rows: slice) -> "CodeChoice":
        """Return the choice for some of the rows."""
        if self.offset is None or self.margin_offset is None:
            return CodeChoice(self.qmax[rows])
        offsets = self.offset[rows], self.margin_offset[rows]
        return CodeChoice(self.qmax[rows], self.price, self.margin, *offsets)

    def best(self, ideal: RealArray, curvature: RealArray | None = None) -> RealArray:
        """Return the best codes, (M, R).

        Args:
            ideal: Real values in steps, (M, R).
            curvature: What the square of an error of one step costs, (M, R); needed where codes have prices.
        """
        clipped = np.minimum(np.maximum(ideal, -self.qmax), self.qmax)
        if self.margin is None or self.margin_offset is None or curvature is None:
            return np.rint(clipped, out=clipped)
        inner = np.trunc(clipped)
        direction = np.copysign(1.0, clipped)
        outer = inner + direction
        gain = (clipped - inner) * direction
        gain += gain
        gain -= 1.0
        gain *= curvature
        index = outer.astype(np.int64)
        index += self.margin_offset
        is_outer = gain > np.take(self.margin, index)
        return np.asarray(inner + direction * is_outer, np.float64)

    def no_worse(
        self, ideal: RealArray, curvature: RealArray, codes: RealArray, current: RealArray
    ) -> RealArray | None:
        """Return `codes` with `current` wherever that costs no more, or None where they are all the same, (M, R)."""
        at = np.nonzero(codes != current)
        if not at[0].size:
            return None
        if self.price is None or self.offset is None:
            return codes
        zero, middle, c = self.offset[at[1]], ideal[at], curvature[at]
        cost, kept_cost = (
            np.square(q[at] - middle) * c + self.price[q[at].astype(np.int64) + zero]
            for q in (codes, current)
        )
        is_kept = kept_cost <= cost
        if is_kept.any():
            codes[at[0][is_kept], at[1][is_kept]] = current[at[0][is_kept], at[1][is_kept]]
        return codes
