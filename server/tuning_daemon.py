"""The tuner: decides when a generation is due, has Flower run it, and hands what was published to the update service.

The rules:

1. `look` is one step: it renews the lease, looks after the run that is open, publishes what waits, and starts what is
   due (`server.tuning_triggers`). Everything that it knows is in the registry, so a tuner that is killed anywhere is
   followed by another that goes on.
2. A run's row is there before Flower is asked, and its ServerApp reports to it (`server.tuning_runs`). What the
   SuperLink says settles the rest: a run that it does not know was lost with it.
3. A SuperLink that does not answer is asked again, ever less often; no run is given up for that alone.
4. A run that was lost, failed or took too long is followed by another: the registry resumes the generation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import structlog

from quantization.errors import IllegalTransitionError, NotFoundError, QuantFleetError, UnreachableError
from server.flower_runs import Outcome, RunSight
from server.settings import ConfigValue, ServerSettings
from server.tuner_settings import TunerSettings
from server.tuning_registry import GenerationOutline
from server.tuning_runs import RunEvent, RunState, TuningRun
from server.tuning_situation import Facts, situation, waiting_generation, watch_drift
from server.tuning_triggers import Hold, Start, decide

log = structlog.get_logger()

_MOST_SILENCE_SECONDS = 60.0
_PUBLISH_AGAIN_SECONDS = 60.0
_HELLOS = 5

PublishFunction = Callable[[GenerationOutline, str], None]
"""Signs a generation's content and opens its rollout; the text says why. Raises QuantFleetError if it cannot."""


class Runs(Protocol):
    """Runs on a SuperLink; see `server.flower_runs.FlowerRuns` for what each raises."""

    def check(self) -> None:
        """Return if the SuperLink answers."""
        ...

    def start(self, run_config: Mapping[str, ConfigValue]) -> str:
        """Return Flower's id of a new run."""
        ...

    def look(self, run_id: str) -> RunSight:
        """Return where a run stands."""
        ...

    def stop(self, run_id: str) -> None:
        """Have a run stopped, if it is at work."""
        ...


@dataclass(frozen=True, slots=True)
class Looked:
    """What a look found.

    Attributes:
        is_ours: Whether this tuner looks after the model; another one does, if not.
        run: The newest run; None before the first.
        hold: Why nothing started; empty if something did.
    """

    is_ours: bool
    run: TuningRun | None = None
    hold: str = ""


