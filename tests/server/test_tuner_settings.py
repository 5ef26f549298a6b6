"""Settings of the tuner, from TOML."""

from pathlib import Path

import pytest

from quantization.errors import ConfigurationError
from server.tuner_settings import TunerSettings, read_settings

EVERYTHING = b"""
[server]
address = "127.0.0.1:1"

[tuner]
model = "digits"
every-hours = 12
start-drop = 0.05
window-samples = 100
drift-watched = false
look-seconds = 1

[tuner.run]
expected-nodes = 3
drift = "contrast=0.3"
"""


def test_every_key_is_read_and_other_tables_are_left_alone() -> None:
    settings = TunerSettings.from_toml(EVERYTHING, "f.toml")
    assert settings.model == "digits"
    assert settings.triggers.every_seconds == 12 * 3600
    assert not settings.triggers.is_drift_watched
    assert (settings.drift.start_drop, settings.drift.window_samples) == (0.05, 100)
    assert settings.pace.look_seconds == 1.0
    assert dict(settings.run) == {"expected-nodes": 3, "drift": "contrast=0.3"}


def test_an_option_goes_before_the_file() -> None:
    settings = TunerSettings.from_toml(EVERYTHING, "f.toml")
    assert settings.every_hours(0).of_model("cifar").triggers.every_seconds == 0
    assert settings.every_hours(None).of_model("") == settings


def test_a_file_in_the_home_folder_is_read_if_it_is_there(tmp_path: Path) -> None:
    assert read_settings(tmp_path, None) == TunerSettings()
    (tmp_path / "tuner.toml").write_bytes(EVERYTHING)
    assert read_settings(tmp_path, None).model == "digits"
    with pytest.raises(ConfigurationError, match=r"other\.toml cannot be read"):
        read_settings(tmp_path, tmp_path / "other.toml")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (b"[tuner]\nstart-drp = 0.1", "unknown key 'start-drp' in .tuner.; did you mean 'start-drop'"),
        (b"[tuner]\nstart-drop = 0.001", "stop-drop"),
        (b"[tuner]\nwindow-samples = 1.5", "whole number"),
        (b"[tuner]\ndrift-watched = 1", "true or false"),
        (b"[tuner]\nlook-seconds = 'x'", "must be a number"),
        (b"[tuner]\nlook-seconds = inf", "must be a number"),
        (b"[tuner]\nlease-seconds = 2", "three times"),
        (b"[tuner]\nmodel = 3", "must be a name"),
        (b"[tuner.run]\ntuning-run = 'x'", "which the tuner sets itself"),
        (b"[tuner.run]\nx = [1]", "texts, numbers and booleans"),
        (b"[tuner", "is not TOML"),
        (b"tuner = 1", "must be a table"),
    ],
)
def test_what_cannot_be_used_is_named_with_the_file(table: bytes, said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"f.toml.*{said}"):
        TunerSettings.from_toml(table, "f.toml")
