"""A bounded sample of the inputs that a device really sees, kept for the next calibration.

Inputs never leave the device: what travels is statistics of them.
"""

import io
import random
import threading
from collections.abc import Sequence
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from quantization.errors import ConfigurationError, MalformedError
from quantization.npz_content import read_arrays

Float32Array = NDArray[np.float32]

MAX_FILE_BYTES = 256 << 20
"""Most that a stored sample may take, unpacked."""

_FORMAT_VERSION = 1
_FIELDS = ("version", "rows", "order", "seen")


class Keep(StrEnum):
    """Which of the sampled inputs stay when the memory is full."""

    UNIFORM = "uniform"
    """Every input seen so far with equal probability: the device's whole life (algorithm R, Vitter 1985)."""

    LATEST = "latest"
    """The last ones: the world as it is now, as drift needs it."""


class Sampler:
    """Keeps some of the inputs that it is offered; safe to call from many threads.

    Attributes:
        row_shape: Shape of one input, without the batch axis.
        capacity: Most inputs that are kept.
    """

    def __init__(
        self,
        row_shape: Sequence[int],
        *,
        max_bytes: int = 4 << 20,
        rate: float = 1.0,
        keep: Keep = Keep.LATEST,
        seed: int = 0,
    ) -> None:
        """Reserve the memory, which the system hands out as inputs arrive.

        Args:
            row_shape: Shape of one input, without the batch axis.
            max_bytes: Most that the kept inputs may take, as float32.
            rate: Probability with which an offered input is looked at, 0 to 1.
            keep: Which ones stay.
            seed: Of all choices; the same offers give the same sample.

        Raises:
            ConfigurationError: If not even one input fits, or the rate is no probability.
        """
        self.row_shape = tuple(int(size) for size in row_shape)
        row_bytes = 4 * int(np.prod(self.row_shape, dtype=np.int64))
        self.capacity = max_bytes // max(row_bytes, 1)
        if row_bytes < 1 or self.capacity < 1 or max_bytes > MAX_FILE_BYTES // 2:
            raise ConfigurationError(
                f"a sample of {max_bytes} bytes cannot hold inputs of shape {self.row_shape}; "
                f"allow {row_bytes} (one input) to {MAX_FILE_BYTES // 2} bytes"
            )
        if not 0.0 <= rate <= 1.0:
            raise ConfigurationError(f"sampling rate {rate} is not between 0 and 1")
        self._rate, self._keep, self._seed = rate, keep, seed
        self._lock = threading.Lock()
        # One block: single rows between ONNX Runtime's buffers would cost ten times their size in holes.
        self._rows = np.empty((self.capacity, *self.row_shape), np.float32)
        self._order = np.empty(self.capacity, np.int64)  # of each kept row: how many were looked at before it
        self._kept = 0
        self._oldest = 0  # where the oldest row is, once the memory is full
        self._seen = 0
        self._random = _random(seed, 0)

    @property
    def seen(self) -> int:
        """Inputs that were looked at so far."""
        return self._seen

    def __len__(self) -> int:
        return self._kept

    def offer(self, batch: Float32Array) -> None:
        """Look at a batch, shape (n, *row_shape), and keep copies of some of its inputs.

        Batches of other shapes are ignored: a sampler must never be why an inference fails.
        """
        if batch.shape[1:] != self.row_shape:
            return
        with self._lock:
            for row in batch:
                if self._rate >= 1.0 or self._random.random() < self._rate:
                    self._look_at(row)

    def inputs(self) -> Float32Array:
        """Return a copy of the kept inputs in the order in which they came, shape (n, *row_shape)."""
        with self._lock:
            return self._ordered()[0]

    def clear(self) -> None:
        """Forget the kept inputs."""
        with self._lock:
            self._kept = self._oldest = 0

    def to_bytes(self) -> bytes:
        """Return the kept inputs and the place in the sequence as an npz file without pickles."""
        with self._lock:
            rows, order = self._ordered()
            seen = self._seen
        buffer = io.BytesIO()
        np.savez(buffer, version=np.int64(_FORMAT_VERSION), rows=rows, order=order, seen=np.int64(seen))
        return buffer.getvalue()

    def restore(self, data: bytes) -> None:
        """Take up what `to_bytes` wrote, in place of what is kept now.

        The choices that follow are those of a new seed made of the sampler's and the place in the sequence.

        Raises:
            MalformedError: If the bytes are not a sample of inputs of this shape; nothing changes then.
        """
        version, rows, order, seen = read_arrays(io.BytesIO(data), MAX_FILE_BYTES, _FIELDS).values()
        if not np.array_equal(version, _FORMAT_VERSION):
            raise MalformedError(f"stored sample of version {version}, this software reads {_FORMAT_VERSION}")
        is_shaped = rows.ndim == len(self.row_shape) + 1 and rows.shape[1:] == self.row_shape
        if rows.dtype != np.float32 or not is_shaped or not np.isfinite(rows).all():
            raise MalformedError(
                f"stored sample of {rows.dtype} {rows.shape}; inputs have shape {self.row_shape}"
            )
        is_ordered = (
            order.dtype == np.int64 and order.shape == rows.shape[:1] and bool((np.diff(order) > 0).all())
        )
        is_counted = seen.dtype == np.int64 and seen.shape == () and seen >= 0
        if not (is_ordered and is_counted) or (order.size and not 0 <= order[0] <= order[-1] < seen):
            raise MalformedError("stored sample whose order is not one")
        with self._lock:
            self._kept = min(len(rows), self.capacity)
            self._rows[: self._kept] = rows[len(rows) - self._kept :]
            self._order[: self._kept] = order[len(rows) - self._kept :]
            self._oldest, self._seen = 0, int(seen)
            self._random = _random(self._seed, self._seen)

    def _look_at(self, row: Float32Array) -> None:
        place, self._seen = self._seen, self._seen + 1
        if self._kept < self.capacity:
            slot = self._kept
            self._kept += 1
        elif self._keep is Keep.LATEST:
            slot, self._oldest = self._oldest, (self._oldest + 1) % self.capacity
        else:
            slot = self._random.randrange(place + 1)
        if slot < self.capacity:
            self._rows[slot] = row
            self._order[slot] = place

    def _ordered(self) -> tuple[Float32Array, NDArray[np.int64]]:
        by_time = np.argsort(self._order[: self._kept])
        return self._rows[by_time], self._order[by_time]


def _random(seed: int, seen: int) -> random.Random:
    """Return the generator of the choices that follow; not one of NumPy's, whose import costs 7 MB."""
    return random.Random(f"{seed} {seen}")  # noqa: S311  # a sample, not a secret
