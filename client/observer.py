"""What a device's inputs look like to the model: statistics from the observation graphs of its artifact."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import onnxruntime as ort

from client.sessions import Float32Array, check_input, open_session, run_session
from quantization.arrays import AnyArray, FloatArray, IntArray
from quantization.artifact import BlobReader, BlobRef, Manifest, decode_blob, decode_files, read_references
from quantization.calibration_recipe import DEFAULT_RECIPE, CalibrationRecipe, prepare_inputs, prepared_blocks
from quantization.errors import ConfigurationError, MalformedError
from quantization.histogram import merge_all
from quantization.moments import ChannelReference
from quantization.observation import BatchFloor, Observation, ValuesSink, batches, finite_inputs, observe

LEAST_AUGMENTED = 4
"""Inputs that a device needs to make a batch that normalises itself with the help of copies; fewer show too little."""


class Observer:
    """Runs the observation graphs of one artifact.

    A session is built when it is asked for and dropped at the end of the call: float activations are the
    largest thing that a device ever holds, and it holds them seldom.

    Attributes:
        references: The lab's moments by observed layer; empty where the artifact has none.
    """

    def __init__(
        self,
        manifest: Manifest,
        read_blob: BlobReader,
        overrides: Mapping[str, bytes] = MappingProxyType({}),
        *,
        batch_size: int = 32,
        threads: int = 1,
    ) -> None:
        """Read the references; graphs are read when they are needed.

        Args:
            manifest: Of one stage, which has observation graphs.
            read_blob: Gives the stored bytes of the artifact's blobs.
            overrides: Decoded content by location, in the place of files of the plain graph: the corrections and
                weights of a candidate that is not published yet.
            batch_size: Most inputs at a time.
            threads: Of one inference.

        Raises:
            ConfigurationError: If the artifact has no observation graph.
            MalformedError: If an override is in the place of no file, or has not the size of the artifact's own.
        """
        if len(manifest.stages) != 1 or manifest.stages[0].plain is None:
            raise ConfigurationError("the artifact has no observation graph; build it with one")
        self._stage = manifest.stages[0]
        self._plain_graph = manifest.stages[0].plain
        self._read_blob = read_blob
        self._batch_size = batch_size
        self._threads = threads
        sizes = {ref.location: ref.decoded_size_bytes for ref in self._stage.files}
        for location, content in overrides.items():
            if sizes.get(location) != len(content):
                raise MalformedError(
                    f"{len(content)} bytes in the place of file {location!r:.80}, the artifact's has "
                    f"{sizes.get(location)}"
                )
        self._overrides = overrides
        self.references: Mapping[str, ChannelReference] = read_references(self._stage, read_blob)

    def moments(
        self, inputs: FloatArray, recipe: CalibrationRecipe = DEFAULT_RECIPE, seed: int = 0
    ) -> Observation:
        """Return the *sequential* moments: of each layer where every layer before it is normalised.

        Batches too small to normalise are left out and counted; see `quantization.observation.BatchFloor`.

        Args:
            inputs: Shape (N, ...), N may be 0.
            recipe: Which copies join the inputs, where there are 4 at least; moments have no weights.
            seed: Of the copies.

        Raises:
            ConfigurationError: If the artifact was built without the lab's moments.
        """
        chosen = recipe.unweighted if len(inputs) >= LEAST_AUGMENTED else DEFAULT_RECIPE
        rows, _ = prepare_inputs(chosen, inputs, self.logits, None, seed)
        graph = self._stage.normalizing
        if not self._stage.layers:  # a model of one layer: there is none whose moments could be restored
            seen = observe(lambda _: {}, rows, {}, self._batch_size)
        elif graph is None:
            raise ConfigurationError("the artifact has no normalizing graph; build it with the lab's moments")
        else:
            with self._session(graph, self._stage.reference_files, {}) as session:
                seen = observe(
                    self._run(session), rows, self.references, self._batch_size, floor=BatchFloor()
                )
        return _with_broken(seen, inputs)

    def ranges(
        self,
        inputs: FloatArray,
        values_sink: ValuesSink | None = None,
        *,
        recipe: CalibrationRecipe = DEFAULT_RECIPE,
        labels: IntArray | None = None,
        seed: int = 0,
    ) -> Observation:
        """Return the histogram of every site and the plain moments of every layer of the float model.

        Plain moments are of the inputs alone: they say how far the field's own inputs are from the lab's, and no copy
        may blur that.

        Args:
            inputs: Shape (N, ...), N may be 0.
            values_sink: Sees the values that go into the histograms.
            recipe: Which inputs weigh more in histograms, and which copies join them there.
            labels: Class of each input, int64 (N,), -1 where unknown; a recipe by loss reads them.
            seed: Of the copies.
        """
        references, sites = self.references, self._stage.sites
        parts: list[Observation] = []
        with self._plain() as session:
            blocks = prepared_blocks(recipe, inputs, lambda rows: self._logits(session, rows), labels, seed)
            for rows, weights in blocks:
                parts.append(
                    observe(
                        self._run(session),
                        rows,
                        references,
                        self._batch_size,
                        sites=sites,
                        values_sink=values_sink,
                        weights=weights,
                    )
                )
                references = {}  # of the first block, which has the originals
        histograms = {site: merge_all(part.histograms[site] for part in parts) for site in sites}
        return _with_broken(replace(parts[0], histograms=histograms), inputs)

    def logits(self, inputs: FloatArray) -> Float32Array:
        """Return the logits of the corrected float model, shape (N, classes).

        Args:
            inputs: Shape (N, ...), N at least 1, finite.

        Raises:
            InvalidDataError: If the inputs are not what the model takes.
        """
        with self._plain() as session:
            return self._logits(session, inputs)

    def _logits(self, session: ort.InferenceSession, inputs: FloatArray) -> Float32Array:
        batch = check_input(inputs, self._stage.input)
        name = self._stage.outputs[0]
        parts = [
            run_session(session, [name], {self._stage.input.name: np.asarray(part, np.float32)})[0]
            for part in batches(batch, self._batch_size)
        ]
        return np.concatenate(parts)

    @contextmanager
    def _plain(self) -> Iterator[ort.InferenceSession]:
        with self._session(self._plain_graph, (), self._overrides) as session:
            yield session

    @contextmanager
    def _session(
        self, graph: BlobRef, own_files: tuple[BlobRef, ...], overrides: Mapping[str, bytes]
    ) -> Iterator[ort.InferenceSession]:
        """Yield a session for one of the observation graphs; its memory is freed behind the block."""
        skeleton = decode_blob(graph, self._read_blob(graph.digest))
        own = decode_files(own_files, self._read_blob)
        replaced = own.keys() | overrides.keys()
        shared = decode_files(
            [ref for ref in self._stage.files if ref.location not in replaced], self._read_blob
        )
        session = open_session(skeleton, {**shared, **own, **overrides}, self._threads)
        yield session

    def _run(self, session: ort.InferenceSession) -> Callable[[FloatArray], dict[str, AnyArray]]:
        names = [output.name for output in session.get_outputs() if output.name not in self._stage.outputs]

        def run(batch: FloatArray) -> dict[str, AnyArray]:
            feed = {self._stage.input.name: check_input(batch, self._stage.input)}
            return dict(zip(names, run_session(session, names, feed), strict=True))

        return run


def _with_broken(seen: Observation, inputs: FloatArray) -> Observation:
    """Return the observation with the inputs counted as left out that no graph was shown."""
    broken = len(inputs) - int(np.count_nonzero(finite_inputs(inputs)))
    return replace(seen, left_out_count=seen.left_out_count + broken)
