"""What a device's inputs look like to the model: statistics from the observation graphs of its artifact."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import onnxruntime as ort

from client.runtime import Float32Array, check_input, open_session, run_session
from quantization.arrays import AnyArray, FloatArray
from quantization.artifact import BlobReader, BlobRef, Manifest, decode_blob, decode_files, read_references
from quantization.errors import ConfigurationError, MalformedError
from quantization.moments import ChannelReference
from quantization.observation import BatchFloor, Observation, ValuesSink, batches, observe

CHANNELS_FILE = "channels"
"""Location of the file that a candidate's corrections replace."""


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
        channels_override: bytes | None = None,
        *,
        batch_size: int = 32,
        threads: int = 1,
    ) -> None:
        """Read the references; graphs are read when they are needed.

        Args:
            manifest: Of one stage, which has observation graphs.
            read_blob: Gives the stored bytes of the artifact's blobs.
            channels_override: Decoded content to use for the file "channels" of the plain graph: the
                corrections of a candidate that is not published yet.
            batch_size: Most inputs at a time.
            threads: Of one inference.

        Raises:
            ConfigurationError: If the artifact has no observation graph.
            MalformedError: If `channels_override` has not the size of the artifact's own file.
        """
        if len(manifest.stages) != 1 or manifest.stages[0].plain is None:
            raise ConfigurationError("the artifact has no observation graph; build it with one")
        self._stage = manifest.stages[0]
        self._plain_graph = manifest.stages[0].plain
        self._read_blob = read_blob
        self._batch_size = batch_size
        self._threads = threads
        self._overrides = {}
        if channels_override is not None:
            sizes = {ref.location: ref.decoded_size_bytes for ref in self._stage.files}
            if sizes.get(CHANNELS_FILE) != len(channels_override):
                raise MalformedError(
                    f"candidate channels of {len(channels_override)} bytes, the artifact's file has "
                    f"{sizes.get(CHANNELS_FILE)}"
                )
            self._overrides[CHANNELS_FILE] = channels_override
        self.references: Mapping[str, ChannelReference] = read_references(self._stage, read_blob)

    def moments(self, inputs: FloatArray) -> Observation:
        """Return the *sequential* moments: of each layer where every layer before it is normalised.

        Batches too small to normalise are left out and counted; see `quantization.observation.BatchFloor`.

        Args:
            inputs: Shape (N, ...), N may be 0.

        Raises:
            ConfigurationError: If the artifact was built without the lab's moments.
        """
        graph = self._stage.normalizing
        if not self._stage.layers:  # a model of one layer: there is none whose moments could be restored
            return observe(lambda _: {}, inputs, {}, self._batch_size)
        if graph is None:
            raise ConfigurationError("the artifact has no normalizing graph; build it with the lab's moments")
        with self._session(graph, self._stage.reference_files, {}) as session:
            return observe(self._run(session), inputs, self.references, self._batch_size, floor=BatchFloor())

    def ranges(self, inputs: FloatArray, values_sink: ValuesSink | None = None) -> Observation:
        """Return the histogram of every site and the plain moments of every layer of the float model.

        Args:
            inputs: Shape (N, ...), N may be 0.
            values_sink: Sees the values that go into the histograms.
        """
        with self._plain() as session:
            return observe(
                self._run(session),
                inputs,
                self.references,
                self._batch_size,
                sites=self._stage.sites,
                values_sink=values_sink,
            )

    def logits(self, inputs: FloatArray) -> Float32Array:
        """Return the logits of the corrected float model, shape (N, classes).

        Args:
            inputs: Shape (N, ...), N at least 1, finite.

        Raises:
            InvalidDataError: If the inputs are not what the model takes.
        """
        batch = check_input(inputs, self._stage.input)
        name = self._stage.outputs[0]
        with self._plain() as session:
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
