"""Runs on a real SuperLink, and what is known without one."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flower_processes import FlowerProcesses, free_port

from quantization.errors import ConfigurationError, NotFoundError, RoundFailedError, UnreachableError
from server.flower_runs import FlowerRuns, Outcome, RunSight, SuperLink


@pytest.fixture
def superlink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlowerProcesses]:
    monkeypatch.setenv("HOME", str(tmp_path))
    with FlowerProcesses(tmp_path, is_simulation=False) as processes:
        yield processes


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_is_started_seen_and_gone_with_its_superlink(
    superlink: FlowerProcesses, tmp_path: Path
) -> None:
    runs = FlowerRuns(SuperLink(address=superlink.address), tmp_path / "tuner")
    runs.check()
    config = {"home": str(tmp_path / "home"), "model-source": "", "model-name": "missing", "tuning-run": ""}
    run_id = runs.start(config)
    deadline = time.monotonic() + 120
    while (sight := runs.look(run_id)).outcome is Outcome.ACTIVE:
        assert time.monotonic() < deadline, sight
        time.sleep(0.5)
    assert sight.outcome is Outcome.FAILED
    assert "no model named 'missing'" in sight.details
    runs.stop(run_id)  # it has ended: nothing happens
    runs.stop("42")
    with pytest.raises(NotFoundError, match="does not know this run"):
        runs.look("42")
    with pytest.raises(RoundFailedError):
        FlowerRuns(SuperLink(name="nowhere"), tmp_path / "tuner").check()

    superlink.close()
    for call in (
        runs.check,
        lambda: runs.start(config),
        lambda: runs.look(run_id),
        lambda: runs.stop(run_id),
    ):
        with pytest.raises(UnreachableError, match="does not answer"):
            call()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "say which SuperLink"),
        ({"name": "a", "address": "127.0.0.1:1"}, "say which SuperLink"),
        ({"address": "fleet.example.org:9092"}, "not on this machine"),
        ({"address": "10.0.0.1:9092"}, "not on this machine"),
    ],
)
def test_a_superlink_is_named_once_and_far_ones_have_certificates(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        SuperLink(**wrong)  # type: ignore[arg-type]


def test_a_configuration_of_its_own_names_the_superlink_and_its_ca(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("x")
    far = SuperLink(address="fleet.example.org:9092", root_certificates=tmp_path / "ca.crt")
    FlowerRuns(far, tmp_path / "tuner")
    written = (tmp_path / "tuner" / "flower" / "config.toml").read_text()
    assert 'address = "fleet.example.org:9092"' in written
    assert f'root-certificates = "{tmp_path / "ca.crt"}"' in written
    assert "insecure" not in written
    for address in ("127.0.0.1:1", "localhost:1", "[::1]:1"):
        FlowerRuns(SuperLink(address=address), tmp_path / "tuner")
    assert "insecure = true" in (tmp_path / "tuner" / "flower" / "config.toml").read_text()
    with pytest.raises(ConfigurationError, match="no file with certificates"):
        FlowerRuns(SuperLink(address="a:1", root_certificates=tmp_path / "other"), tmp_path / "tuner")


def test_a_superlink_that_nobody_runs_does_not_answer(tmp_path: Path) -> None:
    (tmp_path / "tuner").mkdir()
    runs = FlowerRuns(SuperLink(address=f"127.0.0.1:{free_port()}"), tmp_path / "tuner")
    with pytest.raises(UnreachableError, match="does not answer"):
        runs.check()
    assert RunSight(Outcome.ACTIVE).details == ""
