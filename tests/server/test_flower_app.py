"""The app that runs are started with: names, and a configuration."""

import io
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate
from hypothesis import given
from hypothesis import strategies as st

from quantization.errors import ConfigurationError
from server.flower_app import project_file, toml_value, write_app
from server.settings import ConfigValue

CONFIG: dict[str, ConfigValue] = {
    "home": '/srv/"quoted" \\ path',
    "expected-nodes": 3,
    "wait-seconds": 1e-05,
    "fixed-grids": True,
    "drift": "contrast=0.3 ☀",
}


def test_flower_takes_the_app_and_its_bundle_holds_no_code(tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", CONFIG)
    project, _ = load_and_validate(app / "pyproject.toml", check_module=True)
    assert project["tool"]["flwr"]["app"]["config"] == CONFIG
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(app))) as archive:
        assert set(archive.namelist()) == {"pyproject.toml", ".info/CONTENT"}


def test_an_app_is_written_over(tmp_path: Path) -> None:
    write_app(tmp_path, CONFIG)
    write_app(tmp_path, {"tuning-run": "b" * 32})
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["flwr"]["app"]["config"] == {"tuning-run": "b" * 32}
    assert [path.name for path in tmp_path.iterdir()] == ["pyproject.toml"]


@given(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cc", "Cs"])),
        st.integers(-(1 << 60), 1 << 60),
        st.booleans(),
        st.floats(allow_nan=False, allow_infinity=False),
    )
)
def test_every_value_comes_back(value: ConfigValue) -> None:
    back = tomllib.loads(f"key = {toml_value('key', value)}")["key"]
    assert (back, type(back)) == (value, type(value))


@pytest.mark.parametrize("value", ["a\nb", "\x00", float("nan"), float("inf"), None, [1]])
def test_what_a_run_configuration_cannot_hold_is_refused(value: ConfigValue) -> None:
    with pytest.raises(ConfigurationError, match="cannot be in a run configuration"):
        project_file({"key": value})


@pytest.mark.parametrize("key", ["", "Key", 'a"b', "a b", "a\n[x]"])
def test_a_key_that_would_be_something_else_in_toml_is_refused(key: str) -> None:
    with pytest.raises(ConfigurationError, match="no key of a run configuration"):
        project_file({key: 1})
