"""How often is a good version taken back, how often does a bad one pass, and how many canaries does it take to know?

Each row is one kind of new version over many simulated rollouts on 1,500 devices, by the rules that the server uses. A
look is taken after every device, and false alarms of all looks count. Half of the rows have labels on every device,
half on one in ten (the others are judged by agreement with the float model). `--smoke` takes few rollouts; `--json`
prints one object; exits 1 where an equal version is taken back oftener than the rules state, or one two points worse
becomes complete in more than 5 % of its rollouts.

    python benchmarks/bench_rollout.py                # 200 rollouts a row, about 3 CPU minutes
    python benchmarks/bench_rollout.py --smoke        # 10 rollouts a row
"""

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass

import numpy as np

from server.rollout import RolloutPlan
from server.rollout_settings import DEFAULT_RULES
from simulation.rollouts import Change, FieldSettings, RolloutOutcome, simulate_rollout

MOST_MISSES = 0.05
EQUAL, TWO_POINTS = "equal", "2 points worse"
CHANGES = {
    EQUAL: Change(),
    "1 point better": Change(drop=-0.01),
    "1 point worse": Change(drop=0.01),
    TWO_POINTS: Change(drop=0.02),
    "5 points worse": Change(drop=0.05),
    "25 points worse": Change(drop=0.25),
    "destroyed": Change(drop=0.7),
    "20 % slower": Change(octaves=0.263),
    "10 times slower": Change(octaves=3.32),
    "does not load": Change(does_load=False),
}


@dataclass(frozen=True, slots=True)
class Row:
    """What became of the rollouts of one kind of version.

    Attributes:
        version: What kind.
        labelled_part: Part of devices with labels.
        taken_back: Part of the rollouts that telemetry took back.
        complete: Part that reached all devices.
        stalled: Part that waits for its operator.
        canaries: Canaries that had brought a unit when it was decided, median.
        canaries_95: Likewise, 95th percentile.
        samples: Inputs that these canaries answered, median.
        exposed_ratio: Part of the devices that should have had the version before it was decided, mean.
        hours: Until it was decided, median.
    """

    version: str
    labelled_part: float
    taken_back: float
    complete: float
    stalled: float
    canaries: float
    canaries_95: float
    samples: float
    exposed_ratio: float
    hours: float


def measure(version: str, labelled_part: float, rollouts: int, seed: int) -> Row:
    """Return what becomes of many rollouts of one kind of version."""
    field = FieldSettings(labelled_part=labelled_part)
    ended = [simulate_rollout(seed + k, CHANGES[version], field, RolloutPlan()) for k in range(rollouts)]

    def part(count: int) -> float:
        return count / rollouts

    def quantile(q: float) -> float:
        return float(np.quantile([outcome.canary_units for outcome in ended], q))

    return Row(
        version,
        labelled_part,
        taken_back=part(sum(outcome.is_taken_back for outcome in ended)),
        complete=part(sum(outcome.is_complete for outcome in ended)),
        stalled=part(sum(_is_stalled(outcome) for outcome in ended)),
        canaries=quantile(0.5),
        canaries_95=quantile(0.95),
        samples=quantile(0.5) * DEFAULT_RULES.unit_samples,
        exposed_ratio=float(np.mean([outcome.exposed for outcome in ended])) / field.devices,
        hours=float(np.median([outcome.hours for outcome in ended])),
    )


def misses_a_bar(row: Row) -> bool:
    """Return whether a row breaks what the rules promise."""
    if row.version == EQUAL:
        return row.taken_back > DEFAULT_RULES.false_alarm_rate
    return row.version == TWO_POINTS and row.complete > MOST_MISSES


def main() -> int:
    """Print a table; exit 1 where a rate is above its bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--seed", type=int, default=10_000)
    arguments = parser.parse_args()
    rollouts = 10 if arguments.smoke else 200
    parts = (1.0,) if arguments.smoke else (1.0, 0.1)
    rows = []
    if not arguments.json:
        print(f"{rollouts} rollouts a row, stated rate of false alarms {DEFAULT_RULES.false_alarm_rate:.1%}")
        print(
            "version          labels  taken back  complete  stalled  canaries (95 %)  samples  exposed  hours"
        )
    for labelled_part in parts:
        for version in CHANGES:
            row = measure(version, labelled_part, rollouts, arguments.seed)
            rows.append(row)
            if not arguments.json:
                print(
                    f"{version:16} {labelled_part:6.0%} {row.taken_back:11.1%} {row.complete:9.1%} {row.stalled:8.1%}"
                    f" {row.canaries:9.0f} ({row.canaries_95:3.0f}) {row.samples:8.0f} {row.exposed_ratio:8.1%}"
                    f" {row.hours:6.2f}",
                    flush=True,
                )
    if arguments.json:
        print(
            json.dumps(
                {"rollouts": rollouts, "load_average": os.getloadavg()[0], "rows": list(map(asdict, rows))}
            )
        )
    return 1 if not arguments.smoke and any(map(misses_a_bar, rows)) else 0


def _is_stalled(outcome: RolloutOutcome) -> bool:
    return not outcome.is_taken_back and not outcome.is_complete


if __name__ == "__main__":
    sys.exit(main())
