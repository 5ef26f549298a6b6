"""Second moments of a fleet: real graphs, ONNX Runtime, the real ClientApp and the in-process grid."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from artifacts import example
from flwr.app import Message, RecordDict
from memory_fleet import FleetDevice, fleet_grid
from statistics_strategies import app_that

from client.tap_observer import TapObserver
from quantization.artifact import decode_files
from quantization.calibration_recipe import CalibrationRecipe, Strategy
from quantization.compile_taps import compile_taps, input_layout
from quantization.im2col import sample_columns
from quantization.input_observation import LayerInput, observe_inputs, with_exponents
from quantization.second_moments import SecondMoments
from simulation.grid import Crash, Dropout, Fault, InProcessGrid
from strategies.inputs_round import InputsResult, gather_inputs
from strategies.messages import Delivery, DeviceHello
from strategies.precision_messages import InputsRequest
from strategies.precision_records import encode_inputs
from strategies.rounds import RoundContext, RoundOutcome

MODELS = ("har_cnn", "residual_cnn", "ds_cnn", "branches", "transformer", "mlp")
ALL = 1 << 30


class Bench:
    """One model with its tap graph, and the lab's moments of it."""

    def __init__(self, name: str) -> None:
        self.case = example(name)
        self.artifact = self.case.artifact()
        self.graph = compile_taps(self.case.model, self.case.plan)
        self.observer = TapObserver(self.artifact.manifest, self.artifact.blobs.__getitem__, self.graph)
        layers = input_layout(self.case.model, self.case.plan)
        self.lab = self.observe(layers, self.case.inputs(40, seed=9))
        self.layers = with_exponents(layers, self.lab)
        self.energies = {layer: moments.energy() for layer, moments in self.lab.items()}
        self.files = decode_files(self.artifact.manifest.stages[0].files, self.artifact.blobs.__getitem__)

    def observe(self, layers: tuple[LayerInput, ...], x: np.ndarray) -> dict[str, SecondMoments]:
        with self.observer.taps(tuple(layer.tensor for layer in layers), {}) as run:
            return dict(observe_inputs(run, x, layers, 32).moments)

    def request(self, **changes: object) -> InputsRequest:
        request = InputsRequest(
            Delivery(self.artifact.manifest.to_bytes()), self.graph, self.layers, batch_size=8
        )
        return replace(request, **changes)

    def coarse(self, layers: int) -> dict[str, bytes]:
        """The codes of the first layers, rounded to 4 bits."""
        names = [layer.weight for layer in self.case.plan.layers[:layers]]
        codes = {name: np.frombuffer(self.files[name], np.int8).astype(int) for name in names}
        return {
            name: (np.clip((c + 8) // 16, -7, 7) * 16).astype(np.int8).tobytes() for name, c in codes.items()
        }


def gather(
    monkeypatch: pytest.MonkeyPatch,
    bench: Bench,
    parts: list[np.ndarray],
    fault: Callable[[int, Message], Fault | None] | None = None,
    order: int = 1,
    **changes: object,
) -> RoundOutcome[InputsResult]:
    devices = [FleetDevice(bench.artifact, part, np.arange(len(part)) % 3) for part in parts]
    grid, cohort = fleet_grid(monkeypatch, devices, fault)
    context = RoundContext(grid, clock=grid.clock)
    return gather_inputs(context, cohort[::order], bench.request(**changes), energies=bench.energies)


def split(x: np.ndarray, *sizes: int) -> list[np.ndarray]:
    return np.split(x[: sum(sizes)], np.cumsum(sizes)[:-1])


@pytest.mark.parametrize("name", MODELS)
def test_a_fleets_moments_are_those_of_its_data_pooled_in_float64(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bench = Bench(name)
    x = bench.case.inputs(30)
    outcome = gather(monkeypatch, bench, split(x, 9, 0, 20, 1), columns_per_batch=1 << 20)
    assert (outcome.replied, outcome.value.sample_count) == (4, 30)
    with bench.observer.taps(tuple(layer.tensor for layer in bench.layers), {}) as run:
        taps = run(x)
    for layer in bench.layers:
        columns = sample_columns(taps[layer.tensor], layer.window, ALL).astype(np.float64)
        expected = np.swapaxes(columns, 1, 2) @ columns / columns.shape[1]
        seen = outcome.value.moments[layer.name]
        assert seen.count == columns.shape[1]
        np.testing.assert_allclose(
            seen.mean_square()[:, 0], expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max()
        )


def test_sums_of_given_columns_are_exact_to_a_billionth(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("mlp")  # its first layer reads the input itself, so that no kernel's rounding comes between
    x = bench.case.inputs(400)
    first = (bench.layers[0],)
    outcome = gather(monkeypatch, bench, split(x, 150, 49, 1, 200), layers=first, batch_size=64)
    expected = x.astype(np.float64).T @ x.astype(np.float64) / len(x)
    seen = outcome.value.moments[first[0].name].mean_square()[0, 0]
    np.testing.assert_allclose(seen, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def test_the_order_of_replies_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("residual_cnn")
    parts = split(bench.case.inputs(30), 10, 5, 15)
    results = [gather(monkeypatch, bench, parts, order=order).value.moments for order in (1, -1)]
    assert results[0] == results[1]


def test_blocks_of_wide_layers_are_the_diagonal_of_the_full_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("branches")
    parts = split(bench.case.inputs(20), 12, 8)
    whole = gather(monkeypatch, bench, parts).value.moments
    narrow = tuple(replace(layer, block=min(7, layer.columns)) for layer in bench.layers)
    blocks = gather(monkeypatch, bench, parts, layers=narrow).value.moments
    for layer in narrow:
        for index, start in enumerate(range(0, layer.columns, 7)):
            size = min(7, layer.columns - start)
            full = whole[layer.name].gram[:, 0, start : start + size, start : start + size]
            np.testing.assert_array_equal(blocks[layer.name].gram[:, index, :size, :size], full)


def test_some_of_the_layers_give_the_same_as_all(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("transformer")
    parts = split(bench.case.inputs(20), 12, 8)
    whole = gather(monkeypatch, bench, parts).value.moments
    some = gather(monkeypatch, bench, parts, layers=bench.layers[1:4]).value.moments
    assert some == {layer.name: whole[layer.name] for layer in bench.layers[1:4]}


def test_cross_moments_compare_the_rounded_prefix_with_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("residual_cnn")
    x = bench.case.inputs(24)
    prefix, reference = bench.coarse(3), bench.coarse(0)
    layers = bench.layers[2:5]
    outcome = gather(
        monkeypatch, bench, split(x, 24), layers=layers, reference=reference, overrides=prefix, batch_size=32
    )
    tensors = tuple(layer.tensor for layer in layers)
    with bench.observer.taps(tensors, prefix) as run, bench.observer.taps(tensors, {}) as reference_run:
        rounded, exact = run(x), reference_run(x)
    for layer in layers:
        limit = bench.request().columns_per_batch
        columns = [sample_columns(taps[layer.tensor], layer.window, limit) for taps in (rounded, exact)]
        expected = layer.empty(with_cross=True).add_columns(columns[0], columns[1])
        seen = outcome.value.moments[layer.name]
        assert seen == expected
        assert seen.cross is not None
        assert not np.array_equal(seen.cross, seen.gram)


def test_the_reference_may_be_another_model_than_the_artifact(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("mlp")
    parts = split(bench.case.inputs(20), 20)
    plain = gather(monkeypatch, bench, parts).value.moments
    coarse = gather(monkeypatch, bench, parts, reference=bench.coarse(1)).value.moments
    first, second = (layer.name for layer in bench.layers[:2])
    assert coarse[first] == plain[first]
    assert coarse[second] != plain[second]


def test_hard_samples_weigh_more_and_copies_join_them(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("residual_cnn")
    parts = split(bench.case.inputs(20), 12, 8)
    plain = gather(monkeypatch, bench, parts)
    recipe = CalibrationRecipe(Strategy.LOSS, 4.0, ("flip",))
    outcome = gather(monkeypatch, bench, parts, recipe=recipe)
    assert outcome.value.sample_count == 2 * plain.value.sample_count
    for name, moments in outcome.value.moments.items():
        columns = 2 * plain.value.moments[name].count
        assert 256 * columns < moments.count < 4 * 256 * columns


def test_devices_that_fail_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("mlp")
    parts = split(bench.case.inputs(40), 10, 10, 10, 10)
    faults: dict[int, Fault] = {1: Dropout(), 3: Crash()}
    outcome = gather(monkeypatch, bench, parts, fault=lambda position, _: faults.get(position))
    assert (outcome.replied, outcome.late, dict(outcome.failed)) == (2, 1, {"app_crashed": 1})
    alone = gather(monkeypatch, bench, [parts[0], parts[2]])
    assert outcome.value.moments == alone.value.moments


def test_a_device_gives_no_more_samples_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("mlp")
    x = bench.case.inputs(30)
    bounded = gather(monkeypatch, bench, split(x, 5, 25), max_samples=7)
    assert bounded.value.sample_count == 12
    assert bounded.value.moments == gather(monkeypatch, bench, [x[:5], x[5:12]]).value.moments


@pytest.mark.parametrize(
    "changes",
    [
        {"reference": {"channels": b"short"}},
        {"reference": {"passwd": b""}},
        {"overrides": {"nothing": b"x"}},
        {"graph": b"no graph"},
        {"layers": (LayerInput("a", "absent", None, 3),)},
    ],
)
def test_requests_that_do_not_fit_the_artifact_are_refused_by_devices(
    monkeypatch: pytest.MonkeyPatch, changes: dict
) -> None:
    bench = Bench("mlp")
    grid, cohort = fleet_grid(monkeypatch, [FleetDevice(bench.artifact, bench.case.inputs(4))] * 2)
    context = RoundContext(grid, clock=grid.clock)
    with pytest.raises(Exception, match=r"app_raised_exception.*Error"):
        gather_inputs(context, cohort, bench.request(**changes))


LAYER = LayerInput("fc", "x", None, 3, exponent=0)
REQUEST = InputsRequest(Delivery(b"m"), b"", (LAYER,), batch_size=32, max_samples=100)


def _columns(position: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(position).normal(size=(1, 20, 3)) * scale


def _honest(position: int) -> RecordDict:
    moments = LAYER.empty().add_columns(_columns(position))
    return encode_inputs(REQUEST, {"fc": moments}, 20)


def _negative() -> RecordDict:
    moments = LAYER.empty().add_columns(_columns(0))
    gram = moments.gram.copy()
    gram[0, 0, 0, 1] = gram[0, 0, 1, 0] = 5 * gram.max()
    return encode_inputs(REQUEST, {"fc": replace(moments, gram=gram)}, 20)


def _of_another_shape() -> RecordDict:
    other = LayerInput("fc", "x", None, 2)
    moments = other.empty().add_columns(np.ones((1, 20, 2)))
    return encode_inputs(replace(REQUEST, layers=(other,)), {"fc": moments}, 20)


def _loud() -> RecordDict:
    return encode_inputs(REQUEST, {"fc": LAYER.empty().add_columns(_columns(0, 30.0))}, 20)


def _heavy() -> RecordDict:
    return encode_inputs(REQUEST, {"fc": LAYER.empty().add_columns(np.ones((1, 9999, 3)))}, 20)


def _of_many_samples() -> RecordDict:
    return encode_inputs(REQUEST, {"fc": LAYER.empty().add_columns(_columns(0))}, 100)


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (_negative, "layer 'fc': .*negative along"),
        (_of_another_shape, "elements"),
        (_loud, "layer 'fc': an energy of"),
        (_heavy, "layer 'fc': 9999 columns of 20 samples"),
        (_of_many_samples, "100 samples from a device with 20"),
    ],
)
def test_an_attack_is_refused_counted_and_named_and_leaves_no_trace(
    attack: Callable[[], RecordDict], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    attackers = {2, 5}
    grid = InProcessGrid(
        app_that("calibrate", lambda place, _: attack() if place in attackers else _honest(place)), 10
    )
    cohort = tuple(DeviceHello(node_id, "x86", 0, "", 20, False) for node_id in grid.get_node_ids())
    context = RoundContext(grid, clock=grid.clock)
    monkeypatched = replace(REQUEST, artifact=Delivery(example("mlp").artifact().manifest.to_bytes()))
    outcome = gather_inputs(context, cohort, monkeypatched, energies={"fc": 3.0})
    expected = LAYER.empty()
    for position in set(range(10)) - attackers:
        expected = expected.merge(LAYER.empty().add_columns(_columns(position)))
    assert outcome.value.moments == {"fc": expected}
    assert outcome.value.sample_count == 160
    assert dict(outcome.failed) == {"malformed": 2}
    assert {failure.node_id for failure in outcome.failures} == {4, 7}
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(outcome.failures[0].detail)
    assert "node 4 was left out of the round (malformed)" in caplog.text
