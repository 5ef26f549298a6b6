"""A fleet's result on a terminal."""

from rich.console import Console
from rich.text import Text

from simulation.local_fleet_result import LocalFleetResult, QueryResult, RolloutResult
from simulation.summary import format_percent
from simulation.terminal import print_table


def print_fleet(result: LocalFleetResult, console: Console) -> None:
    """Print accuracies, rollouts, what Prometheus and the server say, and the sentence that sums it up."""
    print_table(("the fleet", "right answers"), accuracy_rows(result), console)
    print_table(ROLLOUT_HEADS, [rollout_row(one) for one in result.rollouts], console)
    if result.queries:
        rows = [row for query in result.queries for row in query_rows(query)]
        print_table(("Prometheus was asked", "value", "of"), rows, console)
    for command, said in (("status", result.status), ("rollout list", result.history)):
        console.print(Text(f"$ quantfleet-server {command}", style="bold"))
        console.print(Text(said.rstrip()), soft_wrap=True)
        console.print()
    console.print(Text(sentence(result), style="bold"), soft_wrap=True)


ROLLOUT_HEADS = ("version", "what", "phases", "devices", "open", "ended because")


def accuracy_rows(result: LocalFleetResult) -> list[tuple[str, str]]:
    """Return the accuracies, in the order in which they were measured."""
    accuracies = result.accuracies
    return [
        ("in the lab's world", format_percent(accuracies.lab)),
        (f"in the field ({result.drift})", format_percent(accuracies.drifted)),
        ("tuned", format_percent(accuracies.tuned)),
        (f"while a bad generation was out ({result.bad}), at least", format_percent(accuracies.least)),
        ("after it was taken back", format_percent(accuracies.after)),
    ]


def rollout_row(rollout: RolloutResult) -> tuple[str, ...]:
    """Return a rollout as a row under `ROLLOUT_HEADS`."""
    phases = ", ".join(f"{phase.replace('_', ' ')} {seconds:.0f} s" for phase, seconds in rollout.phases)
    return (
        str(rollout.version),
        rollout.what,
        phases,
        str(rollout.devices),
        f"{rollout.seconds:.0f} s",
        rollout.reason,
    )


def query_rows(query: QueryResult) -> list[tuple[str, str, str]]:
    """Return a row for each series that Prometheus found."""
    if not query.series:
        return [(query.expression, "none", "")]
    rows = []
    for place, (labels, value) in enumerate(query.series):
        shown = {k: v for k, v in labels.items() if k not in ("__name__", "instance")}
        words = ", ".join(f"{name}={value}" for name, value in sorted(shown.items()))
        rows.append(
            ("" if place else query.expression, f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}", words)
        )
    return rows


def sentence(result: LocalFleetResult) -> str:
    """Return what was shown, as one sentence."""
    accuracies, bad = result.accuracies, result.rollouts[-1]
    ended = bad.phases[-1][0].replace("_", " ")
    return (
        f"{result.agents} devices: tuning took the fleet from {format_percent(accuracies.drifted)} to "
        f"{format_percent(accuracies.tuned)}; the bad generation was {ended} after {bad.seconds:.0f} s with "
        f"{bad.devices} devices reached; {result.asked:,} inputs, {result.unanswered:,} unanswered."
    )
