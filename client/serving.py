"""What serves, and what is on trial in its place: the runtime, and how both are doing."""

import time
from collections.abc import Callable

from client.runtime import InputHook, Run, RunHook, Runtime
from client.slots import Target
from client.trial import RunMeter, TrialRules, Verdict
from quantization.artifact import BlobReader, Manifest
from quantization.errors import QuantFleetError

ServeHook = Callable[[Manifest, Target], None]
"""Is told, before it happens, that an artifact may serve from now on, and under which target."""


def _ignore(*_: object) -> None:
    pass


class Serving:
    """A runtime and the meter of its trials; for one thread, beside any number that infer.

    Attributes:
        runtime: What serves; None before the first artifact.
    """

    def __init__(
        self,
        read_blob: BlobReader,
        threads: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_input: InputHook | None = None,
        on_run: RunHook = _ignore,
        on_serve: ServeHook = _ignore,
    ) -> None:
        """Serve nothing yet.

        Args:
            read_blob: Gives the blobs of artifacts.
            threads: Of one inference.
            clock: In seconds, which never goes back.
            on_input: Is handed what is inferred.
            on_run: Is told how it went.
            on_serve: Is told what may serve.
        """
        self.runtime: Runtime | None = None
        self._read_blob, self._threads, self._clock = read_blob, threads, clock
        self._on_input, self._on_run, self._on_serve = on_input, on_run, on_serve
        self._meter = RunMeter()
        self._trial_began = 0.0

    @property
    def manifest(self) -> Manifest | None:
        """Of what serves; None before the first artifact."""
        return None if self.runtime is None else self.runtime.manifest

    def start(self, manifest: Manifest, target: Target | None, *, is_trial: bool = False) -> None:
        """Let an artifact serve, once it is loaded and has run its self-test.

        Args:
            manifest: Of the artifact.
            target: That names it; None where none does.
            is_trial: Whether what serves now stays loaded, and steps in where this one fails.

        Raises:
            QuantFleetError: If it cannot be loaded, or computes something else than it must; what serves stays.
        """
        if target is not None:
            self._on_serve(manifest, target)
        if is_trial:
            self._meter.begin(manifest)
        else:
            self._meter.end(is_kept=False)
        self._trial_began = self._clock()
        try:
            if self.runtime is None:
                self.runtime = Runtime(manifest, self._read_blob, self._threads, self._on_input, self._count)
            else:
                self.runtime.swap(manifest, self._read_blob, is_trial=is_trial).result()
        except QuantFleetError:
            self._meter.end(is_kept=False)
            raise

    def rename(self, manifest: Manifest, target: Target) -> None:
        """Go on with what serves, under another target.

        Args:
            manifest: Of the artifact that it names, where nothing serves yet.
            target: The new one.
        """
        self._on_serve(self.manifest or manifest, target)

    def judge(self, rules: TrialRules) -> tuple[Verdict, str]:
        """Return the verdict on what is on trial, and why where it failed."""
        return self._meter.judge(rules, self._clock() - self._trial_began)

    def keep(self) -> None:
        """End the trial: what is on trial serves for good, and what served before is dropped."""
        if self.runtime is not None:
            self.runtime.settle()
        self._meter.end(is_kept=True)

    def leave(self) -> None:
        """End the trial: what served before serves, at once; nothing happens without a trial."""
        if self.runtime is not None:
            self.runtime.revert()
        self._meter.end(is_kept=False)

    def close(self) -> None:
        """Wait for what is being loaded."""
        if self.runtime is not None:
            self.runtime.close()

    def _count(self, manifest: Manifest, run: Run) -> None:
        self._meter.record(manifest, run.cpu_seconds, run.is_good)
        self._on_run(manifest, run)
