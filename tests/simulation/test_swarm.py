import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quantization.errors import ConfigurationError
from simulation.cli import app
from simulation.swarm import SwarmSettings, run_swarm
from simulation.swarm_faults import SwarmFaults
from simulation.swarm_result import Spread


def _quiet(_fraction: float, _words: str) -> None:
    pass


def test_every_device_is_told_and_up_to_date_without_an_error(model_cache: Path) -> None:
    settings = SwarmSettings(devices=8, versions=1, is_at_once=True, cache_dir=model_cache)
    result = run_swarm(settings, _quiet)
    assert result.is_good
    assert result.errors == {}
    assert [version.told.devices for version in result.versions] == [8, 8]
    assert [version.current.devices for version in result.versions] == [8, 8]
    assert result.refetched_bytes == 0
    assert result.versions[1].received_bytes < result.versions[0].received_bytes / 20
    assert result.server.peak_rss_bytes > 1 << 20
    json.dumps(result.to_json(), allow_nan=False)


@pytest.mark.slow
def test_devices_survive_a_bad_network_and_a_killed_server(model_cache: Path) -> None:
    faults = SwarmFaults(cut=0.25, slow=0.25, corrupt=0.25, kill_server=1)
    settings = SwarmSettings(devices=12, versions=1, is_at_once=True, faults=faults, cache_dir=model_cache)
    result = run_swarm(settings, _quiet)
    assert result.wrong_devices == {}
    assert result.server.kills == 1
    assert result.errors["unavailable"] > 0


@pytest.mark.slow
def test_a_swarm_whose_time_is_over_ends_wrong(model_cache: Path) -> None:
    arguments = ["swarm", "--devices=3", "--versions=0", "--seconds=0.001", "--json"]
    done = CliRunner().invoke(app, [*arguments, f"--cache-dir={model_cache}"])
    assert done.exit_code == 1
    assert "3 of 3 devices ended wrong" in done.stderr
    assert len(json.loads(done.stdout)["wrong_devices"]) == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cut=2", "parts of the devices"),
        ("cut=0.6,slow=0.6", "1 at most together"),
        ("sunspots=0.1", "known are cut, slow, corrupt, kill-server"),
        ("cut=some", "no number"),
        ("kill-server=0.5", "no number"),
    ],
)
def test_faults_that_cannot_be_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        SwarmFaults.parse(text)


def test_faults_read_back_what_they_write() -> None:
    faults = SwarmFaults(cut=0.1, corrupt=0.25, kill_server=2)
    assert SwarmFaults.parse(str(faults)) == faults
    assert str(SwarmFaults.parse("")) == ""


def test_each_device_has_one_fault_at_most_and_the_parts_are_kept() -> None:
    kinds = SwarmFaults(cut=0.1, slow=0.2, corrupt=0.05).kinds(100, seed=3)
    assert [kinds.count(kind) for kind in ("cut", "slow", "corrupt", "")] == [10, 20, 5, 65]
    assert SwarmFaults(cut=0.01).kinds(5, seed=0).count("cut") == 1


@pytest.mark.parametrize("wrong", [{"devices": 0}, {"versions": -1}, {"processes": 0}, {"seconds": 0.0}])
def test_settings_that_cannot_be_run_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError):
        SwarmSettings(**wrong)  # type: ignore[arg-type]


def test_a_spread_of_nothing_is_zero() -> None:
    assert Spread.of([]).devices == 0
    assert Spread.of([1.0, 3.0, 2.0]) == Spread(3, 2.0, 2.9, 3.0)
