"""The queries of the Grafana dashboard and of the alerts, and the metrics that they name."""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml
from deployed_commands import DEPLOY

DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "quantfleet.json").read_text())
ALERTS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
RECORDED: dict[str, str] = {
    rule["record"]: rule["expr"]
    for group in yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
}
_VARIABLES = {"$device_class": ".*", "$__rate_interval": "1m"}


def panels() -> Iterator[dict[str, Any]]:
    """Yield every panel that shows something."""
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "row":
            yield panel
        yield from panel.get("panels", ())


def queries() -> list[tuple[str, str]]:
    """Return every query of the dashboard with the panel that asks it, variables replaced as Grafana does."""
    found = [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]
    found += [(one["name"], one["expr"]) for one in DASHBOARD["annotations"]["list"]]
    return [(title, _replaced(expression)) for title, expression in found]


def metrics_in(expression: str) -> set[str]:
    """Return the names of our metrics in an expression, those of recorded rules resolved."""
    found = set(re.findall(r"(?<![\w:])quantfleet_\w+", expression))
    for name in re.findall(r"[a-z_]+:quantfleet_\w+:\w+", expression):
        found |= metrics_in(RECORDED[name])
    return found


def _replaced(expression: str) -> str:
    for name, value in _VARIABLES.items():
        expression = expression.replace(name, value)
    return expression
