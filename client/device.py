"""What a ClientApp needs of the device it runs on, and where that device comes from.

A device source is a function that Flower's context goes into and a `Device` comes out of. Sources are found
by name in the entry point group "quantfleet.devices", a fixed registry of installed functions: a name that
comes over the network can choose one of them and nothing else.
"""

from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import Protocol

import numpy as np
from flwr.app import Context

from client.folder_lock import Access
from client.sampler import Sampler
from client.state import StateFolder
from quantization.arrays import FloatArray, IntArray
from quantization.artifact import Manifest
from quantization.device_class import DeviceClass
from quantization.errors import ConfigurationError

DEVICE_GROUP = "quantfleet.devices"
DEVICE_SOURCE = "device-source"
DEFAULT_SOURCE = "state"
STATE_FOLDER = "state-folder"
DEVICE_CLASS = "device-class"
DEVICE_NAME = "device-name"
_PARTITION = "partition-id"


class Device(Protocol):
    """One edge device, as the rounds see it; opened for one message and closed behind it."""

    @property
    def device_class(self) -> DeviceClass:
        """Kind of hardware."""
        ...

    def manifest(self) -> Manifest | None:
        """Return the artifact that serves now; None before the first."""
        ...

    def install(self, manifest: Manifest) -> None:
        """Make this artifact, whose blobs are all held, the one that serves, unless that is another's to decide."""
        ...

    def has_blob(self, digest: str) -> bool:
        """Return whether the blob is held."""
        ...

    def read_blob(self, digest: str) -> bytes:
        """Return a blob's stored bytes; NotFoundError if it is not held."""
        ...

    def store_blob(self, digest: str, stored: bytes) -> None:
        """Keep a blob's stored bytes; MalformedError or DigestMismatchError if they are not that blob."""
        ...

    def inputs(self) -> FloatArray:
        """Return the sampled inputs, float32 (N, ...) in the model's own input units; N may be 0."""
        ...

    def labels(self) -> IntArray | None:
        """Return the class of each input, int64 (N,), -1 where unknown; None where no input has one."""
        ...

    def close(self) -> None:
        """Give back what `open_device` took."""
        ...


DeviceSource = Callable[[Context], Device]


def open_device(context: Context) -> Device:
    """Return this node's device, from the source that its configuration names.

    The node's own configuration goes before the run's; without either it is the state folder.

    Raises:
        ConfigurationError: If no installed source has that name.
    """
    return _installed_source(_setting(context, DEVICE_SOURCE, DEFAULT_SOURCE))(context)


@cache
def _installed_source(name: str) -> DeviceSource:
    """Return the installed source of that name; looking through all packages takes 10 ms, so it is done once."""
    sources = {entry.name: entry for entry in entry_points(group=DEVICE_GROUP)}
    if name not in sources:
        known = ", ".join(sorted(sources)) or "none"
        raise ConfigurationError(f"{DEVICE_SOURCE} {name!r} is not installed; installed are: {known}")
    source: DeviceSource = sources[name].load()
    return source


def device_name(context: Context) -> str:
    """Return what this node's device is called in every run; empty where its configuration does not say.

    That is the setting `device-name`, else the place in a simulated fleet. Flower's own node id is another one after
    every registration.
    """
    named = context.node_config.get(DEVICE_NAME, "")
    if not named and _PARTITION in context.node_config:
        return f"{context.node_config[_PARTITION]:0>8}"
    return str(named)


def open_state_device(context: Context) -> Device:
    """Return the device whose state lies in the folder that its own configuration names.

    Raises:
        ConfigurationError: If the folder or the device class is not configured, or the folder cannot be used.
    """
    folder, device_class = (_setting(context, key, "") for key in (STATE_FOLDER, DEVICE_CLASS))
    if not folder or not device_class:
        raise ConfigurationError(
            f"this device's node configuration lacks {STATE_FOLDER} or {DEVICE_CLASS}; start its SuperNode with "
            f'--node-config \'{STATE_FOLDER}="/var/lib/quantfleet" {DEVICE_CLASS}="arm"\''
        )
    return StateDevice(StateFolder(folder, Access.GUEST), DeviceClass(device_class))


class StateDevice:
    """A device whose artifact and samples lie in a state folder; its inputs have no labels."""

    def __init__(self, folder: StateFolder, device_class: DeviceClass) -> None:
        self._folder = folder
        self._device_class = device_class

    @property
    def device_class(self) -> DeviceClass:
        """Kind of hardware, as configured."""
        return self._device_class

    def manifest(self) -> Manifest | None:
        """Return the artifact that serves now; None before the first."""
        return self._folder.read_manifest()

    def install(self, manifest: Manifest) -> None:
        """Make this artifact the one that serves after a restart, where nobody else decides that.

        An agent that owns the folder, or has an artifact on trial, is told by the update service what to run: what
        it serves stays, and this device answers with the artifact that the round asks about.
        """
        with self._folder.lock.owning() as is_owner:
            if is_owner and self._folder.slots().candidate is None:
                self._folder.write_manifest(manifest)

    def has_blob(self, digest: str) -> bool:
        """Return whether the blob is held."""
        return self._folder.has_blob(digest)

    def read_blob(self, digest: str) -> bytes:
        """Return a blob's stored bytes, verified."""
        return self._folder.read_blob(digest)

    def store_blob(self, digest: str, stored: bytes) -> None:
        """Keep a blob's stored bytes, once they are verified."""
        self._folder.store_blob(digest, stored)

    def inputs(self) -> FloatArray:
        """Return what the sampler kept, float32 (N, ...); no rows before the first artifact or sample."""
        manifest, data = self._folder.read_manifest(), self._folder.read_samples()
        if manifest is None:
            return np.zeros((0, 1), np.float32)
        sampler = Sampler([size or 1 for size in manifest.stages[0].input.shape[1:]])
        if data is not None:
            sampler.restore(data)
        return sampler.inputs()

    def labels(self) -> IntArray | None:
        """Return None: a device in the field knows no classes."""
        return None

    def close(self) -> None:
        """Release the folder."""
        self._folder.close()


def _setting(context: Context, key: str, default: str) -> str:
    """Return a setting of the node, else of the run, else the default."""
    return str(context.node_config.get(key, context.run_config.get(key, default)))
