"""The one thread that changes what a device serves: takes updates, watches trials, keeps samples.

The rules:

1. Whoever wants something of the updater asks this thread, and waits for its answer.
2. What fails is tried again, after waits that grow, for ever; nothing that happens here ends the thread.
3. A target is asked for when the server announces one, when what failed may be tried again, and once in a while in
   case an announcement was lost.
4. Announcements are hints: the more of them lead to nothing, the longer the pauses between the questions that they
   cause.
5. What fails in one way over and over is reported once for each target. That the server cannot be reached is not
   reported.
"""

import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, cast

from client.background import lower_priority
from client.backoff import Backoff
from client.events import event_log
from client.install_attempts import attempt_of, failed_attempt, outcome_label
from client.slots import Phase, Slots, Target
from client.telemetry import Telemetry
from client.transport import Offer
from client.update_result import Outcome, Result
from client.updater import Updater
from protos.quantfleet.v1.telemetry_pb2 import InstallAttempt
from quantization.errors import ConfigurationError, OverloadedError, QuantFleetError, UnreachableError

_events = event_log("update")

_PATIENCE_SECONDS = 20.0
_SHORT_TICK_SECONDS, _TICK_SECONDS = 0.2, 2.0  # with a trial to watch, and without


@dataclass(frozen=True, slots=True)
class UpdatePace:
    """When a device asks for its target.

    Attributes:
        check_seconds: Longest time without asking; each is drawn from half to one and a half of it.
        first_backoff_seconds: Longest wait after the first failure; it doubles with each in a row.
        longest_backoff_seconds: Longest wait after many.
        defer_seconds: Until an update that was too large for the network is tried again.
        longest_spread_seconds: Most that the server may have a device wait before it fetches.
    """

    check_seconds: float = 900.0
    first_backoff_seconds: float = 1.0
    longest_backoff_seconds: float = 300.0
    defer_seconds: float = 600.0
    longest_spread_seconds: float = 3600.0

    def __post_init__(self) -> None:
        """Refuse times that would make a device ask without a pause."""
        wrong = [name for name in self.__slots__ if not 0 < getattr(self, name) < float("inf")]
        if wrong:
            raise ConfigurationError(f"times between questions must be above 0 seconds: {', '.join(wrong)}")


@dataclass(frozen=True, slots=True)
class Chore:
    """Something else that is to be done once in a while.

    Attributes:
        name: For the log.
        every_seconds: How often.
        act: Does it.
    """

    name: str
    every_seconds: float
    act: Callable[[], object]


