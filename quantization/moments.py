"""Mergeable per-channel moments of a layer's output, exact in any order of merging.

The rules:

1. Moments are sums in *reference units*: u = (z - mean) / std, with the lab's mean and std of the channel. A
   channel that behaves as in the lab has sum 0 and sum of squares equal to the count.
2. Sums are integers, in steps of 2^-20 reference units, rounded once per batch on the device. Integer addition is
   associative and commutative, so a fleet's moments are the same in any order and grouping, bit for bit, and can be
   summed under encryption.
3. Beside the pooled sums travel the sums over *devices* of each device's mean and of its square. Their spread tells
   how far a fleet's mean is from chance, with devices (not values, which are correlated) as the independent units.
4. `merge` has `ChannelMoments.empty` as identity and refuses sums that would leave 63 bits.
"""

from dataclasses import dataclass

import numpy as np

from quantization.arrays import FloatArray, IntArray
from quantization.errors import IncompatibleStatsError, MalformedError

FRACTION_BITS = 20
"""Sums are kept in steps of 2^-20 reference units."""

MAX_CHANNELS = 1 << 20
MAX_COUNT = 1 << 48
MAX_MAGNITUDE = 1 << 62
"""No sum may pass this, so that adding two of them stays inside int64."""

_ROUNDING = 1e-5
"""A float32 layer's spread below this part of its mean is rounding, not signal."""

_STEP = float(1 << FRACTION_BITS)
_HEADER = 3  # channels, count, devices


@dataclass(frozen=True, slots=True, eq=False)
class ChannelReference:
    """The lab's moments of one layer's output, which the field is compared with and restored to.

    Attributes:
        mean: Mean of each channel, shape (C,), float64.
        std: Standard deviation of each channel, shape (C,), float64, > 0: see `from_moments`.
        count: Values per channel that they were taken from.
    """

    mean: FloatArray
    std: FloatArray
    count: int

    def __post_init__(self) -> None:
        """Refuse shapes that differ and values that are not finite."""
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            raise MalformedError(f"reference mean {self.mean.shape} and std {self.std.shape} must be (C,)")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all() and (self.std > 0).all()):
            raise MalformedError("reference moments must be finite, and every std positive")

    @classmethod
    def from_moments(cls, mean: FloatArray, variance: FloatArray, count: int) -> "ChannelReference":
        """Return the reference for moments taken in the lab, with a floor under dead channels' std.

        A channel that never moves, but for rounding, would make any field value countless standard deviations away;
        its std is raised to 1e-3 of the layer's root mean square std (or to 1 where the whole layer is constant).
        """
        std = np.sqrt(np.maximum(np.asarray(variance, np.float64), 0.0))
        std = np.where(std > _ROUNDING * np.abs(mean), std, 0.0)
        floor = 1e-3 * float(np.sqrt(np.mean(std**2)))
        floored = np.maximum(std, floor) if floor > 0 else np.ones_like(std)
        return cls(np.asarray(mean, np.float64), floored, int(count))

    @property
    def channels(self) -> int:
        """Number of channels, C."""
        return int(self.mean.size)


