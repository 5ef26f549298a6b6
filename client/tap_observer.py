"""What layers read, and what the model says, with other weights than the artifact's: sessions over a tap graph."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from client.sessions import Float32Array, check_input, open_session, run_session
from quantization.arrays import AnyArray, FloatArray
from quantization.artifact import BlobReader, Manifest, decode_blob, decode_files
from quantization.errors import ConfigurationError, MalformedError
from quantization.observation import RunFunction, batches


class TapObserver:
    """Runs one artifact's float model, with some of its files replaced, on one thread.

    The artifact's files are decoded once; a session lives as long as the block or the call that needs it.
    """

    def __init__(
        self, manifest: Manifest, read_blob: BlobReader, graph: bytes = b"", *, batch_size: int = 32
    ) -> None:
        """Decode the files.

        Args:
            manifest: Of one stage.
            read_blob: Gives the stored bytes of the artifact's blobs.
            graph: Skeleton of the tap graph; empty for the artifact's plain observation graph.
            batch_size: Most inputs at a time.

        Raises:
            ConfigurationError: If there is no such graph.
        """
        if len(manifest.stages) != 1:
            raise ConfigurationError(f"an artifact of {len(manifest.stages)} stages cannot be observed")
        self._stage = manifest.stages[0]
        if not graph:
            if self._stage.plain is None:
                raise ConfigurationError("the artifact has no observation graph; build it with one")
            graph = decode_blob(self._stage.plain, read_blob(self._stage.plain.digest))
        self._graph = graph
        self._files = decode_files(self._stage.files, read_blob)
        self._batch_size = batch_size

    @contextmanager
    def taps(self, tensors: tuple[str, ...], overrides: Mapping[str, bytes]) -> Iterator[RunFunction]:
        """Yield what gives the named tensors of a batch, the model's own input among them if it is named.

        Args:
            tensors: Names of outputs of the graph, or of its input.
            overrides: Decoded contents by location, in the place of the artifact's files.

        Raises:
            MalformedError: If the graph has no such outputs, or the overrides do not fit the artifact.
            UpdateRejectedError: If the graph cannot be loaded.
        """
        spec = self._stage.input
        session = open_session(self._graph, self._replaced(overrides), folds_weights=True)
        known = {output.name for output in session.get_outputs()}
        names = [name for name in dict.fromkeys(tensors) if name != spec.name]
        missing = [name for name in names if name not in known]
        if missing:
            raise MalformedError(f"the graph does not output tensor {missing[0]!r:.80}")

        def run(batch: FloatArray) -> dict[str, AnyArray]:
            x = check_input(batch, spec)
            values = run_session(session, names, {spec.name: x}) if names else []  # to run for none gives all
            return {spec.name: x, **dict(zip(names, values, strict=True))}

        yield run

    def logits(self, inputs: FloatArray, overrides: Mapping[str, bytes]) -> Float32Array:
        """Return the model's first output, (N, classes), with some files replaced.

        Args:
            inputs: Shape (N, ...), N at least 1, finite.
            overrides: As in `taps`.

        Raises:
            MalformedError: If the overrides do not fit the artifact.
            InvalidDataError: If the inputs are not what the model takes.
            UpdateRejectedError: If the graph cannot be loaded.
        """
        name = self._stage.outputs[0]
        with self.taps((name,), overrides) as run:
            return np.concatenate([run(part)[name] for part in batches(inputs, self._batch_size)])

    def _replaced(self, overrides: Mapping[str, bytes]) -> dict[str, bytes]:
        for location, content in overrides.items():
            if location not in self._files or len(self._files[location]) != len(content):
                held = len(self._files[location]) if location in self._files else "none"
                raise MalformedError(
                    f"an override of {len(content)} bytes for file {location!r:.80}, of which the artifact has {held}"
                )
        return {**self._files, **overrides}
