import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from agents import INPUTS, NEW, OLD, running_agent, version_of
from artifacts import example
from cli_paths import unexpanded_paths
from live_updates import LiveUpdates
from memory_link import MemoryLink
from typer.testing import CliRunner, Result
from waiting import eventually

from client.api import RemoteModel
from client.cli import app
from client.inference_service import InferenceServer
from client.settings import LocalSettings
from client.state import StateFolder
from quantization.artifact import Artifact

ROOT = Path(__file__).parents[2]

CONFIG = """
[device]
class = "x86-vnni"
[limits]
free_bytes = 0
[trial]
least_seconds = 0
least_runs = 2
latency_ratio = 1e9
[report]
interval_seconds = 0.05
"""


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def installed(folder: Path, *artifacts: Artifact) -> Path:
    """Return a state folder with these artifacts installed, one after another."""
    with StateFolder(folder) as state:
        for version, artifact in enumerate(artifacts, 1):
            for digest, stored in artifact.blobs.items():
                if not state.has_blob(digest):
                    state.store_blob(digest, stored)
            state.write_manifest(artifact.manifest, version)
    return folder


@pytest.fixture
def short() -> Iterator[Path]:
    """Return a folder whose path is short enough for a socket."""
    with TemporaryDirectory(dir="/tmp") as path:
        yield Path(path)


@pytest.mark.parametrize("command", [[], ["enroll"], ["run"], ["status"], ["rollback"], ["bench"]])
def test_every_command_explains_itself(command: list[str]) -> None:
    shown = call(*command, "--help")
    assert shown.exit_code == 0
    assert "Usage:" in shown.stdout


def test_status_of_a_device_whose_agent_does_not_run(tmp_path: Path) -> None:
    folder = installed(tmp_path / "state", OLD, NEW)
    shown = json.loads(call("status", "--state", folder, "--json").stdout)
    assert shown["serving"] == {"version": 2, "manifest_digest": NEW.manifest.digest()}
    assert shown["fallback"] == {"version": 1, "manifest_digest": OLD.manifest.digest()}
    assert (shown["phase"], shown["is_running"], shown["generation"]) == ("confirmed", False, 1)
    assert shown["model_digest"] == OLD.manifest.model_digest
    table = call("status", "--state", folder).stdout
    assert "version 2" in table
    assert "does not run" in table


def test_going_back_without_an_agent(tmp_path: Path) -> None:
    folder = installed(tmp_path / "state", OLD, NEW)
    assert json.loads(call("rollback", "--state", folder, "--json").stdout)["version"] == 1
    again = call("rollback", "--state", folder)
    assert (again.exit_code, again.stdout) == (1, "")
    assert "no earlier artifact" in again.stderr
    assert json.loads(call("status", "--state", folder, "--json").stdout)["refused_version"] == 2


def test_status_and_going_back_through_the_agent(short: Path) -> None:
    link = MemoryLink()
    link.publish(OLD, 1)
    with (
        running_agent(short / "state", link) as agent,
        InferenceServer(agent, short / "state" / "inference.sock", LocalSettings()),
    ):
        eventually(lambda: version_of(agent) == 1)
        link.publish(NEW, 2)
        eventually(lambda: version_of(agent) == 2 and agent.status().phase == "confirmed")
        shown = json.loads(call("status", "--state", short / "state", "--json").stdout)
        assert (shown["is_running"], shown["device"], shown["serving"]["version"]) == (True, "device-1", 2)
        table = call("status", "--state", short / "state").stdout
        assert "connected" in table
        done = call("rollback", "--state", short / "state")
        assert done.exit_code == 0
        assert "version 1 serves" in done.stdout
        assert agent.infer(INPUTS).version == 1


def test_an_agent_that_the_socket_does_not_reach_is_not_overridden(tmp_path: Path) -> None:
    with running_agent(installed(tmp_path / "state", OLD, NEW), None) as agent:
        refused = call("rollback", "--state", tmp_path / "state")
        assert refused.exit_code == 2
        assert "in use by another process" in refused.stderr
        shown = json.loads(call("status", "--state", tmp_path / "state", "--json").stdout)
        assert shown["is_running"]
        assert "does not answer" in shown["last_error"]
        assert agent.infer(INPUTS).version == 2


def test_a_bench_measures_the_installed_model(tmp_path: Path) -> None:
    folder = installed(tmp_path / "state", OLD)
    shown = json.loads(call("bench", "--state", folder, "--runs", 20, "--json").stdout)
    for name in ("int8", "plain"):
        latency = shown[name]
        assert 0 < latency["p50_seconds"] <= latency["p95_seconds"] <= latency["p99_seconds"]
    assert (shown["runs"], shown["device_class"], shown["generation"]) == (20, "x86-vnni", 0)
    assert shown["swap_seconds"] > 0
    assert shown["rss_bytes"] <= shown["peak_rss_bytes"]
    table = call("bench", "--state", folder, "--runs", 20).stdout
    assert [line.split()[0] for line in table.splitlines()] == [
        "model", "runs", "int8", "float", "ratio", "swap", "memory"
    ]  # fmt: skip


