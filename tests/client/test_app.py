"""The ClientApp over real artifacts, through the in-process grid; devices come from an installed source."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from artifacts import Example, example
from flwr.app import Context, RecordDict

from client.app import app
from client.device import Device
from quantization.artifact import Artifact, Manifest, decode_files
from quantization.device_class import DeviceClass
from quantization.errors import NotFoundError, RoundFailedError
from quantization.histogram import DyadicHistogram
from quantization.moments import ChannelMoments
from simulation.grid import InProcessGrid
from strategies.assessment_round import assess
from strategies.calibration_round import calibrate_moments, calibrate_ranges
from strategies.hello_round import hello
from strategies.messages import (
    AssessRequest,
    Delivery,
    DeviceHello,
    LayerLayout,
    MomentsRequest,
    RangesRequest,
    SiteLayout,
)
from strategies.rounds import RoundContext, RoundSettings

ALL = RoundSettings(quorum_fraction=1.0)
ANY = RoundSettings(quorum_fraction=0.01)


@dataclass
class MemoryDevice:
    """A device whose state is in memory."""

    device_class: DeviceClass
    rows: np.ndarray
    classes: np.ndarray | None = None
    held: Manifest | None = None
    blobs: dict[str, bytes] = field(default_factory=dict)
    opened: int = 0

    def manifest(self) -> Manifest | None:
        return self.held

    def install(self, manifest: Manifest) -> None:
        self.held = manifest

    def has_blob(self, digest: str) -> bool:
        return digest in self.blobs

    def read_blob(self, digest: str) -> bytes:
        try:
            return self.blobs[digest]
        except KeyError as error:
            raise NotFoundError(digest) from error

    def store_blob(self, digest: str, stored: bytes) -> None:
        self.blobs[digest] = stored

    def inputs(self) -> np.ndarray:
        return self.rows

    def labels(self) -> np.ndarray | None:
        return self.classes

    def close(self) -> None:
        self.opened -= 1


FLEET: list[MemoryDevice] = []


def open_memory_device(context: Context) -> Device:
    device = FLEET[int(context.node_config["partition-id"])]
    device.opened += 1
    return device


@pytest.fixture(autouse=True)
def _source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install a distribution whose entry point "memory" is the function above."""
    info = tmp_path / "memory_devices-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: memory-devices\nVersion: 1.0\n")
    module = tmp_path / "memory_devices.py"
    module.write_text("open_memory_device = None\n")
    (info / "entry_points.txt").write_text(
        "[quantfleet.devices]\nmemory = memory_devices:open_memory_device\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import memory_devices  # noqa: PLC0415 - exists only now

    monkeypatch.setattr(memory_devices, "open_memory_device", open_memory_device)
    yield
    assert all(device.opened == 0 for device in FLEET)
    FLEET.clear()


X86 = DeviceClass("x86-vnni")
MODEL: Example = example("digits_cnn")
NOW = MODEL.artifact(generation=3)


def _grid(*rows: np.ndarray, labels: Callable[[int], np.ndarray | None] = lambda _: None) -> InProcessGrid:
    FLEET.extend(MemoryDevice(X86, part, labels(position)) for position, part in enumerate(rows))
    return InProcessGrid(app, len(rows), run_config={"device-source": "memory"})


def _parts(*sizes: int) -> list[np.ndarray]:
    rows = MODEL.inputs(max(sum(sizes), 1))[: sum(sizes)]
    return np.split(rows, np.cumsum(sizes)[:-1])


def _context(grid: InProcessGrid) -> RoundContext:
    return RoundContext(grid, ALL, clock=grid.clock)


def _cohort(grid: InProcessGrid) -> tuple[DeviceHello, ...]:
    return hello(grid, tuple(grid.get_node_ids()), clock=grid.clock).value


def _all_of(artifact: Artifact) -> Delivery:
    return Delivery(artifact.manifest.to_bytes(), artifact.blobs)


def _layers(artifact: Artifact = NOW) -> LayerLayout:
    return LayerLayout.of({layer.name: layer.channels for layer in artifact.manifest.stages[0].layers})


def _sites(artifact: Artifact = NOW) -> SiteLayout:
    return SiteLayout(artifact.manifest.stages[0].sites)


def test_hello_says_what_the_device_is_and_holds() -> None:
    grid = _grid(*_parts(5, 0), labels=lambda position: np.full(5, 2) if position == 0 else None)
    FLEET[0].held = NOW.manifest
    first, second = _cohort(grid)
    assert first == DeviceHello(2, "x86-vnni", 3, NOW.manifest.digest(), 5, True, ("train",), "00000000")
    assert second == DeviceHello(3, "x86-vnni", -1, "", 0, False, name="00000001")


def test_a_fleets_statistics_are_those_of_one_device_with_all_the_data() -> None:
    layout, sites = _layers(), _sites()
    results = []
    (rows,) = _parts(96)  # a device takes every third of 96 rows into each of its three batches
    for parts in ([rows[0::3], rows[1::3], rows[2::3]], [rows]):
        FLEET.clear()
        grid = _grid(*parts)
        moments = calibrate_moments(_context(grid), _cohort(grid), MomentsRequest(_all_of(NOW), layout)).value
        ranges = calibrate_ranges(
            _context(grid),
            _cohort(grid),
            RangesRequest(_all_of(NOW), layout, sites),
        ).value
        results.append((moments, ranges))
    (fleet_moments, fleet_ranges), (one_moments, one_ranges) = results
    assert fleet_ranges.histograms == one_ranges.histograms
    for fleet, one in (
        (fleet_moments.plain, one_moments.plain),
        (fleet_moments.sequential, one_moments.sequential),
    ):
        for name in layout.names:
            assert np.array_equal(fleet[name].total, one[name].total)
            assert (fleet[name].devices, one[name].devices) == (3, 1)
    assert fleet_moments.sample_count == 96


def test_calibration_installs_the_current_artifact_and_keeps_its_blobs() -> None:
    grid = _grid(*_parts(8))
    request = MomentsRequest(_all_of(NOW), _layers())
    calibrate_moments(_context(grid), _cohort(grid), request)
    assert FLEET[0].held == NOW.manifest
    bare = replace(request, artifact=Delivery(NOW.manifest.to_bytes()))
    assert calibrate_moments(_context(grid), _cohort(grid), bare).replied == 1


def test_candidate_channels_change_what_is_observed_and_not_what_serves() -> None:
    grid = _grid(*_parts(32))
    request = RangesRequest(_all_of(NOW), _layers(), _sites())
    before = calibrate_ranges(_context(grid), _cohort(grid), request).value
    files = decode_files(NOW.manifest.stages[0].files, NOW.blobs.__getitem__)
    channels = np.frombuffer(files["channels"], np.float32) * np.float32(0.5)
    halved = replace(request, overrides={"channels": channels.tobytes()})
    after = calibrate_ranges(_context(grid), _cohort(grid), halved).value
    assert after.histograms != before.histograms
    assert FLEET[0].held == NOW.manifest


def test_empty_and_one_sample_devices_answer_with_what_they_saw() -> None:
    grid = _grid(*_parts(0, 1, 16))
    layout, sites = _layers(), _sites()
    moments = calibrate_moments(_context(grid), _cohort(grid), MomentsRequest(_all_of(NOW), layout)).value
    assert {m.devices for m in moments.plain.values()} == {2}
    ranges = calibrate_ranges(_context(grid), _cohort(grid), RangesRequest(_all_of(NOW), layout, sites))
    assert ranges.value.sample_count == 17
    counts = assess(_context(grid), _cohort(grid), AssessRequest(_all_of(NOW), _all_of(NOW))).value
    assert (counts.devices, counts.failures, counts.samples) == (3, 0, 17)


def test_a_fleet_of_empty_devices_gives_empty_statistics() -> None:
    grid = _grid(*_parts(0, 0))
    layout, sites = _layers(), _sites()
    moments = calibrate_moments(_context(grid), _cohort(grid), MomentsRequest(_all_of(NOW), layout))
    ranges = calibrate_ranges(_context(grid), _cohort(grid), RangesRequest(_all_of(NOW), layout, sites))
    assert set(ranges.value.histograms.values()) == {DyadicHistogram.empty()}
    for name, channels in zip(layout.names, layout.channels, strict=True):
        assert moments.value.sequential[name] == ChannelMoments.empty(channels)


def test_inputs_that_are_not_finite_are_left_out() -> None:
    (rows,) = _parts(20)
    broken = rows.copy()
    broken[3], broken[7, ..., 0] = np.nan, np.inf
    clean = np.delete(rows, [3, 7], axis=0)
    grid = _grid(broken, clean, labels=lambda position: np.arange(20 if position == 0 else 18) % 10)
    counts = assess(_context(grid), _cohort(grid), AssessRequest(_all_of(NOW), _all_of(NOW))).value
    assert (counts.samples, counts.labelled) == (36, 36)


def test_a_candidate_equal_to_what_serves_agrees_everywhere() -> None:
    grid = _grid(*_parts(40, 40), labels=lambda position: np.arange(40) % 10 if position else None)
    counts = assess(_context(grid), _cohort(grid), AssessRequest(_all_of(NOW), _all_of(NOW))).value
    assert (counts.devices, counts.samples, counts.labelled) == (2, 80, 40)
    assert counts.current_hits == counts.candidate_hits
    assert (counts.only_current_agreements, counts.only_candidate_agreements) == (0, 0)
    assert counts.candidate_agreements > 60
    assert int(counts.candidate_latency.sum()) == 4


def test_a_candidate_with_crushed_ranges_disagrees() -> None:
    crushed = MODEL.artifact(generation=4, width=1e-3)
    grid = _grid(*_parts(80))
    counts = assess(
        _context(grid),
        _cohort(grid),
        AssessRequest(_all_of(NOW), _all_of(crushed)),
    ).value
    assert counts.candidate_agreements < counts.current_agreements
    assert FLEET[0].held == NOW.manifest


def test_a_candidate_that_does_not_load_is_a_failure_and_no_error() -> None:
    other = example("har_cnn").artifact(generation=4)  # takes other inputs
    grid = _grid(*_parts(4))
    counts = assess(_context(grid), _cohort(grid), AssessRequest(_all_of(NOW), _all_of(other))).value
    assert (counts.devices, counts.failures, counts.samples) == (1, 1, 0)


def _refusal(delivery: Delivery, grid: InProcessGrid) -> str:
    with pytest.raises(RoundFailedError) as failure:
        calibrate_moments(
            RoundContext(grid, ANY, clock=grid.clock), _cohort(grid), MomentsRequest(delivery, _layers())
        )
    return str(failure.value)


def test_an_artifact_with_missing_blobs_is_refused() -> None:
    grid = _grid(*_parts(4))
    message = _refusal(Delivery(NOW.manifest.to_bytes()), grid)
    assert "1 app_raised_exception" in message
    assert "NotFoundError" in message
    assert "neither held nor delivered" in message
    assert FLEET[0].held is None


def test_an_artifact_of_another_class_is_refused() -> None:
    grid = _grid(*_parts(4))
    FLEET[0].device_class = DeviceClass("arm")
    assert "an artifact for 'x86-vnni' came to a device of class 'arm'" in _refusal(_all_of(NOW), grid)
    assert FLEET[0].blobs == {}


def test_an_older_generation_is_refused() -> None:
    grid = _grid(*_parts(4))
    FLEET[0].held = MODEL.artifact(generation=4).manifest
    assert "generation 3 came to a device that runs generation 4" in _refusal(_all_of(NOW), grid)


def test_blobs_that_the_manifest_does_not_name_are_refused() -> None:
    grid = _grid(*_parts(4))
    stray = Delivery(NOW.manifest.to_bytes(), {**NOW.blobs, "a" * 64: b"stray"})
    assert "1 blobs came that the manifest does not name" in _refusal(stray, grid)
    assert FLEET[0].blobs == {}


@pytest.mark.parametrize("manifest", [b"", b"\x00" * 40, NOW.manifest.to_bytes()[:-3]])
def test_a_broken_manifest_is_refused(manifest: bytes) -> None:
    assert "MalformedError" in _refusal(Delivery(manifest), _grid(*_parts(4)))


def test_a_layout_of_another_model_is_refused() -> None:
    grid = _grid(*_parts(4))
    request = MomentsRequest(_all_of(NOW), LayerLayout(("no such layer",), (1,)))
    with pytest.raises(RoundFailedError, match="'no such layer' has no channels"):
        calibrate_moments(RoundContext(grid, ANY, clock=grid.clock), _cohort(grid), request)


def test_an_unknown_device_source_names_the_installed_ones() -> None:
    grid = InProcessGrid(app, 1, run_config={"device-source": "os.system"})
    with pytest.raises(
        RoundFailedError, match=r"device-source 'os.system' is not installed; installed are: .*memory"
    ):
        hello(grid, tuple(grid.get_node_ids()), clock=grid.clock)


def test_a_nodes_own_source_goes_before_the_runs() -> None:
    FLEET.append(MemoryDevice(X86, _parts(2)[0]))
    grid = InProcessGrid(
        app, 1, run_config={"device-source": "nowhere"}, node_config=lambda _: {"device-source": "memory"}
    )
    assert len(_cohort(grid)) == 1


def test_a_request_that_is_nonsense_becomes_an_error_of_one_line() -> None:
    grid = _grid(*_parts(2))
    ids = grid.push_messages([grid.create_message(RecordDict(), "query.calibrate", 2, "")])
    reply = next(grid.pull_messages(ids))
    assert reply.error.reason == "MalformedError: record 'settings' is missing or holds no settings"
