"""Brings a device from the artifact that it runs to the one that it should run, and back if that is worse.

    check -> fetch what is missing -> stage -> test -> swap -> trial -> confirm or revert

The rules:

1. What the device will find after a restart is written before it happens (`client.slots`), so that whatever dies, and
   whenever, a working model serves: the old one until the new one is proved to load and to compute what it must.
2. Whatever fails leaves what serves as it was. What may be better the next time (network, disk) raises, and `update` is
   called again; what may not (an artifact that fails its test or its trial) is refused for good.
3. Nothing here waits or repeats: whoever calls `update` and `watch` decides when.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from client.fetching import fetch_artifact, fetch_blobs
from client.garbage import Limits, collect, make_room
from client.partial import PARTIAL, PartialBlobs
from client.runtime import InputHook, RunHook, Runtime
from client.self_testing import IsolatedTest, run_isolated
from client.serving import ServeHook, Serving
from client.slots import MAX_ATTEMPTS, Event, Phase, Slots, Target
from client.state import StateFolder
from client.transport import Transport
from client.trial import TrialRules, Verdict
from client.update_result import Outcome, Result
from quantization.artifact import Manifest, update_size_bytes
from quantization.errors import (
    ConfigurationError,
    DigestMismatchError,
    MalformedError,
    NotFoundError,
    OverloadedError,
    QuantFleetError,
    UnreachableError,
    UpdateRejectedError,
)
from quantization.manifest import MAX_MANIFEST_BYTES


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """How a device takes updates.

    Attributes:
        device_class: Name of its class.
        model_digest: SHA-256 of the model that a device asks for while it has none, hex; empty for whatever there is.
        threads: Of one inference.
        limits: What updates may cost.
        trial: When a trial ends.
    """

    device_class: str
    model_digest: str = ""
    threads: int = 1
    limits: Limits = field(default_factory=Limits)
    trial: TrialRules = field(default_factory=TrialRules)


def _never_metered() -> bool:
    return False


def _ignore(*_: object) -> None:
    pass


class Updater:
    """Keeps one device's artifact what it should be; for one thread, beside any number that infer.

    Attributes:
        taking: The target that the last `update` began to take; None where it did not come so far.
    """

    def __init__(
        self,
        state: StateFolder,
        transport: Transport,
        settings: UpdateSettings,
        *,
        is_metered: Callable[[], bool] = _never_metered,
        test: IsolatedTest = run_isolated,
        clock: Callable[[], float] = time.monotonic,
        on_input: InputHook | None = None,
        on_run: RunHook = _ignore,
        on_serve: ServeHook = _ignore,
    ) -> None:
        """Load what the slots say; a trial that was interrupted begins again.

        Args:
            state: Of which this process is the owner.
            transport: Brings targets and blobs.
            settings: How to take updates.
            is_metered: Whether the network is paid by the byte now.
            test: Tries an artifact before it is loaded here.
            clock: In seconds, which never goes back.
            on_input: Is handed what is inferred.
            on_run: Is told how it went.
            on_serve: Is told what may serve.
        """
        self._state, self._transport, self._settings = state, transport, settings
        self._is_metered, self._test = is_metered, test
        self.taking: Target | None = None
        self._serving = Serving(
            state.read_blob,
            settings.threads,
            clock=clock,
            on_input=on_input,
            on_run=on_run,
            on_serve=on_serve,
        )
        self._partial = PartialBlobs(state.path / PARTIAL, state.disk)
        self._start()

    @property
    def runtime(self) -> Runtime | None:
        """What serves; None before the first artifact."""
        return self._serving.runtime

    def update(self) -> Result:
        """Ask what should run, and bring it to where it serves on trial.

        Raises:
            UnreachableError: If the service cannot be reached; what came is kept.
            OverloadedError: If there was too little memory for the test, or somebody ended it; the next time it is done
                again.
            DigestMismatchError: If what came is damaged; it is fetched anew the next time.
            MalformedError: If what came is not what was asked for.
            ConfigurationError: If the state folder cannot be written.
            UpdateRejectedError: If the artifact is for other devices, or needs more disk than there is.
        """
        self.taking = None
        slots = self._state.slots()
        if slots.phase is Phase.TESTING:  # what came of a test could not be written down: it is staged anew
            slots = self._state.advance(Event.CANDIDATE_LOST)
        self._repair(slots)
        model_digest = self.runtime.manifest.model_digest if self.runtime else self._settings.model_digest
        offer = self._transport.check(self._settings.device_class, model_digest, slots.serving)
        if offer is not None and slots.wants(offer.target):
            return self._take(offer.target)
        if slots.phase is Phase.STAGED:
            return self._try()
        wait = 0.0 if offer is None else offer.retry_after_seconds
        return Result(Outcome.UNCHANGED, slots.serving, retry_after_seconds=wait)

    def watch(self) -> Result | None:
        """Return what became of the artifact on trial; None while the trial goes on, and without one.

        Raises:
            ConfigurationError: If the state folder cannot be written.
        """
        slots = self._state.slots()
        if slots.phase is not Phase.TRIAL:
            return None
        verdict, reason = Verdict.FAILED, "it was left before"
        if self.runtime is not None and self.runtime.manifest.digest() == _digest(slots.candidate):
            verdict, reason = self._serving.judge(self._settings.trial)
        if verdict is Verdict.CONTINUES:
            return None
        is_kept = verdict is Verdict.PASSED
        self._end_trial(Event.TRIAL_PASSED if is_kept else Event.TRIAL_FAILED)
        return Result(Outcome.CONFIRMED if is_kept else Outcome.REVERTED, slots.candidate, reason)

    def roll_back(self) -> Result:
        """Go back to what served before, as the device's owner wants it.

        Raises:
            IllegalTransitionError: If there is nothing to go back to.
            UpdateRejectedError: If it does not load any more; what serves stays.
            ConfigurationError: If the state folder cannot be written.
        """
        slots = self._state.slots()
        if slots.phase is Phase.TRIAL:
            self._end_trial(Event.TRIAL_FAILED)
        else:
            after = slots.advance(Event.ROLLED_BACK)
            self._serving.start(self._held_manifest(after.active), after.active)
            self._state.write_slots(after)
        return Result(Outcome.REVERTED, slots.serving, "rolled back by hand")

    def close(self) -> None:
        """Wait for what is being loaded."""
        self._serving.close()

    # How it starts.

    def _start(self) -> None:
        slots = self._readable_slots()
        is_written = True
        if slots.after_restart() != slots:
            try:
                slots = self._state.write_slots(slots.after_restart())
            except ConfigurationError:  # what was on trial is not tried where that cannot be written
                is_written = False
        for target in (slots.active, slots.fallback):
            if target is not None and self._loads(target):
                break
        if slots.phase is Phase.TRIAL and is_written:
            self._resume_trial(slots)

    def _readable_slots(self) -> Slots:
        """Return the slots; if they are damaged, those of a device that has nothing, which fetches again."""
        try:
            return self._state.slots()
        except MalformedError:
            return self._state.write_slots(Slots())

    def _loads(self, target: Target) -> bool:
        """Return whether a target serves now; what is damaged is fetched by the next update."""
        try:
            self._serving.start(self._held_manifest(target), target)
        except (NotFoundError, MalformedError, UpdateRejectedError):
            return False
        return True

    def _resume_trial(self, slots: Slots) -> None:
        try:
            self._serving.start(self._held_manifest(slots.candidate), slots.candidate, is_trial=True)
        except (NotFoundError, DigestMismatchError):
            self._state.advance(Event.CANDIDATE_LOST)
        except (MalformedError, UpdateRejectedError):
            self._state.advance(Event.TRIAL_FAILED)

    def _repair(self, slots: Slots) -> None:
        """Fetch again what is damaged or lost of the artifact that should serve, if that can be had on this network."""
        target = slots.active
        if target is None or slots.phase is Phase.TRIAL:
            return
        with contextlib.suppress(UnreachableError, NotFoundError, MalformedError, UpdateRejectedError):
            if not self._may_fetch_manifest(target):
                return
            manifest = self._fetched_manifest(target)
            if not self._may_fetch(manifest):
                return
            fetch_artifact(self._transport, self._state, self._partial, manifest)
            if self.runtime is None or self.runtime.manifest != manifest:
                self._serving.start(manifest, target)

    # How it takes a target.

    def _take(self, target: Target) -> Result:
        """Fetch a target, and try it; what is on trial is withdrawn by that."""
        self.taking = target
        withdrawn = self._state.slots()
        if withdrawn.phase is Phase.TRIAL:
            self._end_trial(Event.TRIAL_FAILED)
        if not self._may_fetch_manifest(target):
            return Result(Outcome.DEFERRED, target, "nothing is fetched over a metered network")
        manifest = self._fetched_manifest(target)
        if manifest.device_class != self._settings.device_class:
            raise UpdateRejectedError(
                f"an artifact for {manifest.device_class!r} came to a device of {self._settings.device_class!r}"
            )
        slots = self._state.slots()
        if slots.active is not None and slots.active.manifest_digest == target.manifest_digest:
            if slots.candidate is not None:
                self._state.advance(Event.CANDIDATE_LOST)
            self._state.advance(Event.TARGET_UNCHANGED, target)
            self._serving.rename(manifest, target)
            if withdrawn.phase is Phase.TRIAL:
                return Result(Outcome.REVERTED, withdrawn.candidate, "withdrawn by the service")
            return Result(Outcome.UNCHANGED, target)
        if not self._may_fetch(manifest):
            size = self._size_bytes(manifest)
            return Result(Outcome.DEFERRED, target, f"{size} bytes over a metered network")
        self._partial.keep_only({target.manifest_digest, *manifest.blobs})
        fits_bundle = make_room(self._state, manifest, self._settings.limits)
        came = fetch_artifact(self._transport, self._state, self._partial, manifest, fits_bundle=fits_bundle)
        self._state.store_manifest(manifest)
        self._state.advance(Event.TARGET_STAGED, target)
        collect(self._state)
        return self._try(came)

    def _fetched_manifest(self, target: Target) -> Manifest:
        """Return a target's manifest, which is fetched if it is not held."""
        wanted = {target.manifest_digest: MAX_MANIFEST_BYTES}
        fetch_blobs(self._transport, self._state, self._partial, wanted, are_exact=False)
        return self._held_manifest(target)

    def _size_bytes(self, manifest: Manifest) -> int:
        """Return what is to be fetched for an artifact, at most."""
        return update_size_bytes(manifest, self._state.digests())

    def _may_fetch(self, manifest: Manifest) -> bool:
        """Return whether what is missing of an artifact may be fetched over the network as it is now."""
        size = self._size_bytes(manifest)
        return not size or self._settings.limits.may_fetch(size, is_metered=self._is_metered())

    def _may_fetch_manifest(self, target: Target) -> bool:
        """Return whether a target's manifest is held, or may be fetched; it takes a few KB, and says the rest."""
        is_held = self._state.has_blob(target.manifest_digest)
        return is_held or self._settings.limits.may_fetch(1, is_metered=self._is_metered())

    def _held_manifest(self, target: Target | None) -> Manifest:
        manifest = self._state.read_manifest(target) if target is not None else None
        if manifest is None:
            raise NotFoundError("there is no such artifact on this device")
        return manifest

    def _try(self, fetched_bytes: int = 0) -> Result:
        """Test what is staged, and let it serve."""
        slots = self._state.advance(Event.TEST_STARTED)
        target = slots.candidate
        try:
            manifest = self._held_manifest(target)
            self._test(self._state.path, manifest.digest())
            self._serving.start(manifest, target, is_trial=slots.active is not None)
        except (NotFoundError, DigestMismatchError):
            self._state.advance(Event.CANDIDATE_LOST)
            raise
        except OverloadedError as error:  # as if this process had ended: it is tried again, so many times
            after = self._state.write_slots(self._state.slots().after_restart())
            if after.phase is Phase.STAGED:
                raise
            return Result(Outcome.REFUSED, target, f"{error}, {MAX_ATTEMPTS} times in a row", fetched_bytes)
        except (MalformedError, UpdateRejectedError) as error:
            self._state.advance(Event.TEST_FAILED)
            return Result(Outcome.REFUSED, target, str(error), fetched_bytes)
        try:
            phase = self._state.advance(Event.TEST_PASSED).phase
        except QuantFleetError:
            self._serving.leave()
            raise
        outcome = Outcome.ON_TRIAL if phase is Phase.TRIAL else Outcome.INSTALLED
        return Result(outcome, target, fetched_bytes=fetched_bytes)

    def _end_trial(self, event: Event) -> None:
        """Keep or leave what is on trial; it is left at once, whatever becomes of the state folder."""
        if event is Event.TRIAL_PASSED:
            self._state.advance(event)
            self._serving.keep()
            collect(self._state)
        else:
            self._serving.leave()
            self._state.advance(event)


def _digest(target: Target | None) -> str:
    return "" if target is None else target.manifest_digest
