"""What goes wrong in a swarm."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from quantization.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class SwarmFaults:
    """Parts of the devices that have a bad network, and what happens to the server.

    Attributes:
        cut: Part whose connections are cut after 4 to 64 KB, again and again.
        slow: Part whose connections bring 8 KB a second.
        corrupt: Part whose connections flip a bit in about every tenth piece of 4 KB.
        kill_server: How often the server is killed, and started anew, in every upgrade.
    """

    cut: float = 0.0
    slow: float = 0.0
    corrupt: float = 0.0
    kill_server: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no part, or more than there is."""
        parts = (self.cut, self.slow, self.corrupt)
        if any(not 0 <= part <= 1 for part in parts) or sum(parts) > 1 + 1e-9:
            raise ConfigurationError(
                f"cut, slow and corrupt are parts of the devices, 0 to 1 and 1 at most together, not {parts}"
            )
        if self.kill_server < 0:
            raise ConfigurationError(f"kill-server is how often, 0 or more, not {self.kill_server}")

    @classmethod
    def parse(cls, text: str) -> "SwarmFaults":
        """Return what "cut=0.1,slow=0.1,corrupt=0.1,kill-server=1" says; all may be left out.

        Raises:
            ConfigurationError: If it says anything else.
        """
        found: dict[str, Any] = {}
        known = {field.name.replace("_", "-"): field.name for field in fields(cls)}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = part.partition("=")
            if name not in known:
                raise ConfigurationError(f"fault '{name}' is unknown; known are {', '.join(known)}")
            kind = int if name == "kill-server" else float
            try:
                found[known[name]] = kind(value)
            except ValueError:
                raise ConfigurationError(f"fault '{part}': {value!r} is no number") from None
        return cls(**found)

    def kinds(self, devices: int, seed: int) -> list[str]:
        """Return what is wrong with the network of each device: "cut", "slow", "corrupt", or "" for nothing."""
        kinds = [""] * devices
        order = np.random.default_rng([seed, devices]).permutation(devices).tolist()
        for name in ("cut", "slow", "corrupt"):
            part = getattr(self, name)
            for _ in range(max(round(part * devices), int(part > 0))):
                if order:
                    kinds[order.pop()] = name
        return kinds

    def __str__(self) -> str:
        """Return the form that `parse` reads, without what does not happen."""
        named = {field.name.replace("_", "-"): getattr(self, field.name) for field in fields(self)}
        return ",".join(f"{name}={value:g}" for name, value in named.items() if value)
