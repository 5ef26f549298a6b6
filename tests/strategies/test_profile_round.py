import pytest
from artifacts import example
from flwr.app import RecordDict
from memory_fleet import FleetDevice, fleet_grid
from statistics_strategies import app_that

from simulation.grid import InProcessGrid
from strategies.messages import Delivery, DeviceHello
from strategies.precision_messages import ProfileReply, ProfileRequest
from strategies.precision_records import encode_profile
from strategies.profile_round import LayerLatency, profile_latency
from strategies.rounds import RoundContext


@pytest.mark.parametrize("name", ["residual_cnn", "transformer"])
def test_every_layer_of_a_real_model_is_measured_in_both_graphs(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    case = example(name)
    artifact = case.artifact()
    grid, cohort = fleet_grid(monkeypatch, [FleetDevice(artifact, case.inputs(2)) for _ in range(2)])
    layers = [(layer.name, layer.raw_output) for layer in case.plan.layers]
    request = ProfileRequest(Delivery(artifact.manifest.to_bytes()), *zip(*layers, strict=True), runs=3)
    outcome = profile_latency(RoundContext(grid, clock=grid.clock), cohort, request)
    assert list(outcome.value) == [layer.name for layer in case.plan.layers]
    for latency in outcome.value.values():
        assert latency.devices == 2
        assert latency.integer_seconds is not None
        assert latency.float_seconds is not None
        assert 0 < latency.integer_seconds < 1
        assert 0 < latency.float_seconds < 1


REQUEST = ProfileRequest(Delivery(b"m"), ("a", "b"), ("x", "y"), runs=10)


def test_latency_is_the_median_over_devices_and_liars_cannot_move_it() -> None:
    def answer(position: int, _: RecordDict) -> RecordDict:
        if position == 0:
            return encode_profile(ProfileReply((10**13, 10**13), (10, 10), (0, 0), (0, 0)))
        if position == 1:
            return encode_profile(ProfileReply((-5, 0), (10, 10), (0, 0), (0, 0)))
        return encode_profile(ProfileReply((1000 * position, 0), (10, 0), (50, 70), (10, 10)))

    grid = InProcessGrid(app_that("calibrate", answer), 5)
    cohort = tuple(DeviceHello(node_id, "x86", 0, "", 6, False) for node_id in grid.get_node_ids())
    outcome = profile_latency(RoundContext(grid, clock=grid.clock), cohort, REQUEST)
    assert dict(outcome.failed) == {"malformed": 1}
    assert outcome.value["a"] == LayerLatency(350e-9, 5e-9, 4)
    assert outcome.value["b"] == LayerLatency(1e3, 7e-9, 1)
