from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from benches import open_bench, tune

from quantization.arrays import FloatArray
from quantization.calibration import Range
from quantization.policy import Policy
from server.candidate import PlannedModel, channels_file, load_manifest
from server.generation import Generation
from simulation.bench import Bench
from simulation.pooled import pooled_ranges
from simulation.tasks import TaskData


@dataclass(frozen=True)
class Tuned:
    """A bench behind a generation that dropouts and stragglers took part in."""

    bench: Bench
    generation: Generation

    @property
    def policy(self) -> Policy:
        return Policy.from_json_bytes(self.generation.policy.encode())

    @property
    def members(self) -> list[int]:
        return sorted(self.bench.grid.traffic.observed["ranges"])

    def pooled(self, inputs: list[FloatArray]) -> dict[str, Range]:
        bench = self.bench
        frozen = bench.prepared.generations["x86-vnni"]
        return pooled_ranges(
            bench.prepared.plan,
            load_manifest(bench.blobs, frozen.manifest_digest),
            bench.blobs,
            inputs,
            overrides={
                "channels": channels_file(
                    PlannedModel.load(bench.prepared.model.digest, bench.blobs), self.policy
                )
            },
            policy=self.policy,
            previous=Policy.from_json_bytes(frozen.policy.encode()).ranges,
            batch_size=bench.settings.batch_size,
        )


@pytest.fixture(scope="module")
def tuned(digits: TaskData) -> Iterator[Tuned]:
    with open_bench(
        digits, devices=12, drifts=("brightness=0.35",), dropout=0.15, stragglers=0.15, seed=1
    ) as bench:
        yield Tuned(bench, tune(bench)["x86-vnni"])


def test_ranges_of_the_fleet_are_those_of_its_data_in_any_order(tuned: Tuned) -> None:
    assert 6 <= len(tuned.members) < 12, "some devices must have been missing"
    inputs = [tuned.bench.fleet.inputs(position) for position in tuned.members]
    ranges = dict(tuned.policy.ranges)
    assert tuned.pooled(inputs) == ranges
    assert tuned.pooled(inputs[::-1]) == ranges
    assert tuned.bench.equals_pooled(tuned.generation)


def test_devices_without_rows_change_nothing(tuned: Tuned) -> None:
    inputs = [tuned.bench.fleet.inputs(position) for position in tuned.members]
    assert tuned.pooled([inputs[0][:0], *inputs, inputs[0][:0]]) == dict(tuned.policy.ranges)


def test_check_sees_every_range_that_is_the_least_bit_different(tuned: Tuned) -> None:
    ranges = dict(tuned.policy.ranges)
    assert len(ranges) == len(tuned.bench.prepared.plan.sites)
    for site, found in ranges.items():
        tampered = Range(found.lo, float(np.nextafter(found.hi, np.inf)))
        policy = replace(tuned.policy, ranges={**ranges, site: tampered})
        generation = replace(tuned.generation, policy=policy.to_json_bytes().decode())
        assert not tuned.bench.equals_pooled(generation), site


def test_check_sees_a_device_that_is_missing_or_comes_twice_or_has_other_rows(tuned: Tuned) -> None:
    inputs = [tuned.bench.fleet.inputs(position) for position in tuned.members]
    ranges = dict(tuned.policy.ranges)
    assert tuned.pooled(inputs[1:]) != ranges
    assert tuned.pooled([*inputs, inputs[0]]) != ranges
    assert tuned.pooled([inputs[0] * np.float32(0.5), *inputs[1:]]) != ranges


def test_check_depends_on_the_corrections_that_devices_observed_with(tuned: Tuned) -> None:
    assert tuned.policy.corrections
    uncorrected = replace(tuned.policy, corrections={})
    generation = replace(tuned.generation, policy=uncorrected.to_json_bytes().decode())
    assert not tuned.bench.equals_pooled(generation)
