"""Kinds of hardware, each of which gets a policy of its own."""

import re
from dataclasses import dataclass

from quantization.errors import ConfigurationError

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class DeviceClass:
    """What devices of one kind can do and afford.

    Attributes:
        name: 1 to 63 of a-z, 0-9, '.', '_', '-'; a label of metrics, so from a small fixed set.
        max_weight_bits: 8, or 7 where u8 x s8 products may saturate (x86 without VNNI): ONNX Runtime's
            `reduce_range`.
        size_budget_bytes: Most that an artifact may take on the device; None for no limit.
    """

    name: str
    max_weight_bits: int = 8
    size_budget_bytes: int | None = None

    def __post_init__(self) -> None:
        """Refuse names that cannot be labels, and impossible capabilities."""
        if not _NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"device class {self.name!r}: use 1 to 63 of a-z, 0-9, '.', '_', '-', starting with a letter or digit"
            )
        if not 2 <= self.max_weight_bits <= 8:
            raise ConfigurationError(
                f"device class {self.name}: max_weight_bits {self.max_weight_bits} is not 2 to 8"
            )
        if self.size_budget_bytes is not None and self.size_budget_bytes <= 0:
            raise ConfigurationError(
                f"device class {self.name}: size budget {self.size_budget_bytes} is not positive"
            )


X86_VNNI = DeviceClass("x86-vnni")
X86 = DeviceClass("x86", max_weight_bits=7)
ARM = DeviceClass("arm")
"""The classes every deployment has; an operator adds others by name."""
