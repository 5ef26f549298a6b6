"""Whether what a fleet showed is what it should show."""

from math import sqrt

from server.rollout import Phase, Rollout
from simulation.fleet_timeline import Timeline
from simulation.local_fleet_result import Accuracies
from simulation.summary import format_percent

_SIGMAS = 3.5


def failures_of(
    accuracies: Accuracies,
    rollouts: tuple[Rollout, Rollout],
    timeline: Timeline,
    *,
    agents: int,
    answers: int,
) -> list[str]:
    """Return what was not as it should be, in words.

    Args:
        accuracies: Of the fleet.
        rollouts: The tuned one and the bad one, as they ended.
        timeline: What applications counted.
        agents: Devices.
        answers: Of how many answers the least accuracy is; what chance explains is no fall.
    """
    good, bad = rollouts
    failures = []
    if good.phase is not Phase.COMPLETE:
        failures.append(f"the tuned generation ended {good.phase}: {good.reason}")
    if accuracies.tuned <= accuracies.drifted:
        failures.append("tuning has not made the fleet better")
    if bad.phase is not Phase.ROLLED_BACK or bad.step != 0:
        failures.append(f"the bad generation ended {bad.phase} at step {bad.step + 1}")
    share = max(bad.plan.shares[0], len(timeline.devices_with(bad.version)) / agents)
    spread = sqrt((accuracies.tuned * (1 - accuracies.tuned) + 0.01) / max(answers, 1))
    if accuracies.least < accuracies.tuned - share - _SIGMAS * spread:
        failures.append(
            f"accuracy fell to {format_percent(accuracies.least)}, below the {format_percent(accuracies.tuned)} of the "
            f"version before by more than the canaries' {share:.0%}"
        )
    if timeline.unanswered:
        failures.append(f"{timeline.unanswered} inputs were not answered: {'; '.join(timeline.errors[:3])}")
    return failures
