"""A fleet of simulated devices: who holds which rows, what the field does to them, and what each device can do."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from quantization.arrays import FloatArray, IntArray
from quantization.device_class import ARM, X86, X86_VNNI, DeviceClass
from simulation.drift import Drift, apply_drifts, parse_drifts
from simulation.partition import partition
from simulation.scenario import Scenario
from simulation.tasks.task import TaskData

_DEVICE_STREAM, _TEST_STREAM, _LABEL_STREAM = 1, 2, 3
"""Streams of randomness under one seed: noise on devices, noise on test rows, who has labels."""

_CACHED_DEVICES = 64
"""Devices whose model inputs are kept between the rounds that ask for them."""


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """What a fleet is made of.

    Attributes:
        devices: How many.
        partition: Who holds which rows, as `simulation.partition` reads it.
        drifts: What the field does, in order.
        labelled: Fraction of devices with labels, 0 to 1; at least one device if above 0.
        device_classes: Dealt out in turn.
        seed: Of rows, noise and labels.
    """

    devices: int
    partition: str = "auto"
    drifts: tuple[Drift, ...] = ()
    labelled: float = 0.1
    device_classes: tuple[DeviceClass, ...] = (X86_VNNI,)
    seed: int = 0

    @classmethod
    def of(cls, scenario: Scenario) -> "FleetSettings":
        """Return the part of a scenario that is about the fleet."""
        return cls(
            scenario.devices,
            scenario.partition,
            parse_drifts(scenario.drifts),
            scenario.labelled,
            tuple(class_named(name) for name in scenario.device_classes),
            scenario.seed,
        )


def class_named(name: str) -> DeviceClass:
    """Return the device class of that name: a known kind of hardware, or one with full capabilities."""
    known = {device_class.name: device_class for device_class in (X86_VNNI, X86, ARM)}
    return known.get(name) or DeviceClass(name)


class Fleet:
    """Devices with rows of one task's field data, seen through the field's drift.

    Attributes:
        task: Data and model.
        settings: What the fleet is made of.
        rows: By position: which field rows a device holds.
        labelled: Positions of devices that have labels.
    """

    def __init__(self, task: TaskData, settings: FleetSettings) -> None:
        """Deal out rows and labels.

        Raises:
            ConfigurationError: If the task has too few rows, or a drift is not for its kind of data.
        """
        self.task = task
        self.settings = settings
        self.rows: tuple[IntArray, ...] = partition(task, settings.devices, settings.partition, settings.seed)
        self.labelled = self._draw_labelled()
        self._cached_inputs = lru_cache(maxsize=_CACHED_DEVICES)(self._inputs)

    def inputs(self, position: int) -> FloatArray:
        """Return the drifted inputs of one device, as the model takes them: float32, (rows, ...)."""
        return self._cached_inputs(position)

    def labels(self, position: int) -> IntArray | None:
        """Return the class of each input of a device that has labels, None for the others."""
        if self.task.field_y is None or position not in self.labelled:
            return None
        return np.asarray(self.task.field_y[self.rows[position]], np.int64)

    def device_class(self, position: int) -> DeviceClass:
        """Return the device's kind of hardware."""
        return self.settings.device_classes[position % len(self.settings.device_classes)]

    def test_inputs(self, *, is_drifted: bool) -> FloatArray:
        """Return the test rows, which no device holds, as the model takes them."""
        raw = self.task.test_x
        if is_drifted:
            raw = self._drifted(raw, np.random.default_rng([self.settings.seed, _TEST_STREAM]))
        return self.task.to_input(raw)

    def _inputs(self, position: int) -> FloatArray:
        rng = np.random.default_rng([self.settings.seed, _DEVICE_STREAM, position])
        return self.task.to_input(self._drifted(self.task.field_x[self.rows[position]], rng))

    def _drifted(self, raw: FloatArray, rng: np.random.Generator) -> FloatArray:
        return apply_drifts(raw, self.settings.drifts, self.task.domain, rng)

    def _draw_labelled(self) -> frozenset[int]:
        wanted = round(self.settings.labelled * self.settings.devices)
        if self.settings.labelled > 0:
            wanted = max(wanted, 1)
        rng = np.random.default_rng([self.settings.seed, _LABEL_STREAM])
        return frozenset(rng.permutation(self.settings.devices)[:wanted].tolist())
