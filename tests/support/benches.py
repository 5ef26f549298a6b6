"""Benches as experiments set them up, without the rest of an experiment."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from server.generation import Generation
from server.tuner import run_generation
from simulation.bench import Bench
from simulation.fleet import Fleet, FleetSettings
from simulation.measured_grid import Traffic
from simulation.scenario import Scenario
from simulation.tasks import TaskData


@contextmanager
def open_bench(task: TaskData, **settings: Any) -> Iterator[Bench]:
    """A bench for a task and fields of a scenario; its folder goes when it is closed."""
    scenario = Scenario(**settings)
    with Bench.opened(scenario, Fleet(task, FleetSettings.of(scenario))) as bench:
        yield bench


def tune(bench: Bench) -> Mapping[str, Generation]:
    """Run one generation of every class; return them by class."""
    bench.grid.traffic = Traffic()
    return run_generation(
        bench.grid, bench.registry, bench.blobs, bench.settings, clock=bench.grid.clock
    ).generations
