"""One simulated device: a `client.device.Device` whose inputs come from a fleet and whose state lies in a folder.

The folder stands for the flash memories of all devices. Content is stored once for the whole fleet; each device has a
file of its own that names the artifact it runs. So thousands of devices cost little, and the processes of a Ray
simulation see the same devices.
"""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

from flwr.app import Context

from quantization.arrays import FloatArray, IntArray
from quantization.artifact import Manifest
from quantization.device_class import DeviceClass
from quantization.errors import ConfigurationError
from server.blob_store import BlobStore
from server.default_home import DEFAULT_HOME
from server.settings import ConfigValue
from simulation.fleet import Fleet, FleetSettings
from simulation.scenario import Scenario
from simulation.tasks import load_task
from simulation.tasks.task import TaskData

FLEET = "fleet"
"""Key of the run configuration that names a fleet of this process."""

HOME = "home"
"""Key of the run configuration that names the folder with the devices' state, in `devices`."""

_POSITION, _DEVICES = "partition-id", "num-partitions"
"""Keys of the node configuration: which device of how many a node is."""

Config = Mapping[str, ConfigValue]
"""A configuration as Flower hands it over."""

_FLEETS: dict[str, tuple[Fleet, "DeviceStates"]] = {}


class DeviceStates:
    """What the devices of one fleet have stored."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, made if it is not there."""
        self._manifests = folder / "manifests"
        self._manifests.mkdir(parents=True, exist_ok=True)
        self.blobs = BlobStore(folder / "blobs")

    def manifest(self, position: int) -> Manifest | None:
        """Return the manifest of the artifact that a device runs; None before the first."""
        try:
            return _parsed((self._manifests / str(position)).read_bytes())
        except FileNotFoundError:
            return None

    def install(self, position: int, manifest: Manifest) -> None:
        """Make a device run the artifact of this manifest."""
        fresh = self._manifests / f"{position}.{uuid4().hex}.tmp"
        fresh.write_bytes(manifest.to_bytes())
        fresh.replace(self._manifests / str(position))


class SimulatedDevice:
    """The device at one position of a fleet."""

    def __init__(self, fleet: Fleet, states: DeviceStates, position: int) -> None:
        """Look at one device; nothing is loaded yet."""
        self._fleet = fleet
        self._states = states
        self._position = position

    @property
    def device_class(self) -> DeviceClass:
        """Kind of hardware."""
        return self._fleet.device_class(self._position)

    def manifest(self) -> Manifest | None:
        """Return the manifest of the artifact that serves now; None before the first."""
        return self._states.manifest(self._position)

    def install(self, manifest: Manifest) -> None:
        """Make the artifact of this manifest the one that serves."""
        self._states.install(self._position, manifest)

    def close(self) -> None:
        """Do nothing: the fleet outlives its devices."""

    def has_blob(self, digest: str) -> bool:
        """Return whether the blob is held."""
        return self._states.blobs.has(digest)

    def read_blob(self, digest: str) -> bytes:
        """Return a blob's stored bytes."""
        return self._states.blobs.get(digest)

    def store_blob(self, digest: str, stored: bytes) -> None:
        """Keep a blob's stored bytes."""
        self._states.blobs.put(digest, stored)

    def inputs(self) -> FloatArray:
        """Return the drifted inputs, as the model takes them."""
        return self._fleet.inputs(self._position)

    def labels(self) -> IntArray | None:
        """Return the class of each input, None on most devices."""
        return self._fleet.labels(self._position)


def register_fleet(fleet: Fleet, states: DeviceStates) -> str:
    """Return the name under which `open_simulated_device` finds a fleet of this process, until `forget_fleet`."""
    name = uuid4().hex
    _FLEETS[name] = fleet, states
    return name


def forget_fleet(name: str) -> None:
    """Let go of a fleet."""
    _FLEETS.pop(name, None)


def open_simulated_device(context: Context) -> SimulatedDevice:
    """Return the device of this node: of a fleet of this process, or of the one that the run configuration describes.

    Raises:
        ConfigurationError: If there is no such fleet, or its description is wrong.
    """
    config = context.run_config
    position, devices = _place(context.node_config)
    if FLEET in config:
        try:
            fleet, states = _FLEETS[str(config[FLEET])]
        except KeyError:
            raise ConfigurationError(f"no fleet {config[FLEET]!r} in this process") from None
    else:
        scenario = scenario_of(config, devices)
        fleet = _described_fleet(scenario)
        states = DeviceStates(_states_folder(scenario, str(config.get(HOME, DEFAULT_HOME))))
    return SimulatedDevice(fleet, states, position)


def scenario_of(config: Config, devices: int = 1) -> Scenario:
    """Return the scenario that a run configuration describes.

    Its keys are those of a scenario file, but lists are words with spaces between them:
    drift = "contrast=0.3 noise=0.05", device-classes = "x86-vnni arm".

    Raises:
        ConfigurationError: If a value cannot be used.
    """
    cache = str(config.get("cache-dir", ""))
    try:
        labelled, seed = float(config.get("labelled", 0.1)), int(config.get("seed", 0))
    except ValueError as error:
        raise ConfigurationError(f"labelled and seed must be numbers: {error}") from None
    return Scenario(
        task=str(config.get("task", "digits")),
        devices=devices,
        drifts=tuple(str(config.get("drift", "")).split()),
        labelled=labelled,
        seed=seed,
        partition=str(config.get("partition", "auto")),
        device_classes=tuple(str(config.get("device-classes", "x86-vnni")).split()),
        cache_dir=Path(cache).expanduser() if cache else None,
    )


def load_described(scenario: Scenario) -> TaskData:
    """Return the built-in task of a scenario.

    Raises:
        ConfigurationError: If it names none that is there.
    """
    if scenario.task is None:
        raise ConfigurationError('a Flower run simulates a built-in task; name one with task = "..."')
    return load_task(scenario.task, scenario.seed, scenario.cache_dir)


def _place(node_config: Config) -> tuple[int, int]:
    """Return the position of a node's device, and the size of its fleet."""
    try:
        position, devices = int(node_config[_POSITION]), int(node_config[_DEVICES])
    except (KeyError, ValueError):
        position, devices = 0, 0
    if not 0 <= position < devices:
        raise ConfigurationError(
            f"this node's configuration must say which simulated device of how many it is; start its SuperNode with"
            f" --node-config '{_POSITION}=0 {_DEVICES}=2'"
        )
    return position, devices


def _states_folder(scenario: Scenario, home: str) -> Path:
    """Return the folder of a fleet's devices: the same devices again wherever drift and labels alone differ."""
    fleet = scenario.task, scenario.seed, scenario.partition, scenario.devices, scenario.device_classes
    return Path(home).expanduser() / "devices" / hashlib.sha256(repr(fleet).encode()).hexdigest()[:16]


@lru_cache(maxsize=8)
def _parsed(data: bytes) -> Manifest:
    return Manifest.from_bytes(data)


@lru_cache(maxsize=1)
def _described_fleet(scenario: Scenario) -> Fleet:
    return Fleet(load_described(scenario), FleetSettings.of(scenario))
