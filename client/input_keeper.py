"""Keeps a sample of what was inferred, in memory and in the state folder, where the ClientApp finds it.

What is kept never leaves the device: calibration rounds send statistics of it.
"""

from client.events import event_log
from client.sampler import Sampler
from client.sessions import Float32Array
from client.settings import SampleSettings
from client.state import StateFolder
from quantization.artifact import Manifest
from quantization.errors import ConfigurationError, MalformedError, QuantFleetError

_events = event_log("sample")


class InputKeeper:
    """The sampler of a device that may have no model yet, and so does not know what inputs look like."""

    def __init__(self, state: StateFolder, settings: SampleSettings) -> None:
        """Keep nothing until `open`; `state` is owned by this process."""
        self._state, self._settings = state, settings
        self._sampler: Sampler | None = None
        self._written = 0

    def open(self, manifest: Manifest) -> None:
        """Take samples of this model's inputs; the first call decides, and takes up what the folder holds."""
        if self._sampler is not None or not self._settings.max_bytes:
            return
        shape = [size or 1 for size in manifest.stages[0].input.shape[1:]]
        try:
            sampler = Sampler(
                shape, max_bytes=self._settings.max_bytes, rate=self._settings.rate, keep=self._settings.keep
            )
        except ConfigurationError as error:
            _events.warning("samples_not_kept", error=str(error))
            return
        try:
            data = self._state.read_samples()
            if data is not None:
                sampler.restore(data)
        except (MalformedError, OSError) as error:  # of another model, or damaged
            _events.warning("samples_not_restored", error=str(error))
        self._sampler, self._written = sampler, sampler.seen

    def offer(self, batch: Float32Array) -> None:
        """Look at a batch that was inferred; the hook of a runtime."""
        if self._sampler is not None:
            self._sampler.offer(batch)

    def write(self) -> None:
        """Put the samples on the disk, if there are new ones.

        Raises:
            ConfigurationError: If the folder cannot be written.
        """
        sampler = self._sampler
        if sampler is not None and sampler.seen != self._written:
            seen = sampler.seen
            self._state.write_samples(sampler.to_bytes())
            self._written = seen

    def close(self) -> None:
        """Put the samples on the disk, if that is possible."""
        try:
            self.write()
        except QuantFleetError as error:
            _events.warning("samples_not_written", error=str(error))