class Tuner:
    """Looks after one model."""

    def __init__(
        self,
        facts: Facts,
        runs: Runs,
        settings: TunerSettings,
        *,
        places: Mapping[str, ConfigValue],
        holder: str,
        publish: PublishFunction | None = None,
    ) -> None:
        """Look after the model that the settings name.

        Args:
            facts: The registry.
            runs: Starts runs.
            settings: What to do when.
            places: Keys of the run configuration that say where the registry and the blobs are.
            holder: Name of this tuner, that no other one has.
            publish: Publishes a generation; None where this machine has no keys for that.

        Raises:
            ConfigurationError: The run configuration cannot be used.
        """
        self._facts = facts
        self._runs = runs
        self._settings = settings
        self._places = places
        self.holder = holder
        self._publish = publish
        self._said: set[str] = set()
        self._next: dict[str, float] = {}
        self._silence_seconds = settings.pace.look_seconds
        ServerSettings.from_run_config(self._run_config(""))

    @property
    def model(self) -> str:
        """Name of the model that it looks after."""
        return self._settings.model

    def look(self) -> Looked:
        """Do what is due now; return what was found.

        Raises:
            QuantFleetError: The registry cannot be used.
        """
        name, tuning, pace = self._settings.model, self._facts.tuning, self._settings.pace
        if not tuning.lease(name, self.holder, pace.lease_seconds):
            self._say("another_tuner_is_at_work", holder=tuning.lease_holder(name))
            runs = tuning.runs(name, most=1)
            return Looked(False, runs[0] if runs else None, f"tuner {tuning.lease_holder(name)} is at work")
        open_run = next((run for run in tuning.runs(name, most=1) if run.is_open), None)
        if open_run is not None:
            self._look_after(open_run)
        if self._is_time("drift", pace.drift_seconds):
            watch_drift(self._facts, name, self._settings.drift)
        self.publish_waiting()
        return self._start_due()

    def publish_waiting(self) -> None:
        """Publish what waits for it, class by class; while a rollout of a class is open, its next one waits."""
        for one in situation(self._facts, self._settings.model).classes:
            if not one.open_rollout:
                self._publish_class(one.device_class)

    def close(self) -> None:
        """Give the lease back; a run at work goes on, and whoever comes next looks after it."""
        self._facts.tuning.release(self._settings.model, self.holder)

    def _look_after(self, run: TuningRun) -> None:
        """Close a run that has ended in whatever way, or took too long."""
        pace, age_seconds = self._settings.pace, self._facts.tuning.now() - run.started_at_seconds
        if age_seconds > pace.run_seconds:
            self._end(
                run, RunEvent.OVERDUE, f"at work for {age_seconds:.0f} s; {pace.run_seconds:g} s are allowed"
            )
        elif run.state is not RunState.RUNNING and age_seconds > pace.start_seconds:
            self._end(run, RunEvent.LOST, f"its ServerApp did not begin within {pace.start_seconds:g} s")
        elif run.run_id and self._is_time("flower", pace.flower_seconds):
            self._ask_flower(run)

    def _ask_flower(self, run: TuningRun) -> None:
        try:
            sight = self._runs.look(run.run_id)
        except UnreachableError as error:
            self._say("superlink_did_not_answer", reason=str(error))
            return
        except NotFoundError:
            self._end(run, RunEvent.LOST, "the SuperLink does not know the run: it was restarted")
            return
        self._forget("superlink_did_not_answer")
        if sight.outcome is Outcome.FAILED:
            self._end(run, RunEvent.FAILED, sight.details)
        elif sight.outcome is Outcome.COMPLETED and run.state is RunState.RUNNING:
            self._end(run, RunEvent.COMPLETED, sight.details)
        elif sight.outcome is Outcome.COMPLETED:
            self._end(
                run,
                RunEvent.FAILED,
                "it completed without a word in this registry: its ServerApp has another",
            )

    def _end(self, run: TuningRun, event: RunEvent, detail: str) -> None:
        """Close a run; its ServerApp, should it be at work, is told by Flower and finds out in the registry."""
        if event in (RunEvent.OVERDUE, RunEvent.LOST) and run.run_id:
            try:
                self._runs.stop(run.run_id)
            except UnreachableError as error:
                log.warning("run_not_stopped", run_id=run.run_id, reason=str(error))
        ended = self._move(run, event, detail=detail)
        if ended is not None:
            log.warning("run_ended", run_id=run.run_id, state=ended.state, detail=detail)

    def _move(
        self, run: TuningRun, event: RunEvent, *, run_id: str = "", detail: str = ""
    ) -> TuningRun | None:
        """Move a run on; None if its ServerApp has done so at this moment."""
        try:
            return self._facts.tuning.move(run, event, run_id=run_id, detail=detail)
        except IllegalTransitionError:
            return None

    def _publish_class(self, device_class: str) -> None:
        digest = self._facts.registry.model(self._settings.model).digest
        waiting = waiting_generation(self._facts, digest, device_class)
        if waiting is None:
            return
        manifest, number = waiting.manifest_digest, waiting.number
        if self._publish is None:
            if self._facts.rollouts.targets(digest, device_class):
                command = f"quantfleet-server publish {manifest}"
                self._say("generation_waits", about=manifest, generation=number, command=command)
            return
        if not self._is_time(f"publish {manifest}", _PUBLISH_AGAIN_SECONDS):
            return
        try:
            self._publish(waiting, f"generation {number}: {waiting.reason}"[:500])
        except QuantFleetError as error:
            subject = {"device_class": device_class, "generation": number}
            log.error("publication_failed", **subject, reason=str(error))  # noqa: TRY400  # one line, no trace
        else:
            log.info("generation_published", device_class=device_class, generation=number, manifest=manifest)

    def _start_due(self) -> Looked:
        seen = situation(self._facts, self._settings.model)
        decision = decide(seen, self._settings.triggers, self._facts.tuning.now())
        if isinstance(decision, Hold):
            return Looked(True, seen.last_run, decision.reason)
        if not self._is_superlink_there():
            return Looked(True, seen.last_run, "the SuperLink does not answer")
        return Looked(True, self._start(decision))

    def _is_superlink_there(self) -> bool:
        if not self._is_time("superlink", 0.0):
            return False
        try:
            self._runs.check()
        except UnreachableError as error:
            self._say("superlink_did_not_answer", reason=str(error))
            self._next["superlink"] = self._facts.tuning.now() + self._silence_seconds
            self._silence_seconds = min(2 * self._silence_seconds, _MOST_SILENCE_SECONDS)
            return False
        except QuantFleetError as error:
            log.error("superlink_refused", reason=str(error))  # noqa: TRY400  # one line, no trace
            self._next["superlink"] = self._facts.tuning.now() + _MOST_SILENCE_SECONDS
            return False
        self._forget("superlink_did_not_answer")
        self._silence_seconds = self._settings.pace.look_seconds
        return True

    def _start(self, due: Start) -> TuningRun:
        tuning = self._facts.tuning
        run = tuning.start_run(self._settings.model, due.cause, reason=due.reason, attempt=due.attempt)
        try:
            run_id = self._runs.start(self._run_config(run.key))
        except UnreachableError as error:
            return self._move(run, RunEvent.LOST, detail=str(error)) or tuning.run(run.key)
        except QuantFleetError as error:
            log.error("run_refused", reason=str(error))  # noqa: TRY400  # one line, no trace
            return self._move(run, RunEvent.FAILED, detail=str(error)) or tuning.run(run.key)
        log.info("run_started", run_id=run_id, cause=due.cause, reason=due.reason, attempt=due.attempt)
        self._next["flower"] = tuning.now() + self._settings.pace.flower_seconds
        return self._move(run, RunEvent.SUBMITTED, run_id=run_id) or tuning.run(run.key)

    def _run_config(self, key: str) -> dict[str, ConfigValue]:
        """Return the configuration of a run; unless they say otherwise, it waits for as many nodes as there were."""
        hellos = self._facts.tuning.rounds(self._settings.model, "hello", most=_HELLOS)
        return {
            "expected-nodes": max([1, *(replied for _, replied in hellos)]),
            "model-source": "",
            **self._places,
            **self._settings.run,
            "model-name": self._settings.model,
            "generations": 1,
            "tuning-run": key,
        }

    def _is_time(self, what: str, every_seconds: float) -> bool:
        """Return whether something that is done every so often is due, and note that it is done now."""
        now = self._facts.tuning.now()
        if now < self._next.get(what, 0.0):
            return False
        self._next[what] = now + every_seconds
        return True

    def _say(self, event: str, *, about: str = "", **detail: str | int) -> None:
        """Log what holds for a while once, until `_forget`; about each thing once."""
        if event + about not in self._said:
            self._said.add(event + about)
            log.warning(event, model=self._settings.model, **detail)

    def _forget(self, event: str) -> None:
        self._said.discard(event)
