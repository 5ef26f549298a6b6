"""Log-mel spectrograms of short waves, in numpy.

Honest about loudness: powers are on an absolute scale and nothing is normalised per clip, so a microphone's
gain moves every value.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from quantization.arrays import FloatArray

SAMPLE_RATE_HZ = 8_000
WINDOW_SAMPLES, HOP_SAMPLES = 256, 128
MELS, LOWEST_HZ, HIGHEST_HZ = 32, 60.0, 4_000.0

FLOOR_POWER = 1e-7
"""Added before the logarithm: noise 70 dB under full scale, so that digital silence is not minus infinity."""

_CENTRE, _SPREAD = -10.0, 4.0
"""Brings the logarithm of the power of speech to about -1..2; the same for every clip."""

_CHUNK_CLIPS = 64


def log_mel(waves: FloatArray) -> NDArray[np.float32]:
    """Return log-mel spectrograms (N, 1, 32, frames) of waves (N, T), float32; 61 frames for 8,000 samples.

    Args:
        waves: 8 kHz, full scale is 1; 256 samples at least.
    """
    window = np.hanning(WINDOW_SAMPLES + 1)[:-1].astype(np.float32)
    filters = mel_filters() / np.float32(np.square(window).sum())
    frames = (waves.shape[1] - WINDOW_SAMPLES) // HOP_SAMPLES + 1
    spectrograms = np.empty((len(waves), 1, MELS, frames), np.float32)
    for start in range(0, len(waves), _CHUNK_CLIPS):
        chunk = np.asarray(waves[start : start + _CHUNK_CLIPS], np.float32)
        framed = sliding_window_view(chunk, WINDOW_SAMPLES, axis=1)[:, ::HOP_SAMPLES]
        spectra = np.fft.rfft(framed * window, axis=2)
        power = np.square(spectra.real) + np.square(spectra.imag)
        logarithm = np.log(power @ filters.T + np.float32(FLOOR_POWER))
        spectrograms[start : start + _CHUNK_CLIPS, 0] = logarithm.transpose(0, 2, 1)
    spectrograms -= np.float32(_CENTRE)
    spectrograms /= np.float32(_SPREAD)
    return spectrograms


def mel_filters() -> NDArray[np.float32]:
    """Return triangular filters (32, 129), each a weighted mean of the bins under it.

    Their corners lie evenly on the mel scale, 2595 log10(1 + f / 700 Hz) (O'Shaughnessy 1987).
    """
    corners = _hertz(np.linspace(_mel(LOWEST_HZ), _mel(HIGHEST_HZ), MELS + 2))[:, None]
    bins = np.fft.rfftfreq(WINDOW_SAMPLES, 1 / SAMPLE_RATE_HZ)[None]
    low, middle, high = corners[:-2], corners[1:-1], corners[2:]
    weights = np.clip(np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)), 0.0, None)
    # A filter narrower than a bin may lie between two: it takes the nearest.
    nearest = np.abs(bins - middle).argmin(axis=1)
    is_empty = weights.sum(axis=1) == 0.0
    weights[is_empty, nearest[is_empty]] = 1.0
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _mel(hertz: float) -> float:
    return float(2595.0 * np.log10(1.0 + hertz / 700.0))


def _hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
