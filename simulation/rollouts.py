"""Rollouts on fleets that are nothing but counts: how often a good version is taken back, and a bad one is not.

Devices differ in how accurate and fast the model is on what they see, in how much they were counted before, and in when
they install and report. Versions are stored, compared and decided upon by the server's own rules; only the counts
are drawn.
"""

import heapq
from dataclasses import dataclass

import numpy as np

from quantization.arrays import AnyArray
from quantization.side_by_side import LATENCY_BUCKETS
from server.rollout import ABORTS, Event, Phase, Rollout, RolloutPlan, advance, plan_for, position
from server.rollout_rules import Evidence, Situation, decide
from server.rollout_settings import DEFAULT_RULES, RolloutRules
from server.rollout_units import Expectation, Marks, marks_of, unit_of
from server.telemetry_counts import TelemetryCounts

_POSITIONS = 1 << 64


@dataclass(frozen=True, slots=True)
class FieldSettings:
    """What the devices are like.

    Attributes:
        devices: Devices of the class.
        accuracy: Mean part of inputs that the base version gets right.
        accuracy_spread: Standard deviation of that over devices.
        inputs_before: Mean number of inputs that a device counted before the rollout; exponentially distributed.
        labelled_part: Part of devices with labels.
        hours_to_unit: Mean hours from installing to a complete unit; exponentially distributed over devices.
        failure_rate: Mean part of inputs that are not answered.
        latency_spread: Standard deviation of a device's typical latency, in octaves.
    """

    devices: int = 1500
    accuracy: float = 0.9
    accuracy_spread: float = 0.06
    inputs_before: float = 400.0
    labelled_part: float = 1.0
    hours_to_unit: float = 3.0
    failure_rate: float = 0.001
    latency_spread: float = 0.3


@dataclass(frozen=True, slots=True)
class Change:
    """What the new version does otherwise than the base version.

    Attributes:
        drop: Part of inputs that it gets wrong in addition.
        octaves: How much slower it is, as log2.
        does_load: Whether it can be loaded.
    """

    drop: float = 0.0
    octaves: float = 0.0
    does_load: bool = True


@dataclass(frozen=True, slots=True)
class RolloutOutcome:
    """How a rollout ended.

    Attributes:
        rollout: As it ended.
        event: The last event.
        canary_units: Devices with the new version that had brought a unit by then.
        exposed: Devices that should have had the new version before it was decided.
        hours: How long it took.
    """

    rollout: Rollout
    event: Event
    canary_units: int
    exposed: int
    hours: float

    @property
    def is_taken_back(self) -> bool:
        """Whether telemetry rolled it back."""
        return self.rollout.phase is Phase.ROLLED_BACK

    @property
    def is_complete(self) -> bool:
        """Whether it reached all devices."""
        return self.rollout.phase is Phase.COMPLETE


def simulate_rollout(
    seed: int,
    change: Change,
    field: FieldSettings,
    plan: RolloutPlan,
    rules: RolloutRules = DEFAULT_RULES,
) -> RolloutOutcome:
    """Return how one rollout ends; a look is taken after every device's unit.

    Args:
        seed: Of everything that is drawn.
        change: What the new version does otherwise.
        field: What the devices are like.
        plan: By which steps.
        rules: How much evidence moves it.
    """
    fleet = _Fleet(seed, change, field, rules)
    plan = plan_for(fleet.name, fleet.names, plan=plan)
    rollout = Rollout(fleet.name, "", "", 1, 0, "new", "base", plan)
    run = _Run(fleet, rollout, Evidence.none(rules))
    run.wait_for(is_canary=False, low=plan.shares[-1], high=1.0)
    run.wait_for(is_canary=True, low=0.0, high=plan.shares[0])
    while run.rollout.is_open and run.rollout.phase is not Phase.PAUSED:
        run.step()
    return run.outcome()


