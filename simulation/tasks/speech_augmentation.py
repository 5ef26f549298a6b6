"""What a lab with few speakers does to their waves, so that a network fits speakers it never heard."""

import torch

from simulation.tasks.log_mel import MELS, log_mel

_GAIN_DB = 10.0
_MEL_SHIFT = 2
_NOISE_EXPONENTS = (-4.0, -2.0)


def augmented_log_mel(waves: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return log-mel spectrograms (N, 1, 32, frames) of waves (N, T) that were changed at random.

    All waves are rolled in time by the same amount; each is made up to 10 dB louder or quieter, gets white noise
    80 to 40 dB under full scale, and its spectrogram is moved by up to 2 mels, as if by a longer or shorter vocal
    tract (Jaitly and Hinton 2013).

    Args:
        waves: Full scale is 1.
        generator: Source of all of this.
    """

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(len(waves), 1, generator=generator)

    shift = int(torch.randint(waves.shape[1], (1,), generator=generator))
    louder = waves.roll(shift, 1) * 10.0 ** (uniform(-_GAIN_DB, _GAIN_DB) / 20.0)
    noise = torch.randn(waves.shape, generator=generator) * 10.0 ** uniform(*_NOISE_EXPONENTS)
    spectrograms = torch.from_numpy(log_mel((louder + noise).numpy()))
    moves = torch.randint(-_MEL_SHIFT, _MEL_SHIFT + 1, (len(waves), 1), generator=generator)
    mels = (torch.arange(MELS)[None] + moves).clamp(0, MELS - 1)[:, None, :, None]
    return spectrograms.gather(2, mels.expand(-1, 1, -1, spectrograms.shape[3]))
