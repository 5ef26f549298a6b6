from dataclasses import replace
from pathlib import Path

import pytest

from quantization.errors import ConfigurationError
from simulation.tasks.model_cache import ModelKey, cached_model, default_cache_dir

KEY = ModelKey("digits", 1, 0, "00")


class Maker:
    """Makes another model every time, and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> bytes:
        self.calls += 1
        return b"model %d" % self.calls


def test_a_model_is_made_once(tmp_path: Path) -> None:
    make = Maker()
    assert [cached_model(tmp_path / "new", KEY, make) for _ in range(3)] == [b"model 1"] * 3
    assert make.calls == 1


@pytest.mark.parametrize(
    "changes", [{"task": "har"}, {"recipe": 2}, {"seed": 1}, {"data_digest": "01"}, {"variant": "a"}]
)
def test_everything_a_model_depends_on_makes_another_entry(tmp_path: Path, changes: dict[str, str]) -> None:
    make = Maker()
    cached_model(tmp_path, KEY, make)
    assert cached_model(tmp_path, replace(KEY, **changes), make) == b"model 2"  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", [b"", b"model 2", b"model 1 and more"])
def test_a_damaged_entry_is_made_again(tmp_path: Path, damage: bytes) -> None:
    make = Maker()
    cached_model(tmp_path, KEY, make)
    (tmp_path / KEY.file_name).write_bytes(damage)
    assert cached_model(tmp_path, KEY, make) == b"model 2"
    assert cached_model(tmp_path, KEY, make) == b"model 2"


def test_an_entry_without_its_digest_is_made_again(tmp_path: Path) -> None:
    make = Maker()
    cached_model(tmp_path, KEY, make)
    (digest,) = tmp_path.glob("*.sha256")
    digest.unlink()
    assert cached_model(tmp_path, KEY, make) == b"model 2"


def test_nothing_but_the_entry_is_left_behind(tmp_path: Path) -> None:
    cached_model(tmp_path, KEY, Maker())
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {KEY.file_name, f"{KEY.file_name}.sha256"}


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="give another --cache-dir"):
        cached_model(tmp_path / "file" / "folder", KEY, Maker())


def test_the_users_own_folder_is_done_without_if_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert default_cache_dir() == tmp_path / "file" / "quantfleet" / "models"
    assert cached_model(None, KEY, Maker()) == b"model 1"