class _Run:
    """The events of one rollout in order of time."""

    def __init__(self, fleet: "_Fleet", rollout: Rollout, evidence: Evidence) -> None:
        self.fleet, self.rollout, self.evidence = fleet, rollout, evidence
        self.canaries, self.others = Marks(), Marks()
        self.queue: list[tuple[float, int, bool]] = []
        self.now = 0.0
        self.event = Event.STALLED
        self.share = rollout.share

    def wait_for(self, *, is_canary: bool, low: float, high: float) -> None:
        """Put the units of devices in a part of the hash's range into the queue."""
        at = self.now + self.fleet.delays
        for device in np.flatnonzero((self.fleet.positions >= low) & (self.fleet.positions < high)):
            heapq.heappush(self.queue, (float(at[device]), int(device), is_canary))

    def step(self) -> None:
        """Take the next unit, or let the time pass until something must happen, and look."""
        rules, rollout = self.fleet.rules, self.rollout
        limit = rules.stall_seconds if rollout.is_last_step else rules.step_seconds
        deadline = rollout.step_at_seconds + limit
        if self.now >= deadline:
            deadline = rollout.step_at_seconds + rules.stall_seconds
        if self.queue and self.queue[0][0] <= deadline:
            self.now, device, is_canary = heapq.heappop(self.queue)
            self._observe(device, is_canary=is_canary)
        else:
            self.now = deadline
        situation = Situation(self.evidence, self.canaries, self.others)
        decision = decide(rollout, situation, now_seconds=self.now, rules=rules)
        if decision.event is not None:
            self._advance(decision.event, decision.reason)

    def _observe(self, device: int, *, is_canary: bool) -> None:
        expectation = self.fleet.expectation(device)
        counts = self.fleet.counts(device, is_canary=is_canary)
        marks = marks_of(counts, expectation, self.fleet.rules)
        if is_canary:
            self.canaries += marks
        else:
            self.others += marks
        if counts.samples:
            step = self.rollout.step
            unit = unit_of(counts, expectation, is_canary=is_canary, step=step, rules=self.fleet.rules)
            self.evidence = self.evidence.observe(unit, self.rollout.plan, self.fleet.rules)

    def _advance(self, event: Event, reason: str) -> None:
        before = self.rollout
        version = 2 if event in ABORTS else None
        self.rollout = advance(
            before, event, now_seconds=self.now, reason=reason, rolled_back_version=version
        )
        self.event = event
        if self.rollout.phase is Phase.EXPANDING:
            self.share = self.rollout.share
            self.wait_for(is_canary=True, low=before.share, high=self.share)

    def outcome(self) -> RolloutOutcome:
        """Return how it ended."""
        units = self.evidence.canary_units
        exposed = int((self.fleet.positions < self.share).sum())
        return RolloutOutcome(self.rollout, self.event, units, exposed, self.now / 3600)


class _Fleet:
    """What every device would count under either version, all drawn at once."""

    def __init__(self, seed: int, change: Change, field: FieldSettings, rules: RolloutRules) -> None:
        rng = np.random.default_rng(seed)
        n, size = field.devices, rules.unit_samples
        self.rules, self.change = rules, change
        self.name = f"simulated-{seed}"
        self.names = [f"device-{k}" for k in range(n)]
        self.positions = np.array([position(self.name, name) for name in self.names]) / _POSITIONS
        self.delays = rng.exponential(field.hours_to_unit * 3600, n)
        accuracy = np.clip(rng.normal(field.accuracy, field.accuracy_spread, n), 0.3, 0.995)
        half_octaves = rng.normal(28, 2 * field.latency_spread, n)
        self.labelled = rng.random(n) < field.labelled_part
        self.before = rng.exponential(field.inputs_before, n).astype(np.int64)
        self.right_before = rng.binomial(self.before, accuracy)
        self.slow_before = _latencies(rng, self.before, half_octaves)
        self.size = size
        worse = np.clip(accuracy - change.drop, 0.0, 1.0)
        self.right = {False: rng.binomial(size, accuracy), True: rng.binomial(size, worse)}
        sizes = np.full(n, size)
        self.slow = {
            False: _latencies(rng, sizes, half_octaves),
            True: _latencies(rng, sizes, half_octaves + 2 * change.octaves),
        }
        self.failures = rng.poisson(field.failure_rate * size, n)
        self.memory = (rng.normal(90, 2, (2, n)) * 2**20).astype(np.int64)
        total = int(self.before.sum())
        right = int(self.right_before.sum())
        failed = round(total * field.failure_rate)
        latency = tuple(self.slow_before.sum(axis=0).tolist())
        self.merged = TelemetryCounts(total, total, right, total, right, failed, 0, latency, 90 << 20)

    def expectation(self, device: int) -> Expectation:
        """Return what is expected of a device."""
        number, right = int(self.before[device]), int(self.right_before[device])
        labelled, hits = (number, right) if self.labelled[device] else (0, 0)
        latency = tuple(self.slow_before[device].tolist())
        memory = int(self.memory[0, device])
        counts = TelemetryCounts(number, labelled, hits, number, right, 0, 0, latency, memory)
        return Expectation(counts, self.merged)

    def counts(self, device: int, *, is_canary: bool) -> TelemetryCounts:
        """Return what a device counts until its unit is complete."""
        if is_canary and not self.change.does_load:
            return TelemetryCounts(load_failures=1)
        right, failures = int(self.right[is_canary][device]), int(self.failures[device])
        labelled, hits = (self.size, right) if self.labelled[device] else (0, 0)
        latency = tuple(self.slow[is_canary][device].tolist())
        memory = int(self.memory[1, device])
        return TelemetryCounts(self.size, labelled, hits, self.size, right, failures, 0, latency, memory)


def _latencies(rng: np.random.Generator, counts: AnyArray, half_octaves: AnyArray) -> AnyArray:
    """Return histograms of latencies around the given half octaves above 1 us, int64 (devices, buckets)."""
    edges = np.arange(LATENCY_BUCKETS + 1)
    below = 1 / (1 + np.exp(-(edges[None, :] - half_octaves[:, None]) / 0.6))
    parts = np.diff(below, axis=1)
    return np.asarray(rng.multinomial(counts, parts / parts.sum(axis=1, keepdims=True)), np.int64)