def test_a_bench_of_an_artifact_without_observation_graph(tmp_path: Path) -> None:
    folder = installed(tmp_path / "state", example("mlp").artifact(is_observed=False))
    assert json.loads(call("bench", "--state", folder, "--runs", 10, "--json").stdout)["plain"] is None
    assert "no observation graph" in call("bench", "--state", folder, "--runs", 10).stdout


@pytest.mark.parametrize("command", ["status", "rollback", "bench"])
def test_what_is_no_state_folder_is_refused_and_not_made(tmp_path: Path, command: str) -> None:
    refused = call(command, "--state", tmp_path / "none")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "no state folder" in refused.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("command", ["rollback", "bench"])
def test_an_empty_state_folder_has_nothing_installed(tmp_path: Path, command: str) -> None:
    refused = call(command, "--state", installed(tmp_path / "state"))
    assert refused.exit_code == 1
    assert "nothing is installed" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "class is missing"),
        (["--device-class", "a"], "quantfleet-client enroll"),
        (["--device-class", "a", "--insecure"], "give --address and --device"),
        (["--device-class", "a", "--device", "x"], "goes with --insecure alone"),
        (
            ["--device-class", "a", "--insecure", "--device", "x", "--address", "192.0.2.1:1"],
            "not a loopback",
        ),
        (
            ["--device-class", "a", "--insecure", "--device", "x", "--address", "127.0.0.1:1"],
            "--model-digest",
        ),
        (["--device-class", "a", "--offline", "--log-level", "loud"], "--log-level is debug"),
        (["--config", "/no/such/file.toml"], "cannot be read"),
        (["--device-class", "a", "--offline", "--socket", "/no/such/folder/s"], "give a path in a folder"),
    ],
)
def test_an_agent_that_cannot_start_says_why(short: Path, arguments: list[str], message: str) -> None:
    refused = call("run", "--state", short / "state", *arguments)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert message in " ".join(refused.stderr.split())


def test_an_enrolment_that_cannot_be_says_why(tmp_path: Path) -> None:
    refused = call("enroll", "--state", tmp_path, "--server", "127.0.0.1:1", "--token", "nonsense")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "token" in refused.stderr


@contextmanager
def agent_process(folder: Path, *arguments: object) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Yield a process that runs an agent, and what it said when it was ready."""
    config = folder / "client.toml"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "client.cli", "run", "--state", folder / "state", "--config", config]
    with subprocess.Popen(
        [str(part) for part in (*command, *arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


@pytest.mark.slow
def test_an_agent_in_a_process_of_its_own_serves_upgrades_and_ends_cleanly(short: Path) -> None:
    with LiveUpdates(short / "server") as updates:
        updates.publish(OLD)
        connection = ("--insecure", "--device", "d", "--address", updates.address)
        options = (
            *connection,
            "--model-digest",
            OLD.manifest.model_digest,
            "--metrics-address",
            "127.0.0.1:0",
        )
        with agent_process(short, *options) as (process, ready):
            assert ready["device"] == "d"
            assert ready["metrics_address"].startswith("127.0.0.1:")
            with RemoteModel(ready["socket"]) as model:
                eventually(lambda: model.status().serving)
                updates.publish(NEW)
                eventually(lambda: model.infer(INPUTS).version == 2)
                eventually(lambda: model.infer(INPUTS).version == 2 and model.status().phase == "confirmed")
                samples = model.status().samples
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "")
        assert "agent_stopped" in err
        assert "Traceback" not in err
    assert not Path(ready["socket"]).exists()
    left = json.loads(call("status", "--state", short / "state", "--json").stdout)
    assert left["serving"]["version"] == 2
    with agent_process(short, "--offline") as (_, ready), RemoteModel(ready["socket"]) as model:
        assert model.infer(INPUTS).version == 2
        assert np.isfinite(model.infer(INPUTS).output).all()
        kept = model.status().spooled_reports
    assert updates.samples(1) + updates.samples(2) <= samples
    assert kept >= 0


@pytest.mark.slow
def test_a_second_agent_on_the_folder_ends_with_an_error(short: Path) -> None:
    installed(short / "state", OLD)
    with agent_process(short, "--offline") as (_, ready):
        refused = call("run", "--state", short / "state", "--device-class", "x86-vnni", "--offline")
        assert refused.exit_code == 2
        assert "in use by another process" in refused.stderr
        with RemoteModel(ready["socket"]) as model:
            assert model.infer(INPUTS).version == 1


def test_settings_lie_in_the_state_folder_if_no_other_file_is_named(short: Path) -> None:
    state = installed(short / "state")
    path = Path(state) / "client.toml"
    refused = call("run", "--state", state)
    assert f"{path} (which is not there): the device's class is missing" in " ".join(refused.stderr.split())
    path.write_text("[device]\nthreads = 1\n")
    refused = call("run", "--state", state)
    assert f"{path}: the device's class is missing; give --device-class, or set `class`" in " ".join(
        refused.stderr.split()
    )
    path.write_text('[device]\nclass = "a"\n')
    refused = call("run", "--state", state, "--insecure", "--device", "x", "--address", "127.0.0.1:1")
    assert refused.exit_code == 2
    assert "set `model_digest` in the table [device]" in " ".join(refused.stderr.split())


def test_every_path_may_begin_at_home() -> None:
    assert unexpanded_paths(app) == []
