from typing import Any

from simulation.fleet_timeline import Timeline


def _record(at: float, **devices: tuple[int, int, int]) -> dict[str, Any]:
    """A record in which each device answered so many inputs, so many rightly, with a version."""
    return {
        "at_seconds": at,
        "devices": {
            name: {
                "asked": answered,
                "unanswered": 0,
                "versions": {str(version): [answered, hits]},
                "errors": [],
            }
            for name, (answered, hits, version) in devices.items()
        },
    }


def _timeline() -> Timeline:
    timeline = Timeline()
    timeline.add(_record(1.0, a=(10, 10, 1), b=(10, 8, 1)))
    timeline.add(_record(2.0, a=(10, 2, 2), b=(10, 8, 1)))
    timeline.add(_record(3.0, a=(10, 9, 3)))
    return timeline


def test_accuracy_is_of_what_was_answered_within_a_time() -> None:
    timeline = _timeline()
    assert timeline.accuracy(0.0, 1.0) == (0.9, 20)
    assert timeline.accuracy(1.0, 2.0) == (0.5, 20)
    assert timeline.accuracy(5.0) == (0.0, 0)
    assert timeline.asked == 50


def test_the_least_accuracy_is_that_of_the_worst_window() -> None:
    assert _timeline().least_accuracy(0.0, 3.0, 1.0) == (0.5, 20)
    assert _timeline().least_accuracy(9.0, 10.0, 1.0) == (1.0, 0)


def test_a_device_that_says_nothing_runs_what_it_ran() -> None:
    timeline = _timeline()
    assert timeline.moments[-1].versions == {"a": 3, "b": 1}
    assert timeline.devices_with(1) == {"a", "b"}
    assert timeline.devices_with(2) == {"a"}


def test_unanswered_inputs_are_counted_with_what_was_said() -> None:
    timeline = _timeline()
    record = _record(4.0)
    record["devices"] = {"a": {"asked": 8, "unanswered": 8, "versions": {}, "errors": ["no agent answers"]}}
    timeline.add(record)
    assert (timeline.asked, timeline.unanswered, timeline.errors) == (58, 8, ["no agent answers"])


def test_a_series_has_a_gap_where_nothing_was_answered() -> None:
    timeline = _timeline()
    timeline.add({"at_seconds": 5.0, "devices": {}})
    series = timeline.series(0.0, 1.0)
    assert series.seconds == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert series.accuracies == (0.9, 0.5, 0.9, None, None)
    assert series.devices[1] == (2, 1, 1, 1, 1)
    assert series.devices[3] == (0, 0, 1, 1, 1)


def test_a_series_of_nothing_is_empty() -> None:
    assert Timeline().series(0.0, 1.0).seconds == ()
