"""Settings from a Flower run configuration."""

import json
from pathlib import Path

import pytest

from quantization.errors import ConfigurationError
from server.settings import CohortSettings, ConfigValue, ServerSettings, to_json
from strategies.rounds import RoundSettings


def test_an_empty_configuration_gives_the_defaults() -> None:
    assert ServerSettings.from_run_config({}) == ServerSettings()


def test_every_part_takes_its_keys_and_leaves_the_others() -> None:
    settings = ServerSettings.from_run_config(
        {
            "registry-url": "sqlite:///other.db",
            "generations": 3,
            "expected-nodes": 20,
            "sample-fraction": 0.5,
            "deadline-seconds": 90,
            "quorum-fraction": 0.75,
            "task": "digits",
        }
    )
    assert settings.registry_url == "sqlite:///other.db"
    assert settings.generations == 3
    assert settings.cohort == CohortSettings(expected_nodes=20, sample_fraction=0.5)
    assert settings.rounds == RoundSettings(quorum_fraction=0.75, deadline_seconds=90.0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("generations", 0, "generations is 0; it must be 1 or more"),
        ("generations", "two", "generations must be of type int, not 'two'"),
        ("generations", True, "generations must be of type int, not True"),
        ("sample-fraction", 0.0, "sample-fraction is 0.0"),
        ("sample-fraction", float("nan"), "sample-fraction must be of type float, not nan"),
        ("wait-seconds", -1, "wait-seconds is -1.0"),
        ("expected-nodes", -1, "expected-nodes is -1"),
        ("quorum-fraction", 1.5, "quorum"),
        ("deadline-seconds", 0.0, "deadline"),
        ("model-name", "", "model-name is ''"),
        ("home", "", "home is ''"),
        ("seed", -3, "seed is -3"),
        ("batch-size", 0, "batch-size is 0"),
        ("resume-seconds", -1.0, "resume-seconds is -1.0"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(key: str, value: ConfigValue, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ServerSettings.from_run_config({key: value})


def test_what_is_not_placed_lies_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = ServerSettings.from_run_config({"home": "~/tuning", "blob-folder": "memory://blobs"})
    assert settings.registry_place == f"sqlite:///{tmp_path}/tuning/registry.db"
    assert settings.blob_place == "memory://blobs"


def test_a_model_source_names_its_model_itself() -> None:
    assert ServerSettings.from_run_config({"model-source": "simulated", "model-name": ""}).model_name == ""


def test_the_record_of_a_generation_holds_what_decided_its_course_and_no_addresses() -> None:
    settings = ServerSettings(cohort=CohortSettings(seed=7), rounds=RoundSettings(deadline_seconds=5.0))
    record = json.loads(to_json(settings))
    assert record["cohort"]["seed"] == 7
    assert record["rounds"]["deadline_seconds"] == 5.0
    assert settings.home not in to_json(settings)
