"""Whether canaries do worse than devices that keep the old version, at a stated rate of false alarms.

The rules:

1. A device counts once, as one number: how much it lost against what it was expected to do. Samples of one device
   resemble each other, devices do not; a test that counted samples would take one odd device for a trend.
2. Canaries are drawn by hash, so that under an equal version a canary and the devices it is compared with could
   change places. That alone, and no assumption on how the numbers are distributed, makes a *block* of one canary and K
   others fair: the canary's weight `exp(rate * loss)` over the block's mean weight has expectation 1 at most. This is
   an e-value by group invariance (Koning, arXiv:2310.01153).
3. E-values of blocks multiply to a wealth, and by Ville's inequality the wealth of an equal version *ever* reaches
   `1 / a` with probability `a` at most. So one may look after every device, and stop at will (Ramdas, Gruenwald,
   Vovk and Shafer, arXiv:2210.01948; for mixture SPRTs on A/B tests Johari et al., arXiv:1512.04922).
4. A mixture over effects keeps the test sharp for small and for large losses. Rates come from the spread seen in
   the blocks up to and including this one, in which the canary has no part of its own: that keeps rule 2.
5. The same test with the canary's loss lessened by a margin says that the version is *not* worse by that margin.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from quantization.errors import ConfigurationError

EFFECTS = (0.5, 1.0, 2.0, 6.0)
"""Losses that the mixture is made for, as multiples of the one to be found."""

WEIGHTS = (0.2, 0.5, 0.2, 0.1)
"""Parts of the wealth that each of them starts with."""

_PRIOR_BLOCKS = 4.0
_GREATEST_EXPONENT = 700.0
_GREATEST_LOSS = 1e6


@dataclass(frozen=True, slots=True)
class Block:
    """One canary beside devices that keep the old version.

    Attributes:
        canary: Its loss; greater is worse.
        others: Losses of the others, at least one, all within 1e6 of 0; each device is in one block alone.
    """

    canary: float
    others: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be compared."""
        if not self.others or not all(abs(loss) <= _GREATEST_LOSS for loss in (self.canary, *self.others)):
            raise ConfigurationError(f"a block needs a canary and others with finite losses, not {self}")


@dataclass(frozen=True, slots=True)
class Wealth:
    """The evidence so far that canaries lose more than others; a value that `observe` carries on.

    Attributes:
        effect: The loss to be found, in the units of the losses; above 0.
        log_wealths: Log of what each effect of the mixture has won.
        log_peak: Log of the greatest e-value so far.
        blocks: Blocks observed.
        spread: Sum of the blocks' variances, in squared units.
    """

    effect: float
    log_wealths: tuple[float, ...] = (0.0,) * len(EFFECTS)
    log_peak: float = 0.0
    blocks: int = 0
    spread: float = 0.0

    @property
    def log_e_value(self) -> float:
        """Log of the mixture's wealth now."""
        greatest = max(self.log_wealths)
        parts = (w * math.exp(log - greatest) for w, log in zip(WEIGHTS, self.log_wealths, strict=True))
        return greatest + math.log(sum(parts))

    def has_reached(self, error_rate: float) -> bool:
        """Return whether the wealth has ever been `1 / error_rate`."""
        return reaches(self.log_peak, error_rate)


def reaches(log_e_value: float, error_rate: float) -> bool:
    """Return whether an e-value is as great as chance makes one with `error_rate` at most."""
    return log_e_value >= -math.log(error_rate)


def observe(wealth: Wealth, block: Block) -> Wealth:
    """Return the evidence with one block more."""
    losses = (block.canary, *block.others)
    mean = math.fsum(losses) / len(losses)
    variance = math.fsum((loss - mean) ** 2 for loss in losses) / (len(losses) - 1)
    spread = wealth.spread + variance
    prior = _PRIOR_BLOCKS * (3 * wealth.effect) ** 2  # as if devices differed by three effects, to start with
    typical = (prior + spread) / (_PRIOR_BLOCKS + wealth.blocks + 1)
    centred = [loss - mean for loss in losses]
    gains = [_log_gain(centred, effect * wealth.effect / typical) for effect in EFFECTS]
    grown = replace(
        wealth,
        log_wealths=tuple(log + gain for log, gain in zip(wealth.log_wealths, gains, strict=True)),
        blocks=wealth.blocks + 1,
        spread=spread,
    )
    return replace(grown, log_peak=max(wealth.log_peak, grown.log_e_value))


def relieve(block: Block, margin: float) -> Block:
    """Return the block for the opposite question, whether the version is not worse by `margin`.

    Losses change their sign and the canary's is lessened by the margin first: if it is worse by the margin, or by more,
    the wealth of these blocks does not grow but by chance.
    """
    return Block(margin - block.canary, tuple(-loss for loss in block.others))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both questions on one measure, and the devices that wait for a block.

    Which devices form a block depends on the order of arrival alone, never on a loss, and a block once formed stays:
    that is what lets one look at any time.

    Attributes:
        worse: Evidence that canaries lose more.
        fine: Evidence that they do not lose more than the effect; None where nobody asks.
        canaries: Losses of canaries that wait.
        others: Losses of others that wait.
    """

    worse: Wealth
    fine: Wealth | None = None
    canaries: tuple[float, ...] = ()
    others: tuple[float, ...] = ()

    @classmethod
    def with_margin(cls, effect: float) -> "Comparison":
        """Return the comparison before the first device; `effect` is the loss to be found and the margin."""
        return cls(Wealth(effect), Wealth(effect))

    def observe(self, loss: float, *, is_canary: bool, block_size: int) -> "Comparison":
        """Return the comparison with one device more.

        Args:
            loss: Of the device.
            is_canary: Whether it has the new version.
            block_size: Others that a block needs now; chosen without a look at any loss.
        """
        canaries = (*self.canaries, loss) if is_canary else self.canaries
        others = self.others if is_canary else (*self.others, loss)
        worse, fine = self.worse, self.fine
        while canaries and len(others) >= block_size:
            block = Block(canaries[0], others[:block_size])
            canaries, others = canaries[1:], others[block_size:]
            worse = observe(worse, block)
            fine = observe(fine, relieve(block, fine.effect)) if fine else None
        return Comparison(worse, fine, canaries, others)


def log_tail_wealth(flagged: int, devices: int, tolerated: float) -> float:
    """Return the log evidence that more than a tolerated part of devices is flagged.

    The likelihood ratio of a mixture of greater parts (five times the tolerated one, a half, nearly all) to the
    tolerated part: its wealth grows by chance alone where the part is the tolerated one or less, whenever one looks.

    Args:
        flagged: Devices with the mark.
        devices: Devices in all.
        tolerated: Part of devices that has it under an equal version; above 0, below 0.2.
    """
    parts = []
    for part in (min(5 * tolerated, 0.3), 0.5, 0.95):
        won = flagged * math.log(part / tolerated)
        lost = (devices - flagged) * math.log((1 - part) / (1 - tolerated))
        parts.append(won + lost)
    greatest = max(parts)
    return greatest + math.log(sum(math.exp(log - greatest) for log in parts) / len(parts))


def _log_gain(centred: Sequence[float], rate: float) -> float:
    """Return the log of the first one's weight over the mean weight."""
    greatest = max(*centred, -min(centred))
    steep = min(rate, _GREATEST_EXPONENT / greatest) if greatest > 0 else rate
    weights = [math.exp(steep * loss) for loss in centred]
    return steep * centred[0] - math.log(math.fsum(weights) / len(weights))
