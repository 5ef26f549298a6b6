"""Alerts and rules are ones that Prometheus takes, each alert is tested, and each is explained."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from dashboards import ALERTS
from deployed_commands import DEPLOY, ROOT
from prometheus_server import prometheus_tool

FOLDER = DEPLOY / "prometheus"
FILES = ("alerts_test.yml", "alerts_days_test.yml")
TESTS = [test for name in FILES for test in yaml.safe_load((FOLDER / name).read_text())["tests"]]
NAMES = [alert["alert"] for alert in ALERTS]


def run_tool(*arguments: str) -> str:
    result = subprocess.run(
        [prometheus_tool(), *arguments], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_prometheus_takes_the_rules() -> None:
    assert f"{len(ALERTS)} rules found" in run_tool("check", "rules", "alerts.yml", "rules.yml")


def test_prometheus_takes_the_settings() -> None:
    run_tool("check", "config", "prometheus.yml")


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_alerts_are_quiet_and_fire_where_they_should(name: str) -> None:
    assert "SUCCESS" in run_tool("test", "rules", name)


def test_the_tool_finds_a_mistake(tmp_path: Path) -> None:
    text = (FOLDER / "alerts.yml").read_text()
    assert "quantfleet_registry_up == 0" in text
    tests = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())
    tests["tests"] = [one for one in tests["tests"] if "QuantfleetRegistryAway" in one["name"]]
    (tmp_path / "alerts_test.yml").write_text(yaml.safe_dump(tests))
    (tmp_path / "rules.yml").write_text((FOLDER / "rules.yml").read_text())
    (tmp_path / "alerts.yml").write_text(
        text.replace("quantfleet_registry_up == 0", "quantfleet_registry_up == 1")
    )
    result = subprocess.run(
        [prometheus_tool(), "test", "rules", "alerts_test.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert "QuantfleetRegistryAway" in result.stdout + result.stderr


@pytest.mark.parametrize("name", NAMES)
def test_an_alert_is_tested_quiet_and_firing(name: str) -> None:
    found = [one for test in TESTS for one in test["alert_rule_test"] if one["alertname"] == name]
    assert sorted(bool(one["exp_alerts"]) for one in found) == [False, True]


@pytest.mark.parametrize("alert", ALERTS, ids=NAMES)
def test_an_alert_says_what_is_wrong_and_where_to_read_on(alert: dict[str, dict[str, str]]) -> None:
    annotations = alert["annotations"]
    assert set(annotations) == {"summary", "description", "runbook_url"}
    assert alert["labels"]["severity"] in ("critical", "warning")
    page, _, anchor = annotations["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), flags=re.MULTILINE)
    assert anchor == str(alert["alert"]).lower()
    assert anchor in {heading.strip("`").lower() for heading in headings}


def test_there_are_enough_alerts_and_no_name_twice() -> None:
    assert len(set(NAMES)) == len(NAMES) >= 15