@dataclass(frozen=True, slots=True, eq=False)
class ChannelMoments:
    """Sums of one layer's output over values and over devices, in reference units.

    Attributes:
        count: Values per channel.
        total: Sum of u, shape (C,), int64, in steps of 2^-20.
        total_squares: Sum of u^2, likewise.
        devices: Devices merged so far; 0 for a batch that is not yet a device's whole contribution.
        device_means: Sum over devices of the device's mean of u, likewise.
        device_mean_squares: Sum over devices of the square of that mean, likewise.
    """

    count: int
    total: IntArray
    total_squares: IntArray
    devices: int
    device_means: IntArray
    device_mean_squares: IntArray

    @classmethod
    def empty(cls, channels: int) -> "ChannelMoments":
        """Return the identity of `merge` for a layer of `channels` channels."""
        zeros = np.zeros(channels, np.int64)
        return cls(0, zeros, zeros, 0, zeros, zeros)

    @classmethod
    def from_batch(
        cls, mean: FloatArray, variance: FloatArray, count: int, reference: ChannelReference
    ) -> "ChannelMoments":
        """Return the sums of one batch whose channels have this mean and (population) variance.

        Args:
            mean: Shape (C,), in the layer's own units.
            variance: Shape (C,), likewise; slightly negative values from rounding count as zero.
            count: Values per channel in the batch.
            reference: The lab's moments of the same layer.

        Raises:
            MalformedError: If the moments are not finite, or so far out that a sum would leave int64.
        """
        if np.shape(mean) != reference.mean.shape or np.shape(variance) != reference.mean.shape:
            raise MalformedError(
                f"moments of shape {np.shape(mean)} where {reference.mean.shape} is expected"
            )
        shift = (np.asarray(mean, np.float64) - reference.mean) / reference.std
        squares = np.maximum(np.asarray(variance, np.float64), 0.0) / reference.std**2 + shift**2
        total, total_squares = shift * count * _STEP, squares * count * _STEP
        if not (np.isfinite(total_squares).all() and (total_squares < MAX_MAGNITUDE).all()):
            raise MalformedError("moments are not finite or too far from the reference to be summed")
        none = np.zeros(reference.channels, np.int64)
        return cls(int(count), _rounded(total), _rounded(total_squares), 0, none, none)

    def as_device(self) -> "ChannelMoments":
        """Return the same sums, counted as the whole contribution of one device (nothing if it saw no value)."""
        if self.count == 0:
            return ChannelMoments.empty(self.total.size)
        mean = self.total / self.count  # still in steps of 2^-20
        squares = mean**2 / _STEP
        if not (squares < MAX_MAGNITUDE).all():
            raise MalformedError("a device's mean is too far from the reference to be summed")
        return ChannelMoments(
            self.count, self.total, self.total_squares, 1, _rounded(mean), _rounded(squares)
        )

    def merge(self, other: "ChannelMoments") -> "ChannelMoments":
        """Return the sums of both; commutative and associative, bit for bit.

        Raises:
            IncompatibleStatsError: If the layers have different channels, or a sum would leave int64.
        """
        if self.total.shape != other.total.shape:
            raise IncompatibleStatsError(
                f"moments of {self.total.size} channels cannot merge with {other.total.size}"
            )
        return ChannelMoments(
            self.count + other.count,
            _added(self.total, other.total),
            _added(self.total_squares, other.total_squares),
            self.devices + other.devices,
            _added(self.device_means, other.device_means),
            _added(self.device_mean_squares, other.device_mean_squares),
        )

    def mean(self) -> FloatArray:
        """Return the mean of u per channel, shape (C,): the shift from the lab in lab standard deviations."""
        return np.asarray(self.total / (max(self.count, 1) * _STEP), np.float64)

    def variance(self) -> FloatArray:
        """Return the variance of u per channel, shape (C,): 1 where the spread is the lab's."""
        second = self.total_squares / (max(self.count, 1) * _STEP)
        return np.asarray(np.maximum(second - self.mean() ** 2, 0.0), np.float64)

    def standard_error(self) -> FloatArray:
        """Return the standard error of the mean of u, shape (C,), with devices as the independent units.

        Infinite with fewer than two devices: one device cannot tell its own world from the fleet's.
        """
        if self.devices < 2:
            return np.full(self.total.size, np.inf)
        mean = self.device_means / (self.devices * _STEP)
        between = np.maximum(self.device_mean_squares / (self.devices * _STEP) - mean**2, 0.0)
        return np.asarray(np.sqrt(between / (self.devices - 1)), np.float64)

    def to_array(self) -> IntArray:
        """Return every field as one int64 vector of 3 + 4 C elements, the form that travels."""
        header = np.array([self.total.size, self.count, self.devices], np.int64)
        return np.concatenate(
            [header, self.total, self.total_squares, self.device_means, self.device_mean_squares]
        )

    @classmethod
    def from_array(cls, array: IntArray) -> "ChannelMoments":
        """Return the moments that `to_array` wrote.

        Raises:
            MalformedError: If the vector is not one that `to_array` can have written.
        """
        if array.ndim != 1 or array.dtype != np.int64 or array.size < _HEADER:
            raise MalformedError(f"moments must be an int64 vector, not {array.dtype} of shape {array.shape}")
        channels, count, devices = (int(v) for v in array[:_HEADER])
        if not 0 < channels <= MAX_CHANNELS or array.size != _HEADER + 4 * channels:
            raise MalformedError(f"{array.size} elements cannot be moments of {channels} channels")
        if not (0 <= count <= MAX_COUNT and 0 <= devices <= MAX_COUNT):
            raise MalformedError(f"moments with count {count} and {devices} devices")
        body = array[_HEADER:]
        low, high = int(body.min()), int(body.max())
        if low < -MAX_MAGNITUDE or high > MAX_MAGNITUDE:
            raise MalformedError("moments with sums beyond 62 bits")
        total, squares, means, mean_squares = body.reshape(4, channels)
        if (squares < 0).any() or (mean_squares < 0).any():
            raise MalformedError("moments with a negative sum of squares")
        return cls(count, total, squares, devices, means, mean_squares)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChannelMoments) and np.array_equal(self.to_array(), other.to_array())

    __hash__ = None  # type: ignore[assignment]  # holds arrays


def _rounded(values: FloatArray) -> IntArray:
    return np.rint(values).astype(np.int64)


def _added(a: IntArray, b: IntArray) -> IntArray:
    """Return a + b, both within MAX_MAGNITUDE, refusing a result beyond it."""
    result = a + b
    if result.size and (int(result.max()) > MAX_MAGNITUDE or int(result.min()) < -MAX_MAGNITUDE):
        raise IncompatibleStatsError(
            "the merged sums would leave 62 bits; start a new round with fewer devices"
        )
    return result
