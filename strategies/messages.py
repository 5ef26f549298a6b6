"""What the server asks devices and how devices introduce themselves, as values.

`strategies.records` writes them into Flower's records and reads them back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from quantization.calibration_recipe import DEFAULT_RECIPE, CalibrationRecipe
from quantization.errors import ConfigurationError
from quantization.fixed_grid import FixedGrid
from quantization.moments import MAX_CHANNELS

Overrides = Mapping[str, bytes]
"""Decoded content by location, in the place of the artifact's files."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """An artifact on its way to devices, without what they hold already.

    Attributes:
        manifest: The manifest's bytes.
        blobs: Stored bytes by digest, of the blobs that the devices lack.
    """

    manifest: bytes
    blobs: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def manifest_digest(self) -> str:
        """SHA-256 of the manifest, in hex."""
        return sha256(self.manifest).hexdigest()


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """Layers whose moments a round asks for, in the order that replies keep.

    Attributes:
        names: Of the layers.
        channels: How many each of them has.
    """

    names: tuple[str, ...]
    channels: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse layouts that no reply could follow."""
        if len(self.names) != len(self.channels) or len(set(self.names)) != len(self.names):
            raise ConfigurationError("a layout needs different layer names, each with its number of channels")
        if not all(0 < channels <= MAX_CHANNELS for channels in self.channels):
            raise ConfigurationError(f"every layer must have 1 to {MAX_CHANNELS} channels")

    @classmethod
    def of(cls, channels: Mapping[str, int]) -> "LayerLayout":
        """Return the layout for channels by layer, in their order."""
        return cls(tuple(channels), tuple(channels.values()))


@dataclass(frozen=True, slots=True)
class SiteLayout:
    """Sites whose histograms a round asks for, in the order that replies keep.

    Attributes:
        names: Of the sites.
        grids: The bins that each site's counts should be sent on, so that they add as vectors; None: every
            device chooses its own. What does not fit its grid is sent on its own bins, and nothing is lost.
    """

    names: tuple[str, ...]
    grids: tuple[FixedGrid, ...] | None = None
    bins: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse layouts that no reply could follow."""
        if len(set(self.names)) != len(self.names):
            raise ConfigurationError("a layout needs different site names")
        if self.grids is not None and len(self.grids) != len(self.names):
            raise ConfigurationError(f"{len(self.grids)} grids for {len(self.names)} sites")
        object.__setattr__(self, "bins", sum(grid.bins for grid in self.grids or ()))


@dataclass(frozen=True, slots=True)
class MomentsRequest:
    """Asks for the moments of the model as it is (plain) and as normalised layer by layer (sequential).

    Attributes:
        artifact: The current generation.
        layers: Whose moments.
        batch_size: Samples per batch on the device.
        recipe: Which inputs weigh more, and which augmented copies join them.
        seed: Of the copies.
    """

    artifact: Delivery
    layers: LayerLayout
    batch_size: int = 32
    recipe: CalibrationRecipe = DEFAULT_RECIPE
    seed: int = 0


@dataclass(frozen=True, slots=True)
class RangesRequest:
    """Asks for the histograms of all sites, and the moments, of the model with the candidate's corrections and weights.

    Attributes:
        artifact: The current generation.
        layers: Whose moments.
        sites: Whose histograms.
        overrides: What the candidate has in the place of the artifact's files: its channels, and its weights where
            they were chosen anew.
        batch_size: Samples per batch on the device.
        recipe: Which inputs weigh more, and which augmented copies join them.
        seed: Of the copies.
    """

    artifact: Delivery
    layers: LayerLayout
    sites: SiteLayout
    overrides: Overrides = field(default_factory=dict)
    batch_size: int = 32
    recipe: CalibrationRecipe = DEFAULT_RECIPE
    seed: int = 0


@dataclass(frozen=True, slots=True)
class AssessRequest:
    """Asks for the current and the candidate artifact side by side on the device's own data.

    Attributes:
        artifact: The current generation.
        candidate: The generation proposed.
        batch_size: Samples per batch on the device.
    """

    artifact: Delivery
    candidate: Delivery
    batch_size: int = 32


@dataclass(frozen=True, slots=True)
class DeviceHello:
    """How a device introduces itself.

    Attributes:
        node_id: Flower's name for it in this run.
        device_class: Name of its kind of hardware.
        generation: Generation it runs; -1 for none.
        manifest_digest: SHA-256 of the manifest it holds, in hex; empty for none.
        sample_count: Inputs it could be asked about.
        has_labels: Whether some of them have labels.
        capabilities: What else it can do, as fixed words.
        name: What it is called in every run, however often its SuperNode registers anew; empty where it has no name.
    """

    node_id: int
    device_class: str
    generation: int
    manifest_digest: str
    sample_count: int
    has_labels: bool
    capabilities: tuple[str, ...] = ()
    name: str = ""

    @property
    def rank(self) -> tuple[str, int]:
        """Order of devices: by name, so that it outlives a registration; by node where there is none."""
        return self.name, self.node_id

    @property
    def key(self) -> str:
        """What facts about the device are kept under: its name, else its node as text."""
        return self.name or str(self.node_id)
