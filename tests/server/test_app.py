"""The ServerApp over a real ClientApp on an in-process grid."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from flwr.app import Context, RecordDict
from flwr.serverapp import ServerApp
from structlog.testing import capture_logs

import server.app
from quantization.arrays import FloatArray
from quantization.device_class import ARM
from quantization.errors import ConfigurationError, NotFoundError
from server.app import ModelSource, configure_logs, main, run
from server.blob_store import BlobStore
from server.generation import Step
from server.lab import prepare_model
from server.registry import Registry
from server.settings import ConfigValue


@dataclass
class Installed:
    """An entry point whose function is at hand."""

    name: str
    source: ModelSource

    def load(self) -> ModelSource:
        return self.source


@pytest.fixture
def tiny_source(monkeypatch: pytest.MonkeyPatch, tiny_model: bytes, lab_inputs: FloatArray) -> list[Context]:
    """Install the model source "tiny"; return the contexts it was called with."""
    calls: list[Context] = []

    def prepare(context: Context, registry: Registry, blobs: BlobStore) -> str:
        calls.append(context)
        prepare_model(
            tiny_model, lab_inputs, name="tiny", device_classes=[ARM], registry=registry, blobs=blobs
        )
        return "tiny"

    monkeypatch.setattr(
        server.app, "entry_points", lambda group: [Installed("tiny", prepare)] if group else []
    )
    return calls


@pytest.fixture
def config(tmp_path: Path) -> dict[str, ConfigValue]:
    return {
        "registry-url": f"sqlite:///{tmp_path / 'run.db'}",
        "blob-folder": str(tmp_path / "run-blobs"),
        "model-name": "",
        "model-source": "tiny",
    }


def context_of(config: dict[str, ConfigValue]) -> Context:
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=config)


def test_flower_finds_the_app() -> None:
    assert isinstance(server.app.app, ServerApp)


def test_a_run_prepares_the_model_and_tunes_as_often_as_asked(
    tiny_source: list[Context], config: dict[str, ConfigValue], make_fleet: Any
) -> None:
    grid = make_fleet(gain=3.0).grid()
    reports = run(grid, context_of({**config, "generations": 2}), clock=grid.clock)
    steps = [report.generations["arm"].step for report in reports]
    assert steps == [Step.PUBLISHED, Step.UNCHANGED]
    assert len(tiny_source) == 1


@pytest.mark.usefixtures("tiny_source")
def test_a_second_run_goes_on_with_the_registry_of_the_first(
    config: dict[str, ConfigValue], make_fleet: Any
) -> None:
    fleet = make_fleet(gain=3.0)
    run(fleet.grid(), context_of(config))
    (report,) = run(fleet.grid(), context_of(config))
    assert report.generations["arm"].number == 2


@pytest.mark.usefixtures("tiny_source")
def test_what_a_run_brought_is_logged_and_nothing_is_printed(
    config: dict[str, ConfigValue], make_fleet: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = make_fleet(gain=3.0).grid()
    with capture_logs() as logs:
        main(grid, context_of(config))
    closed = [entry for entry in logs if entry["event"] == "generation_closed"]
    assert [(entry["device_class"], entry["step"]) for entry in closed] == [("arm", "published")]
    (started,) = [entry for entry in logs if entry["event"] == "run_started"]
    assert started["registry"] == config["registry-url"]
    assert [entry["model"] for entry in logs if entry["event"] == "model_found"] == ["tiny"]
    assert capsys.readouterr().out == ""


def test_logs_go_to_stderr_as_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    structlog.reset_defaults()
    try:
        configure_logs()
        structlog.get_logger().info("generation_closed", generation=1, reason="two words")
        captured = capsys.readouterr()
    finally:
        structlog.reset_defaults()
    assert captured.out == ""
    assert "event=generation_closed" in captured.err
    assert 'reason="two words"' in captured.err
    assert captured.err.count("\n") == 1


def test_a_run_that_fails_says_why_and_is_marked_as_failed(
    config: dict[str, ConfigValue], make_fleet: Any
) -> None:
    with capture_logs() as logs, pytest.raises(ConfigurationError):
        main(make_fleet().grid(), context_of({**config, "generations": 0}))
    assert logs == [
        {
            "event": "run_failed",
            "log_level": "error",
            "error": "ConfigurationError",
            "reason": "generations is 0; it must be 1 or more",
        }
    ]


@pytest.mark.usefixtures("tiny_source")
def test_a_model_source_that_is_not_installed_is_named(
    config: dict[str, ConfigValue], make_fleet: Any
) -> None:
    with pytest.raises(
        ConfigurationError, match="model-source 'other' is not installed; installed are: tiny"
    ):
        run(make_fleet().grid(), context_of({**config, "model-source": "other"}))


def test_without_a_source_the_registry_must_have_the_model(
    config: dict[str, ConfigValue], make_fleet: Any
) -> None:
    with pytest.raises(NotFoundError, match="no model named 'tiny'; it has: none"):
        run(make_fleet().grid(), context_of({**config, "model-source": "", "model-name": "tiny"}))
