"""A real Prometheus scrapes a real server and a real agent: queries answer, and an alert fires."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fleet_registry
import pytest
from dashboards import ALERTS, RECORDED, queries
from deployed_commands import DEPLOY
from fleet_registry import CLASS
from prometheus_server import die_with_parent, prometheus_server
from server_process import anywhere, server_process

from server.rollout import Rollout

PROGRAMS = Path(sys.executable).parent
RULES = (DEPLOY / "prometheus" / "rules.yml", DEPLOY / "prometheus" / "alerts.yml")


@contextmanager
def agent(state: Path, rollout: Rollout, address: str) -> Iterator[dict[str, str]]:
    """Run an agent while the block runs; yields what it said when it was ready."""
    command = [
        PROGRAMS / "quantfleet-client",
        "run",
        "--state",
        state,
        "--insecure",
        "--device",
        "device-live",
    ]
    command += ["--device-class", CLASS, "--model-digest", rollout.model_digest, "--address", address]
    command += ["--metrics-address", "127.0.0.1:0", "--socket", state / "s"]
    with (state.parent / "agent.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - it calls the kernel and nothing else
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (state.parent / "agent.log").read_text()
        yield json.loads(line)
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_what_an_operator_sees_of_a_live_fleet(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    engine, _, rollout = fleet_registry.open_filled(home, devices=20, now=time.time())
    engine.dispose()
    with (
        server_process(home, *anywhere()) as server,
        agent(tmp_path / "device", rollout, server.address) as device,
        prometheus_server(
            tmp_path / "prometheus",
            {
                "quantfleet-server": [server.addresses["metrics_address"]],
                "quantfleet-client": [device["metrics_address"]],
            },
            RULES,
        ) as prometheus,
    ):
        prometheus.wait_for("sum(up)", 2)
        prometheus.wait_for("min(quantfleet_registry_up)")
        prometheus.wait_for("quantfleet_client_connected")
        prometheus.wait_for("quantfleet_client_target_version > bool 0")
        prometheus.wait_for('sum(quantfleet_update_sent_bytes_total{device_class="x86-vnni"}) > bool 0')
        prometheus.wait_for("quantfleet_update_watchers")

        answers = {(title, query): prometheus.query(query) for title, query in queries()}  # none is refused
        shown = {title for (title, _), found in answers.items() if found}
        assert {"Version", "Phase", "Share of the class", "Accuracy by version", "Bits per weight"} <= shown
        assert {"Drift", "Rounds", "Watchers", "Memory of servers", "Blob store", "Connected"} <= shown
        for expression in (*RECORDED.values(), *(alert["expr"] for alert in ALERTS)):
            prometheus.query(expression)
        assert prometheus.value('quantfleet_rollout_phase{phase="canary"} == 1') == 1
        assert "QuantfleetRolledBack" not in prometheus.firing()

        command = [PROGRAMS / "quantfleet-server", "rollout", "rollback", rollout.rollout_id, "--json"]
        command += ["--insecure", "--server", server.address, "--home", home, "--reason", "a drill"]
        subprocess.run(command, check=True, capture_output=True)
        prometheus.wait_for_alert("QuantfleetRolledBack")
        prometheus.wait_for(f'quantfleet_target_version{{device_class="{CLASS}"}}', 3)
        prometheus.wait_for("quantfleet_client_target_version", 3)
