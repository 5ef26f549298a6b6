"""Settings of a server process, from files and options."""

from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from quantization.errors import ConfigurationError
from server.serve_settings import ServeSettings, check_address


def written(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text)
    return path


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    settings = ServeSettings.read(tmp_path, None)
    assert settings == ServeSettings(home=tmp_path)
    assert settings.registry_place == f"sqlite:///{tmp_path}/registry.db"
    assert (settings.blob_place, settings.delta_place) == (f"{tmp_path}/blobs", f"{tmp_path}/deltas")


def test_the_home_folder_has_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text("[plan]\ncanaries = 7\n")
    assert ServeSettings.read(tmp_path, None).plan.canaries == 7


def test_every_table_is_read_and_options_win(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        [server]
        address = "127.0.0.1:1"
        metrics_address = ""
        blob_folder = "s3://bucket/blobs"
        review_seconds = 5
        [rollout]
        miss_rate = 0.05
        needs_proof = false
        [plan]
        shares = [0.1, 0.5]
        [update]
        max_watchers = 7
        [telemetry]
        report_seconds = 30.0
        [enrolment]
        calls_burst = 3
        """,
    )
    settings = ServeSettings.read(
        tmp_path, path, is_insecure=True, address="127.0.0.1:2", registry_url="sqlite://", blob_folder=None
    )
    assert settings.is_insecure
    assert (settings.server.address, settings.server.metrics_address) == ("127.0.0.1:2", "")
    assert (settings.registry_place, settings.blob_place) == ("sqlite://", "s3://bucket/blobs")
    assert settings.server.review_seconds == 5.0
    assert (settings.rollout.miss_rate, settings.rollout.needs_proof) == (0.05, False)
    assert settings.plan.shares == (0.1, 0.5)
    assert settings.update.max_watchers == 7
    assert settings.telemetry.report_seconds == 30.0
    assert settings.enrolment.calls_burst == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[serve]\n",
            "no table 'serve'; there are certificates, enrolment, plan, rollout, server, telemetry, update",
        ),
        ("server = 1\n", "must be a table"),
        ("[server]\ngarbage_days = 0.5\n", "garbage_days must be 0 or at least 1, not 0.5"),
        ("[server]\nadress = ''\n", "no key 'adress'; there are address, blob_folder"),
        ("[server]\naddress = 9443\n", "address must be text, not 9443"),
        ("[server]\naddress = '9443'\n", "must be host:port"),
        ("[server]\naddress = ''\n", "must be host:port"),
        ("[server]\ngrace_seconds = 0\n", "above 0"),
        ("[rollout]\nneeds_proof = 1\n", "needs_proof must be true or false, not 1"),
        ("[rollout]\nmiss_rate = 2.0\n", "between 0 and 1"),
        ("[rollout]\nstep_seconds = nan\n", "must be a number"),
        ("[plan]\nshares = [0.5, 0.1]\n", "must grow"),
        ("[plan]\nshares = ['all']\n", "must be a number, not 'all'"),
        ("[plan]\ncanaries = 0\n", "1 or more"),
        ("[update]\nworkers = 1.5\n", "workers must be a whole number, not 1.5"),
        ("[telemetry]\nreport_seconds = -1\n", "above 0"),
        ("[server\n", "not TOML"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigurationError) as raised:
        ServeSettings.read(tmp_path, path)
    assert said in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        ServeSettings.read(tmp_path, tmp_path / "none.toml")


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:9443", "localhost:65535", "unix:/run/x:1"])
def test_addresses_are_host_and_port(address: str) -> None:
    assert check_address("address", address) == address


@pytest.mark.parametrize("address", ["", "9443", ":9443", "host:", "host:65536", "host:-1", "host:1²"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="host:port"):
        check_address("address", address)


def test_the_documentation_has_every_setting_with_its_default() -> None:
    text = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    missing = []
    for table in fields(ServeSettings):
        kind = table.default_factory
        if table.name in ("home", "is_insecure") or not isinstance(kind, type):
            continue
        for one in fields(kind):
            if one.default is not MISSING:
                missing += [f"{table.name}.{one.name}"] * (
                    f"| `{one.name}` | {shown(one.default)} |" not in text
                )
    assert missing == []


def shown(value: object) -> str:
    """Return a default as the table of settings has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    if isinstance(value, float | int):
        return f"{value:,.10g}" if value >= 10_000 else f"{value:g}"
    return f"`{value}`" if value else "empty"
