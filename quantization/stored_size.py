"""Bytes that a layer's codes take as stored: exact by encoding them, or estimated from a sample where that is slow.

The best compression of a wide layer takes a second per million codes, and an allocation wants it for every grid.
So wide layers are sized by a sample, right to a few percent, and the sizes of what was allocated are made exact
before they count: `measured_allocation`.
"""

import numpy as np
from numpy.typing import NDArray

from quantization.blob import HEADER_BYTES, encode_blob, encoded_sizes
from quantization.packing import needed_bit_width

EXACT_CODES = 1 << 17
"""Layers of at most so many codes are always encoded whole."""

_SPANS, _SPAN = 32, 2048  # of the sample: evenly spread stretches of codes
_BYTES_PER_SCALE = 4


def stored_size_bytes(codes: NDArray[np.int8]) -> int:
    """Return the bytes of a layer's codes (O, K) as a blob and of its float32 scales, 4 bytes a row."""
    content = np.ascontiguousarray(codes).tobytes()
    return len(encode_blob(content, is_codes=True)) + _BYTES_PER_SCALE * len(codes)


def estimated_size_bytes(codes: NDArray[np.int8]) -> int:
    """Return `stored_size_bytes`, of more than `EXACT_CODES` codes an estimate: within 5 % above 1 bit per code.

    The sample's size is scaled by how many bits of entropy the layer has for each of the sample's, so that it matters
    little which rows the sample met.
    """
    if codes.size <= EXACT_CODES:
        return stored_size_bytes(codes)
    flat = np.ascontiguousarray(codes).reshape(-1)
    starts = np.linspace(0, flat.size - _SPAN, _SPANS).astype(np.int64)
    sample = flat[starts[:, None] + np.arange(_SPAN)].reshape(-1)
    sizes = encoded_sizes(sample.tobytes(), needed_bit_width(flat))
    share = _entropy_bits(flat) / max(_entropy_bits(sample), 1.0)
    return round(min(sizes) * share) + HEADER_BYTES + _BYTES_PER_SCALE * len(codes)


def _entropy_bits(codes: NDArray[np.int8]) -> float:
    """Return the bits that an ideal code by the frequencies of these codes takes for all of them."""
    counts = np.bincount(codes.view(np.uint8), minlength=256)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / codes.size)).sum())
