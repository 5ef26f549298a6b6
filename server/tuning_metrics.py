"""Metrics of tuning, as the registry shows it; kinds of rounds and states of runs are few fixed words."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from server.tuning_readings import TuningReading


def tuning_metrics(tuning: TuningReading) -> Iterator[Metric]:
    """Yield the metrics of rounds, of drift as telemetry shows it, and of tuners."""
    yield from _rounds(tuning)
    drop = GaugeMetricFamily(
        "quantfleet_field_drop_ratio",
        "Accuracy or agreement that devices have surely lost under their version.",
        labels=("device_class",),
    )
    drifting = GaugeMetricFamily(
        "quantfleet_drifting", "Whether that is enough for a tuner to act.", labels=("device_class",)
    )
    for name, drift in tuning.drifts:
        drifting.add_metric([name], drift.is_drifting)
        if drift.drop_ratio is not None:
            drop.add_metric([name], drift.drop_ratio)
    runs = CounterMetricFamily(
        "quantfleet_tuning_runs", "Runs of tuners that ended, by how.", labels=("state",)
    )
    for state, count in tuning.runs:
        runs.add_metric([state], count)
    yield from (drop, drifting, runs)
    if tuning.tuners is not None:
        yield GaugeMetricFamily("quantfleet_tuners", "Models that a tuner looks after.", value=tuning.tuners)


def _rounds(tuning: TuningReading) -> Iterator[Metric]:
    rounds = _by_round("rounds", "Rounds that ended.")
    asked = _by_round("round_asked", "Devices that were asked, each in every round.")
    dropouts = _by_round("round_dropouts", "Of those, devices whose reply did not count.")
    size_bytes = _by_round("statistics_bytes", "Content of all replies that were folded.")
    devices = GaugeMetricFamily(
        "quantfleet_round_devices", "Devices that the last round of this kind asked.", labels=("round",)
    )
    for one in tuning.rounds:
        rounds.add_metric([one.name], one.rounds)
        asked.add_metric([one.name], one.asked)
        dropouts.add_metric([one.name], one.asked - one.replied)
        size_bytes.add_metric([one.name], one.reply_bytes)
        devices.add_metric([one.name], one.last_asked)
    yield from (rounds, asked, dropouts, size_bytes, devices)


def _by_round(name: str, text: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"quantfleet_{name}", text, labels=("round",))