class UpdateWorker:
    """Runs an updater in a thread of its own.

    Attributes:
        last_error: What it last failed at, in words; empty while nothing fails.
        is_reachable: Whether the server answered the last question.
    """

    def __init__(
        self,
        updater: Updater,
        slots: Callable[[], Slots],
        telemetry: Telemetry,
        pace: UpdatePace,
        *,
        rng: random.Random,
        on_attempt: Callable[[InstallAttempt], object] = lambda _: None,
        chores: Sequence[Chore] = (),
        has_service: bool = True,
        is_quiet: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a worker, which begins with `start`.

        Args:
            updater: Which no other thread uses from then on.
            slots: Returns what is installed.
            telemetry: Is told of attempts.
            pace: When to ask.
            rng: Draws waits.
            on_attempt: Is told of attempts too.
            chores: What else this thread does.
            has_service: Whether there is anybody to ask for targets.
            is_quiet: Whether it gives way to other threads.
            clock: In seconds, which never goes back.
        """
        self.last_error, self.is_reachable = "", False
        self._updater, self._read_slots, self._telemetry, self._pace = updater, slots, telemetry, pace
        self._rng, self._on_attempt, self._is_quiet, self._clock = rng, on_attempt, is_quiet, clock
        self._backoff = Backoff(pace.first_backoff_seconds, pace.longest_backoff_seconds, rng)
        self._hints = Backoff(pace.first_backoff_seconds, pace.longest_backoff_seconds, rng)
        # A target that keeps failing, and the outcomes that were reported of it.
        self._reported: tuple[Target | None, set[int]] = None, set()
        self._asked: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._announced: Offer | None = None
        self._offered: Target | None = None
        self._was_announced = False  # what is asked next
        # Not before these: what announcements ask for, and the target that failed.
        self._asks_hints_at = self._rests_until = clock()
        self._has_service = has_service
        self._due_at = self._watch_at = clock()
        self._chores = {chore: clock() + chore.every_seconds for chore in chores}
        self._is_open = True
        self._lock = threading.Lock()  # of what other threads change
        self._thread = threading.Thread(target=self._run, name="quantfleet-update", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def announce(self, offer: Offer) -> None:
        """Take an announced target, when the server wants that; any thread may call this.

        Of several that are announced while the worker is busy the last one counts: a server cannot fill the memory.
        """
        with self._lock:
            is_waiting, self._announced = self._announced is not None, offer
        if not is_waiting:
            self._ask(self._take_announced)

    def roll_back(self, patience_seconds: float = _PATIENCE_SECONDS) -> Result:
        """Go back to what served before; any thread may call this, and waits.

        Args:
            patience_seconds: Longest wait for the worker, which may be fetching; then nothing is done.

        Raises:
            OverloadedError: It was busy for so long.
            QuantFleetError: What `Updater.roll_back` raises, or `UnreachableError` if the agent ends.
        """

        def act() -> Result:
            result = self._updater.roll_back()
            self._tell(attempt_of(result, 0.0), result.reason)
            return result

        asked, result = self._ask(act), None
        try:
            result = asked.result(patience_seconds)
        except TimeoutError as error:
            if asked.cancel():
                raise OverloadedError(
                    f"the agent was busy with an update for {patience_seconds:g} s, and nothing was done; try again",
                    patience_seconds,
                ) from error
            result = asked.result()  # it is at it
        return cast("Result", result)

    def close(self, timeout_seconds: float = 30.0) -> None:
        """Stop, once what goes on has ended."""
        with self._lock:
            self._is_open = False
        self._asked.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def _ask(self, act: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        with self._lock:  # what is put while it is open is answered before the thread ends
            if self._is_open:
                self._asked.put((act, future))
                return future
        future.set_exception(UnreachableError("the agent is ending"))
        return future

    # In the thread.

    def _run(self) -> None:
        if self._is_quiet:
            lower_priority()
        while self._is_open:
            self._answer()
            if self._clock() >= self._watch_at:
                self._guarded("trial", self._watch)
            if self._is_open and self._has_service and self._clock() >= self._due_at:
                self._guarded("update", self._update)
            for chore, due_at in self._chores.items():
                if self._clock() >= due_at:
                    self._chores[chore] = self._clock() + chore.every_seconds
                    self._guarded(chore.name, chore.act)
        while not self._asked.empty():
            asked = self._asked.get()
            if asked is not None and asked[1].set_running_or_notify_cancel():
                asked[1].set_exception(UnreachableError("the agent is ending"))

    def _answer(self) -> None:
        """Do what is asked, or wait for it until something else is due."""
        tick = _SHORT_TICK_SECONDS if self._slots().phase is Phase.TRIAL else _TICK_SECONDS
        wait = max(0.0, min(tick, self._due_at - self._clock())) if self._has_service else tick
        try:
            asked = self._asked.get(timeout=wait) if wait else self._asked.get_nowait()
        except queue.Empty:
            return
        if asked is None:
            return
        act, future = asked
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(act())
        except Exception as error:  # noqa: BLE001  # who asked is told
            future.set_exception(error)

    def _take_announced(self) -> None:
        with self._lock:
            offer, self._announced = self._announced, None
        if offer is None:
            return
        is_other = offer.target != self._offered
        self._offered, self._was_announced = offer.target, True
        wait = min(max(offer.fetch_after_seconds, 0.0), self._pace.longest_spread_seconds)
        due_at = max(self._clock() + wait, self._asks_hints_at, 0.0 if is_other else self._rests_until)
        self._due_at = min(self._due_at, due_at)

    def _watch(self) -> None:
        self._watch_at = self._clock() + _TICK_SECONDS  # where it raises
        result = self._updater.watch()
        self._watch_at = self._clock()
        if result is not None:
            self._tell(attempt_of(result, 0.0), result.reason)
            if result.outcome is Outcome.REVERTED:
                self._due_at = self._clock()

    def _update(self) -> None:
        """Ask for the target and take it; what fails is due again later."""
        began, was_announced = self._clock(), self._was_announced
        self._was_announced = False
        try:
            result = self._updater.update()
        except QuantFleetError as error:
            asked = _asked_pause(error)
            wait = self._backoff.next_seconds(asked)
            self._due_at = self._clock() + wait
            self._rests_until = self._due_at if asked else self._clock()
            self._space_hints(was_announced)
            self.is_reachable = not isinstance(error, UnreachableError)
            self.last_error = f"{type(error).__name__}: {error}"
            _events.warning("update_failed", error=self.last_error, again_in_seconds=round(wait, 3))
            self._tell_failure(error, self._clock() - began)
            return
        except BaseException:
            self._due_at = self._clock() + self._backoff.next_seconds()
            raise
        self._backoff.reset()
        self._space_hints(was_announced and result.outcome is Outcome.UNCHANGED)
        if result.outcome is not Outcome.UNCHANGED:
            self._hints.reset()
        self.last_error, self.is_reachable, self._offered = "", True, None
        usual = self._pace.check_seconds * self._rng.uniform(0.5, 1.5)
        if result.outcome is Outcome.DEFERRED:
            usual = self._pace.defer_seconds
        self._due_at = self._clock() + max(usual, result.retry_after_seconds)
        self._tell(attempt_of(result, self._clock() - began), result.reason)

    def _space_hints(self, led_to_nothing: bool) -> None:
        """Let the next announcement wait, if the one before led to nothing."""
        self._asks_hints_at = self._clock() + (self._hints.next_seconds() if led_to_nothing else 0.0)

    def _tell_failure(self, error: QuantFleetError, seconds: float) -> None:
        """Report an attempt that raised, once for each target and outcome: rule 5."""
        target = self._updater.taking
        if target is None and not isinstance(error, UnreachableError | OverloadedError):
            target = self._offered
        if target is None or not self._slots().wants(target):
            return
        attempt = failed_attempt(error, target, seconds)
        if self._reported[0] != target:
            self._reported = target, set()
        if attempt.outcome not in self._reported[1]:
            self._reported[1].add(attempt.outcome)
            self._tell(attempt)

    def _slots(self) -> Slots:
        try:
            return self._read_slots()
        except (QuantFleetError, OSError):  # damaged: whoever needs them says so
            return Slots()

    def _tell(self, attempt: InstallAttempt | None, reason: str = "") -> None:
        if attempt is None:
            return
        self._telemetry.install(attempt)
        self._on_attempt(attempt)
        _events.info(
            "install_attempt_ended",
            outcome=outcome_label(attempt),
            version=attempt.version,
            fetched_bytes=attempt.fetched_bytes,
            seconds=round(attempt.install_seconds, 3),
            reason=reason,
        )

    def _guarded(self, name: str, act: Callable[[], object]) -> None:
        try:
            act()
        except QuantFleetError as error:
            self.last_error = f"{type(error).__name__}: {error}"
            _events.warning("chore_failed", chore=name, error=self.last_error)
        except Exception as error:  # noqa: BLE001  # rule 2
            self.last_error = f"{type(error).__name__}: {error}"
            _events.exception("chore_failed", chore=name)


def _asked_pause(error: QuantFleetError) -> float:
    """Return after how many seconds what failed wants to be tried again; 0 where nobody said."""
    return error.retry_after_seconds if isinstance(error, UnreachableError | OverloadedError) else 0.0
