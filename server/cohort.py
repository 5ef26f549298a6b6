"""Which devices a round asks."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from quantization.errors import RoundFailedError
from server.settings import CohortSettings
from strategies.messages import DeviceHello


def by_class(hellos: Iterable[DeviceHello]) -> dict[str, tuple[DeviceHello, ...]]:
    """Return the devices of each class, classes by name and devices by rank."""
    groups: dict[str, list[DeviceHello]] = {}
    for hello in sorted(hellos, key=lambda hello: (hello.device_class, hello.rank)):
        groups.setdefault(hello.device_class, []).append(hello)
    return {name: tuple(group) for name, group in groups.items()}


def sample(
    devices: Sequence[DeviceHello], settings: CohortSettings, stream: Sequence[int]
) -> tuple[DeviceHello, ...]:
    """Return the devices that a round asks: a share of those that have inputs, by rank.

    Args:
        devices: Of one class.
        settings: Share and seed.
        stream: What tells this draw from others; the same stream draws the same devices.

    Raises:
        RoundFailedError: No device has inputs.
    """
    able = sorted((device for device in devices if device.sample_count > 0), key=lambda d: d.rank)
    if not able:
        raise RoundFailedError(
            f"none of the {len(devices)} devices has sampled inputs; let them serve requests first"
        )
    wanted = max(1, math.ceil(settings.sample_fraction * len(able) - 1e-9))
    chosen = np.random.default_rng([settings.seed, *stream]).permutation(len(able))[:wanted]
    return tuple(able[i] for i in sorted(chosen))
