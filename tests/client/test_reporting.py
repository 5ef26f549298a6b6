import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from artifacts import example
from memory_link import MemoryLink
from waiting import eventually

from client.disk import Disk
from client.reporting import Reporter, ReportSettings
from client.runtime import Run
from client.slots import Target
from client.state import StateFolder
from client.telemetry import Telemetry
from quantization.errors import ConfigurationError, UnreachableError

MANIFEST = example("mlp").artifact(is_observed=False).manifest


class Bench:
    """A device's reporter, with a server in memory."""

    def __init__(self, path: Path, disk: Disk | None = None, interval_seconds: float = 3600.0) -> None:
        self.state = StateFolder(path, disk=disk or Disk())
        self.telemetry, self.link = Telemetry(), MemoryLink()
        self.telemetry.serve(MANIFEST, Target(1, MANIFEST.digest()))
        self.reporter = Reporter(
            self.state,
            self.telemetry,
            self.link,
            ReportSettings(interval_seconds=interval_seconds),
            serving=lambda: MANIFEST,
            rng=random.Random(0),  # noqa: S311  # it guards nothing
        )

    def count(self, samples: int, *, is_good: bool = True) -> None:
        self.telemetry.record(MANIFEST, Run(samples, 1e-3, 1e-3, is_good))
        self.reporter.spool()

    def stored(self) -> list[tuple[int, int]]:
        return [(report.sequence, report.counts.samples) for report in self.link.reports]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.state.close()


def test_reports_wait_while_the_server_is_away_and_arrive_once(bench: Bench) -> None:
    bench.link.is_reachable = False
    for samples in (1, 2, 3):
        bench.count(samples)
        with pytest.raises(UnreachableError):
            bench.reporter.send()
    assert bench.reporter.waiting == 3
    bench.link.is_reachable = True
    bench.reporter.send()
    bench.reporter.send()
    assert (bench.stored(), bench.reporter.waiting) == ([(1, 1), (2, 2), (3, 3)], 0)


def test_nothing_is_reported_where_nothing_happened(bench: Bench) -> None:
    bench.reporter.spool()
    bench.reporter.send()
    assert bench.stored() == []


def test_reports_survive_a_restart(tmp_path: Path) -> None:
    first = Bench(tmp_path)
    first.telemetry.record(MANIFEST, Run(4, 1e-3, 1e-3, True))
    first.reporter.close()
    first.state.close()
    again = Bench(tmp_path)
    again.reporter.send()
    assert again.stored() == [(1, 4)]
    again.state.close()


def test_a_report_that_is_refused_does_not_hold_up_the_others(bench: Bench) -> None:
    bench.link.refuses = 5
    for samples, failures in ((1, 0), (0, 5), (3, 0)):
        if failures:
            bench.count(failures, is_good=False)
        else:
            bench.count(samples)
    bench.reporter.send()
    assert bench.stored() == [(1, 1), (3, 3)]
    assert (bench.reporter.dropped, bench.reporter.waiting) == (1, 0)


@pytest.mark.parametrize("known", [1, 2, 500])
def test_a_wiped_device_goes_on_above_what_the_server_knows(bench: Bench, known: int) -> None:
    bench.link.stored_sequence = known
    bench.count(1)
    bench.count(2)
    bench.reporter.send()
    assert [samples for _, samples in bench.stored()] == [1, 2]
    bench.count(3)
    bench.reporter.send()
    assert bench.stored()[-1][1] == 3


def test_a_device_whose_name_another_has_used_goes_on_above_that(bench: Bench) -> None:
    bench.count(1)
    bench.reporter.send()
    bench.link.stored_sequence = 500
    bench.count(2)
    bench.reporter.send()
    assert bench.stored() == [(1, 1), (501, 2)]


def test_a_server_that_stores_nothing_is_tried_later(bench: Bench) -> None:
    bench.count(1)
    bench.reporter.send()
    bench.count(1)
    bench.link.report = lambda _: type("Stored", (), {"stored_sequence": 0, "retry_after_seconds": 9.0})  # type: ignore[method-assign]
    with pytest.raises(UnreachableError, match="did not store 2") as caught:
        bench.reporter.send()
    assert caught.value.retry_after_seconds == 9.0
    assert bench.reporter.waiting == 1


class FullDisk(Disk):
    is_full = False

    def write(self, path: Path, data: bytes) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device")
        super().write(path, data)


def test_what_does_not_fit_on_the_disk_waits_in_memory(tmp_path: Path) -> None:
    disk = FullDisk()
    bench = Bench(tmp_path, disk)
    disk.is_full = True
    for samples in (1, 2):
        with pytest.raises(ConfigurationError, match="No space left"):
            bench.count(samples)
    disk.is_full = False
    bench.reporter.spool()
    bench.reporter.send()
    assert bench.stored() == [(1, 1), (2, 2)]
    bench.state.close()


def test_the_thread_reports_at_once_when_it_is_asked_to(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.reporter.start()
    bench.telemetry.record(MANIFEST, Run(2, 1e-3, 1e-3, True))
    bench.reporter.soon()
    eventually(lambda: bench.stored() == [(1, 2)])
    bench.reporter.close()
    bench.state.close()


def test_the_thread_comes_back_after_the_server_was_away(tmp_path: Path) -> None:
    bench = Bench(tmp_path, interval_seconds=0.02)
    bench.link.is_reachable = False
    bench.telemetry.record(MANIFEST, Run(2, 1e-3, 1e-3, True))
    bench.reporter.start()
    eventually(lambda: bench.reporter.waiting == 1)
    bench.link.is_reachable = True
    eventually(lambda: bench.stored() == [(1, 2)])
    bench.reporter.close()
    bench.state.close()
