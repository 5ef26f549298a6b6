"""Channel moments of all layers as one vector, and the sum of such vectors.

The vector is int64, for L layers with C channels in all: [count of each layer (L) | devices of each layer (L)
| total (C) | total of squares (C) | device means (C) | device mean squares (C)]. Adding two vectors adds the
moments, so a reply folds in one pass however many layers there are.
"""

from collections.abc import Mapping

import numpy as np

from quantization.arrays import IntArray
from quantization.errors import IncompatibleStatsError, MalformedError
from quantization.moments import MAX_COUNT, MAX_MAGNITUDE, ChannelMoments
from strategies.messages import LayerLayout


def pack_moments(layout: LayerLayout, moments: Mapping[str, ChannelMoments]) -> IntArray:
    """Return the moments of the layout's layers as one vector of 2 L + 4 C elements.

    Raises:
        IncompatibleStatsError: If a layer is missing or has other channels than the layout says.
    """
    parts = []
    for name, channels in zip(layout.names, layout.channels, strict=True):
        if name not in moments or moments[name].total.size != channels:
            found = f"{moments[name].total.size}" if name in moments else "no"
            raise IncompatibleStatsError(f"layer {name!r} has {found} channels, asked for were {channels}")
        parts.append(moments[name])
    columns = (
        [part.total for part in parts],
        [part.total_squares for part in parts],
        [part.device_means for part in parts],
        [part.device_mean_squares for part in parts],
    )
    header = np.array([[part.count for part in parts], [part.devices for part in parts]], np.int64)
    return np.concatenate([header.reshape(-1), *(array for column in columns for array in column)])


def vector_size(layout: LayerLayout) -> int:
    """Return the length of the layout's vectors, 2 L + 4 C."""
    return 2 * len(layout.names) + 4 * sum(layout.channels)


class MomentSum:
    """The sum of devices' vectors of one layout; 16 bytes per element, whatever the number of devices."""

    def __init__(self, layout: LayerLayout) -> None:
        self._layout = layout
        self._channels = sum(layout.channels)
        self._sum = np.zeros(vector_size(layout), np.int64)
        self._reach = 0  # no element of the sum can be larger

    def check(self, vector: IntArray) -> int:
        """Return the largest magnitude in a device's vector, after making sure that it can be added.

        Raises:
            MalformedError: If it is not the contribution of one device, or adding it could leave 62 bits.
        """
        layers = len(self._layout.names)
        if layers == 0:
            return 0
        counts, devices, body = vector[:layers], vector[layers : 2 * layers], vector[2 * layers :]
        if layers and not (int(counts.min()) >= 0 and int(counts.max()) <= MAX_COUNT):
            raise MalformedError("moments with a negative or impossible count")
        if not np.array_equal(devices, counts > 0):
            raise MalformedError("moments that do not come from one device")
        _, squares, _, mean_squares = body.reshape(4, self._channels)
        if (squares < 0).any() or (mean_squares < 0).any():
            raise MalformedError("moments with a negative sum of squares")
        reach = max(abs(int(vector.min())), int(vector.max()))
        if self._reach + reach > MAX_MAGNITUDE:
            raise MalformedError("moments too large to be added")
        is_empty = np.repeat(counts == 0, self._layout.channels)
        if is_empty.any() and body.reshape(4, self._channels)[:, is_empty].any():
            raise MalformedError("moments of a layer that saw no value")
        return reach

    def add(self, vector: IntArray, reach: int) -> None:
        """Add a vector that `check` gave this reach."""
        np.add(self._sum, vector, out=self._sum)
        self._reach += reach

    def result(self) -> dict[str, ChannelMoments]:
        """Return the merged moments by layer.

        Raises:
            IncompatibleStatsError: If the counts left what moments can hold.
        """
        layers = len(self._layout.names)
        counts, devices = self._sum[: 2 * layers].reshape(2, layers).tolist()
        if any(count > MAX_COUNT for count in counts):
            raise IncompatibleStatsError("the merged counts are beyond 2^48; ask fewer devices in a round")
        body = self._sum[2 * layers :].reshape(4, self._channels)
        merged, start = {}, 0
        for layer, (name, channels) in enumerate(zip(self._layout.names, self._layout.channels, strict=True)):
            total, squares, means, mean_squares = body[:, start : start + channels].copy()
            merged[name] = ChannelMoments(counts[layer], total, squares, devices[layer], means, mean_squares)
            start += channels
        return merged
