"""Inference on a device: one artifact serves, and another takes its place without a failed request."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import onnxruntime as ort

from client.sessions import Float32Array, check_input, open_session, run_session
from quantization.arrays import AnyArray
from quantization.artifact import BlobReader, Manifest, TensorSpec, decode_blob, decode_files
from quantization.errors import InvalidDataError, UpdateRejectedError
from quantization.self_testing import SelfTest

InputHook = Callable[[Float32Array], None]
"""Is handed every batch that was inferred; must be quick and must not raise."""


@dataclass(frozen=True, slots=True)
class Run:
    """How one batch went.

    Attributes:
        rows: Inputs in it.
        seconds: That passed.
        cpu_seconds: Of the processor that the calling thread used: what others do on the machine is not in it.
        is_good: Whether the outputs are finite.
    """

    rows: int
    seconds: float
    cpu_seconds: float
    is_good: bool


RunHook = Callable[[Manifest, Run], None]
"""Is told of every run, and which artifact ran."""


@dataclass(frozen=True, slots=True, eq=False)
class _Live:
    """All that one inference needs, replaced as a whole: no inference sees parts of two.

    Attributes:
        manifest: Of the artifact.
        session: That runs it.
        spec: Of its input.
        output: Name of its first output.
        before: What steps in where it fails, and serves again if it is left; None but on trial.
    """

    manifest: Manifest
    session: ort.InferenceSession
    spec: TensorSpec
    output: str
    before: "_Live | None" = None


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """What the model said to one batch.

    Attributes:
        output: The model's first output: float32 logits, shape (n, classes).
        manifest: Of the artifact that said so.
    """

    output: Float32Array
    manifest: Manifest


class Runtime:
    """Serves one artifact, and swaps to another in the background.

    `infer` may be called from any number of threads. Each call uses the session that was live when it began,
    to its end. Only `close` waits.
    """

    def __init__(
        self,
        manifest: Manifest,
        read_blob: BlobReader,
        threads: int = 1,
        on_input: InputHook | None = None,
        on_run: RunHook | None = None,
    ) -> None:
        """Load the first artifact; its errors are those of `swap`.

        Args:
            manifest: Of the artifact.
            read_blob: Gives its blobs.
            threads: Of one inference.
            on_input: Is handed what was inferred.
            on_run: Is told how it went; must be quick and must not raise.
        """
        self._threads = threads
        self._on_input, self._on_run = on_input, on_run
        self._live = _load(manifest, read_blob, threads)
        self._builder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="quantfleet-swap")

    @property
    def manifest(self) -> Manifest:
        """The artifact that serves now."""
        return self._live.manifest

    @property
    def generation(self) -> int:
        """Number of the policy that serves now."""
        return self._live.manifest.generation

    def infer(self, x: AnyArray) -> Float32Array:
        """Return the model's first output for one batch: float32 logits, shape (n, classes); see `answer`."""
        return self.answer(x).output

    def answer(self, x: AnyArray) -> Answered:
        """Return what the model says to one batch, and which artifact said so.

        Where an artifact on trial cannot run a batch, or gives no finite outputs, what served before it runs the batch.

        Args:
            x: Shape (n, ...), the model's own input units.

        Raises:
            InvalidDataError: If the input is not what the model takes, or not finite.
        """
        live = self._live
        batch = check_input(x, live.spec)
        try:
            logits, is_finite = self._run(live, batch)
        except InvalidDataError:
            if live.before is None:
                raise
            is_finite = False
        if not is_finite and live.before is not None:
            live = live.before
            logits, _ = self._run(live, batch)
        if self._on_input is not None:
            self._on_input(batch)
        return Answered(logits, live.manifest)

    def _run(self, live: _Live, batch: Float32Array) -> tuple[Float32Array, bool]:
        """Return the logits and whether they are finite, and tell the hook."""
        began, cpu_began, is_finite = time.perf_counter(), time.thread_time(), False
        try:
            logits: Float32Array = run_session(live.session, [live.output], {live.spec.name: batch})[0]
            is_finite = bool(np.isfinite(logits).all())
        finally:
            if self._on_run is not None:
                seconds, cpu_seconds = time.perf_counter() - began, time.thread_time() - cpu_began
                self._on_run(live.manifest, Run(len(batch), seconds, cpu_seconds, is_finite))
        return logits, is_finite

    def swap(self, manifest: Manifest, read_blob: BlobReader, *, is_trial: bool = False) -> Future[None]:
        """Build another artifact's session in the background, try it, and let it serve.

        With `is_trial`, what served before stays loaded until `settle` or `revert`, and steps in where the other
        fails.

        Swaps happen in the order in which they were asked for. On any failure the artifact that serves keeps
        serving, and the future raises:

        Raises (from the future):
            MalformedError: If a blob is not what its reference says.
            DigestMismatchError: If content is not what its digest promises.
            UpdateRejectedError: If the graph does not load, does not run, takes or gives other shapes, or computes
                something else than the artifact's self-test says.
        """
        return self._builder.submit(self._swap_now, manifest, read_blob, is_trial)

    def revert(self) -> None:
        """Let the artifact serve that served before the trial, at once; nothing happens without one."""
        before = self._live.before
        if before is not None:
            self._live = before

    def settle(self) -> None:
        """End the trial: what served before is dropped."""
        self._live = replace(self._live, before=None)

    def close(self) -> None:
        """Wait for swaps that were asked for; the live session keeps serving those who hold the runtime."""
        self._builder.shutdown(wait=True)

    def _swap_now(self, manifest: Manifest, read_blob: BlobReader, is_trial: bool) -> None:
        live = self._live
        candidate = _load(manifest, read_blob, self._threads)
        if candidate.spec != live.spec:
            raise UpdateRejectedError(f"the update takes {candidate.spec}, what serves takes {live.spec}")
        self._live = replace(candidate, before=replace(live, before=None)) if is_trial else candidate


def _load(manifest: Manifest, read_blob: BlobReader, threads: int) -> _Live:
    """Return a session that has run once."""
    if len(manifest.stages) != 1:
        raise UpdateRejectedError(f"the artifact has {len(manifest.stages)} stages; this runtime runs one")
    stage = manifest.stages[0]
    skeleton = decode_blob(stage.skeleton, read_blob(stage.skeleton.digest))
    session = open_session(skeleton, decode_files(stage.files, read_blob), threads)
    live = _Live(manifest, session, stage.input, stage.outputs[0])
    _run_on_zeros(live)
    if stage.self_test is not None:
        _run_self_test(
            live, SelfTest.from_content(decode_blob(stage.self_test, read_blob(stage.self_test.digest)))
        )
    return live


def _run_on_zeros(live: _Live) -> None:
    """Run the session on one input of zeros: what fails, fails before anybody depends on it."""
    zeros = np.zeros([size or 1 for size in live.spec.shape], np.float32)
    try:
        logits = run_session(live.session, [live.output], {live.spec.name: zeros})[0]
    except InvalidDataError as error:
        raise UpdateRejectedError(f"the artifact does not run on zeros: {error}") from error
    if logits.dtype != np.float32 or not np.isfinite(logits).all():
        raise UpdateRejectedError("the artifact's graph gives outputs that are not finite float32 values")


def _run_self_test(live: _Live, test: SelfTest) -> None:
    """Compare the session with what the artifact says that it must give."""
    inputs = test.inputs(live.manifest.model_digest, live.spec.shape)
    try:
        outputs = run_session(live.session, [live.output], {live.spec.name: inputs})[0]
    except InvalidDataError as error:
        raise UpdateRejectedError(f"the artifact does not run its self-test: {error}") from error
    test.check(outputs)
