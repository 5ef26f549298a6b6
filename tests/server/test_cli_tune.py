"""The command `quantfleet-server tune`, with a SuperLink in memory."""

import json
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from quantization.arrays import FloatArray
from quantization.device_class import ARM
from quantization.errors import ConfigurationError, RoundFailedError
from quantization.target_name import TargetName
from server.blob_store import BlobStore
from server.cli import app
from server.entries import Model
from server.flower_runs import Outcome, RunSight, SuperLink
from server.home_folder import HomeFolder
from server.keys import KeyFolder
from server.lab import prepare_model
from server.registry import Registry
from server.serve_settings import ServeSettings
from server.settings import ConfigValue
from server.tuner_settings import TunerSettings
from server.tuning_places import Places, opened_facts, opened_tuner
from server.tuning_registry import TuningRegistry
from server.tuning_runs import RunEvent

FAST = """
[tuner]
look-seconds = 0.01
flower-seconds = 0.01
lease-seconds = 1
retry-seconds = 0.01
most-attempts = 2
"""
LINK = ("--superlink-address", "127.0.0.1:1")


class InstantRuns:
    """A SuperLink whose ServerApps are through before anybody looks."""

    url = ""
    does_work = True

    def __init__(self, superlink: SuperLink, folder: Path) -> None:
        self.place = superlink, folder

    def check(self) -> None:
        pass

    def start(self, run_config: Mapping[str, ConfigValue]) -> str:
        if not self.does_work:
            raise RoundFailedError("no app of that kind")
        with TuningRegistry.open(self.url) as tuning:
            run = tuning.run(str(run_config["tuning-run"]))
            tuning.move(tuning.move(run, RunEvent.BEGAN, run_id="7"), RunEvent.COMPLETED)
        return "7"

    def look(self, run_id: str) -> RunSight:
        return RunSight(Outcome.COMPLETED, run_id)

    def stop(self, run_id: str) -> None:
        raise AssertionError(run_id)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    with Registry.open(url) as registry:
        registry.add_model(Model("a" * 64, "digits", 10))
    (tmp_path / "tuner.toml").write_text(FAST)
    monkeypatch.setattr(InstantRuns, "url", url)
    monkeypatch.setattr("server.tuning_places.FlowerRuns", InstantRuns)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield tmp_path
    for number, handler in before.items():
        signal.signal(number, handler)
    structlog.reset_defaults()  # the command's logs went to a stream of the test's


def tune(home: Path, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["tune", "--home", str(home), *arguments])


def test_once_runs_a_generation_and_says_what_came_of_it(home: Path) -> None:
    done = tune(home, *LINK, "--once", "--reason", "dusk", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout[done.stdout.index("{") :])
    assert result["is_completed"]
    assert (result["run"]["run_id"], result["run"]["cause"], result["run"]["state"]) == (
        "7",
        "command",
        "completed",
    )
    assert result["run"]["reason"].endswith("asked: dusk")
    assert result["generations"] == []
    with TuningRegistry.open(InstantRuns.url) as tuning:
        assert tuning.lease_holder("digits") == ""  # given back
    assert "run 7: completed" in tune(home, *LINK, "--once").stdout


def test_once_fails_when_no_attempt_works(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InstantRuns, "does_work", False)
    done = tune(home, *LINK, "--once")
    assert done.exit_code == 1
    assert "failed (no app of that kind)" in done.stdout
    with TuningRegistry.open(InstantRuns.url) as tuning:
        assert [run.attempt for run in tuning.runs("digits")] == [2, 1]


def test_now_asks_the_tuner_that_is_at_work(home: Path) -> None:
    done = tune(home, "--now", "--reason", "dusk", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"request": 1, "model": "digits", "tuner": None}
    assert "no tuner looks after this model" in done.stderr
    with TuningRegistry.open(InstantRuns.url) as tuning:
        assert tuning.waiting_requests("digits")[0].reason == "dusk"
        tuning.lease("digits", "host:1", 60)
    assert "waits for tuner host:1" in tune(home, "--now").stdout


def test_what_cannot_be_used_is_wrong_usage(home: Path) -> None:
    assert tune(home, "--once").exit_code == 2
    assert "say which SuperLink" in tune(home, "--once").stderr
    assert tune(home, *LINK, "--once", "--offline", str(home / "x")).exit_code == 2
    (home / "tuner.toml").write_text("[tuner]\nmodle = 'x'")
    wrong = tune(home, *LINK, "--once")
    assert (wrong.exit_code, "did you mean 'model'" in wrong.stderr) == (2, True)
    with Registry.open(InstantRuns.url) as registry:
        registry.add_model(Model("b" * 64, "cifar", 10))
    (home / "tuner.toml").write_text(FAST)
    several = tune(home, "--now")
    assert (several.exit_code, "cifar, digits" in several.stderr) == (2, True)


def places(home: Path, **server: str) -> Places:
    return Places(ServeSettings.read(home, None, **server))


def test_a_password_does_not_travel_to_devices(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    for url in (
        "postgresql+psycopg://fleet:secret@db.example.org/fleet?sslmode=require",
        "postgresql+psycopg://fleet@db.example.org/fleet?sslmode=require&password=secret",
    ):
        sent = places(home, registry_url=url).run_config()
        assert sent["registry-url"] == "postgresql+psycopg://fleet@db.example.org/fleet?sslmode=require"
    assert "secret" not in caplog.text
    assert places(home).run_config() == {"home": str(home), "registry-url": "", "blob-folder": ""}
    with pytest.raises(ConfigurationError, match="not a database URL"):
        places(home, registry_url="nonsense").run_config()


def test_publishing_needs_a_key_of_targets_or_nothing_that_is_signed(home: Path) -> None:
    settings = TunerSettings.from_toml(FAST.encode(), "f")
    link = SuperLink(address="127.0.0.1:1")
    with opened_facts(places(home)) as facts:
        with opened_tuner(facts, places(home), link, settings) as tuner:
            assert tuner._publish is None
        KeyFolder(home / "keys" / "offline").generate("targets")
        with opened_tuner(facts, places(home), link, settings) as tuner:
            assert tuner._publish is not None
        unsigned = Places(ServeSettings.read(home, None, is_insecure=True))
        with opened_tuner(facts, unsigned, link, settings) as tuner:
            assert (tuner._publish is not None, tuner.model) == (True, "digits")


def test_a_generation_is_signed_before_it_is_published(
    tmp_path: Path, tiny_model: bytes, lab_inputs: FloatArray
) -> None:
    home = tmp_path / "home"
    made = CliRunner().invoke(app, ["keys", "init", "--home", str(home), "--host", "127.0.0.1"])
    assert made.exit_code == 0, made.output
    where = places(home)
    with opened_facts(where) as facts:
        blobs = BlobStore(where.server.blob_place)
        prepared = prepare_model(
            tiny_model, lab_inputs, name="tiny", device_classes=[ARM], registry=facts.registry, blobs=blobs
        )
        (first,) = facts.tuning.outlines(prepared.model.digest, "arm")
        settings = TunerSettings(model="tiny")
        with opened_tuner(facts, where, SuperLink(address="127.0.0.1:1"), settings) as tuner:
            assert tuner._publish is not None
            tuner._publish(first, "generation 0")
        (target,) = facts.rollouts.targets(prepared.model.digest, "arm")
        assert (target.version, target.manifest_digest) == (1, first.manifest_digest)
        signed = HomeFolder(home).metadata.targets()
        assert signed[TargetName(prepared.model.digest, "arm", 1)] == first.manifest_digest
