"""Names for the NumPy arrays that cross module boundaries."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32] | NDArray[np.float64]
"""Real values; float32 as a model computes, float64 where sums are kept."""

CodeArray = NDArray[np.int8] | NDArray[np.uint8]
"""Integer codes of quantized values."""

IntArray = NDArray[np.int64]
"""Counts and fixed-point sums."""

AnyArray = NDArray[Any]
"""An array whose type is data (a blob, a record)."""
