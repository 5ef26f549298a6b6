"""The agent of one device: serves its model, keeps it what it should be, and reports how it does.

    application -> infer -> Runtime                         any number of threads, never waits for what follows
    "quantfleet-update"    announcements -> Updater          the one thread that changes what serves
    "quantfleet-watch"     the server's announcements
    "quantfleet-report"    counts -> spool -> server
    "quantfleet-judge"     some answers -> the float model

Without a link the agent serves what the state folder holds, and keeps its reports.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from client.background import lower_priority, switch_quickly
from client.backoff import Backoff
from client.device_status import Answer, DeviceStatus, fallback_of
from client.events import event_log
from client.garbage import used_bytes
from client.input_keeper import InputKeeper
from client.judging import Judge
from client.link import Announcements, FleetLink
from client.metered import MeteredNetwork
from client.process_memory import rss_bytes
from client.recent_samples import RecentSamples
from client.reporting import Reporter
from client.self_testing import IsolatedTest, run_isolated
from client.settings import DeviceSettings
from client.slots import Target
from client.state import StateFolder
from client.telemetry import Counted, Telemetry, Totals
from client.transport import NoService
from client.update_result import Result
from client.update_worker import Chore, UpdateWorker
from client.updater import Updater, UpdateSettings
from protos.quantfleet.v1.telemetry_pb2 import InstallAttempt
from quantization.arrays import AnyArray
from quantization.artifact import Manifest
from quantization.errors import ConfigurationError, NotFoundError, QuantFleetError

_events = event_log("agent")
_JOIN_SECONDS = 5.0


class Agent:
    """One device; use it as a context manager, or `start` and `close` it.

    Attributes:
        telemetry: What it counts.
        updater: What changes the artifact; for the agent's own thread.
    """

    def __init__(
        self,
        state: StateFolder,
        settings: DeviceSettings,
        link: FleetLink | None,
        *,
        device: str = "",
        chores: Sequence[Chore] = (),
        on_attempt: Callable[[InstallAttempt], object] = lambda _: None,
        test: IsolatedTest = run_isolated,
        rng: random.Random | None = None,
    ) -> None:
        """Load what the state folder holds; nothing goes over the network before `start`.

        Args:
            state: Owned by this process, and closed with the agent.
            settings: What the agent is told.
            link: To the server, closed with the agent; None for a device on its own.
            device: Its name.
            chores: What else is done in the background once in a while.
            on_attempt: Is told how attempts to install a target end.
            test: Tries an artifact before it is loaded here.
            rng: Draws waits; seeded by the system if None.

        Raises:
            ConfigurationError: If the settings leave open which model the device is for.
        """
        self._settings, self._link, self._device, self._tell = settings, link, device, on_attempt
        self._rng = rng or random.Random()  # noqa: S311  # it spreads load, it guards nothing
        self._started_at = time.monotonic()
        self._is_closed = threading.Event()
        self._announcements: Announcements | None = None
        self._state = state
        self.telemetry = Telemetry()
        self._keeper = InputKeeper(self._state, settings.sample)
        self.updater = self._make_updater(test)
        self._check_model()
        self._recent: RecentSamples[Counted] = RecentSamples(settings.local.remembered_samples)
        self._judge = Judge(self.telemetry, self._state.read_blob, settings.judge, is_quiet=settings.is_quiet)
        self._reporter = Reporter(
            self._state, self.telemetry, link, settings.report, serving=self._manifest, rng=self._rng
        )
        writing = Chore("write_samples", settings.sample.write_seconds, self._keeper.write)
        self._worker = UpdateWorker(
            self.updater,
            self._state.slots,
            self.telemetry,
            settings.pace,
            rng=self._rng,
            on_attempt=self._on_attempt,
            chores=(writing, *chores),
            is_quiet=settings.is_quiet,
            has_service=link is not None,
        )
        self._watcher = threading.Thread(target=self._watch, name="quantfleet-watch", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Begin to watch, update and report."""
        switch_quickly()
        self._worker.start()
        self._reporter.start()
        self._judge.start()
        if self._link is not None:
            self._watcher.start()

    def close(self) -> None:
        """Stop: nothing is taken any more, and what was counted and sampled is on the disk."""
        if self._is_closed.is_set():
            return
        self._is_closed.set()
        if self._announcements is not None:
            self._announcements.cancel()
        if self._link is not None:
            self._link.close()
        self._worker.close()
        self._judge.close()
        self._reporter.close()
        self._keeper.close()
        if self._watcher.is_alive():
            self._watcher.join(_JOIN_SECONDS)
        self.updater.close()
        self._state.close()
        _events.info("agent_stopped")

    def infer(self, x: AnyArray) -> Answer:
        """Return what the model says to a batch; any number of threads may call this.

        Args:
            x: Shape (n, ...), the model's own input units.

        Raises:
            InvalidDataError: If the input is not what the model takes, or not finite.
            NotFoundError: If the device has no model yet.
        """
        runtime = self.updater.runtime
        if runtime is None:
            raise NotFoundError("this device has no model yet; it serves once the first one is installed")
        answered = runtime.answer(x)
        counted = self.telemetry.of(answered.manifest)
        output = answered.output
        if output.ndim == 2:
            classes: list[int] = output.argmax(axis=1).tolist()
            sample_id = self._recent.add(classes, counted)
            self._judge.offer(x, classes, counted)
        else:
            sample_id = self._recent.skip(len(output))
        return Answer(output, counted.target.version, answered.manifest.generation, sample_id)

    def label(self, sample_id: int, class_index: int) -> bool:
        """Tell the true class of an input that was answered lately; return whether the model had said so.

        Raises:
            NotFoundError: If the input was answered too long ago, or has its label already.
        """
        said, counted = self._recent.take(sample_id)
        self.telemetry.label(counted, is_hit=said == class_index)
        return said == class_index

    def status(self) -> DeviceStatus:
        """Return how the device is doing."""
        slots, totals, manifest = self._state.slots(), self.telemetry.totals(), self._manifest()
        return DeviceStatus(
            device=self._device,
            device_class=self._settings.device_class,
            model_digest=self._model_digest(),
            phase=str(slots.phase),
            serving=slots.serving,
            fallback=fallback_of(slots),
            refused_version=slots.refused_version,
            generation=manifest.generation if manifest else 0,
            is_running=True,
            is_connected=self.is_connected,
            samples=totals.samples,
            failures=totals.failures,
            spooled_reports=self._reporter.waiting,
            store_bytes=used_bytes(self._state),
            last_error=self._worker.last_error,
            rss_bytes=rss_bytes(),
            uptime_seconds=time.monotonic() - self._started_at,
        )

    @property
    def is_connected(self) -> bool:
        """Whether the update service answers."""
        return self._announcements is not None and self._announcements.is_connected

    def totals(self) -> Totals:
        """Return what was counted since the start."""
        return self.telemetry.totals()

    def roll_back(self) -> Result:
        """Go back to what served before; what is left is not taken again.

        Raises:
            IllegalTransitionError: If there is nothing to go back to.
            OverloadedError: If an update takes long; nothing was done.
            QuantFleetError: If it cannot be done; what serves stays.
        """
        return self._worker.roll_back()

    def _make_updater(self, test: IsolatedTest) -> Updater:
        settings = self._settings
        return Updater(
            self._state,
            self._link or NoService(),
            UpdateSettings(
                settings.device_class,
                settings.model_digest,
                settings.threads,
                settings.limits,
                settings.trial,
            ),
            is_metered=MeteredNetwork(settings.network),
            test=test,
            on_input=self._keeper.offer,
            on_run=self.telemetry.record,
            on_serve=self._serve,
        )

    def _check_model(self) -> None:
        if self._link is not None and not self._model_digest():
            raise ConfigurationError(
                "this device has no model, so it must be told which one to ask for; give --model-digest, or "
                "set `model_digest` in the table [device] of its settings, client.toml in the state folder or --config"
            )

    def _on_attempt(self, attempt: InstallAttempt) -> None:
        self._reporter.soon()
        self._tell(attempt)

    def _serve(self, manifest: Manifest, target: Target) -> None:
        self.telemetry.serve(manifest, target)
        self._keeper.open(manifest)

    def _manifest(self) -> Manifest | None:
        runtime = self.updater.runtime
        return None if runtime is None else runtime.manifest

    def _model_digest(self) -> str:
        manifest = self._manifest()
        return self._settings.model_digest if manifest is None else manifest.model_digest

    def _serving(self) -> Target | None:
        return self._state.slots().serving

    def _watch(self) -> None:
        """Hand announcements to the worker, for ever."""
        if self._settings.is_quiet:
            lower_priority()
        link, pace = self._link, self._settings.pace
        backoff = Backoff(pace.first_backoff_seconds, pace.longest_backoff_seconds, self._rng)
        while link is not None and not self._is_closed.is_set():
            try:
                watch = link.watch(self._settings.device_class, self._model_digest(), self._serving)
                self._announcements = watch
                try:
                    if not self._is_closed.is_set():
                        for offer in watch:
                            backoff.reset()
                            _events.info("target_announced", version=offer.target.version)
                            self._worker.announce(offer)
                finally:
                    watch.cancel()  # the link remembers it until then
            except QuantFleetError as error:
                _events.warning("watch_failed", error=str(error))
            except Exception:  # noqa: BLE001  # a device must hear of its targets
                _events.exception("watch_failed")
            self._is_closed.wait(backoff.next_seconds())
