"""The compose file follows the Compose Specification, and what it names is there."""

import json
import re
from pathlib import Path
from typing import Any

import check_jsonschema
import jsonschema
import pytest
import yaml
from deployed_commands import DEPLOY, ROOT

PATH = DEPLOY / "compose.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(PATH.read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if service["image"].startswith("quantfleet-"))


def schema() -> dict[str, Any]:
    folder = Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor"
    found: dict[str, Any] = json.loads((folder / "compose-spec.json").read_text())
    return found


def test_it_follows_the_specification() -> None:
    kind = jsonschema.validators.validator_for(schema())
    kind(schema()).validate(COMPOSE)


def test_the_specification_finds_a_mistake() -> None:
    wrong = {**COMPOSE, "services": {"server": {"imagee": "x"}}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validators.validator_for(schema())(schema()).validate(wrong)


def test_every_part_is_there() -> None:
    assert {"server", "tuner", "superlink", "database", "store", "prometheus", "grafana"} <= SERVICES.keys()


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_what_a_service_names_is_there(name: str) -> None:
    service = SERVICES[name]
    for needed in service.get("depends_on", ()):
        assert needed in SERVICES
    for volume in service.get("volumes", ()):
        source = volume.split(":")[0]
        if source.startswith("."):
            assert (DEPLOY / source).exists(), source
        else:
            assert source in COMPOSE["volumes"]
    if "build" in service:
        assert (PATH.parent / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).exists()


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_images_have_a_version(name: str) -> None:
    image = SERVICES[name]["image"]
    if name in OURS:
        assert re.fullmatch(r"quantfleet-(server|client):latest", image)  # built here
    else:
        assert re.search(r":(?!latest$)[\w.-]+$", image)


@pytest.mark.parametrize("name", OURS)
def test_our_services_are_locked_down(name: str) -> None:
    service = SERVICES[name]
    assert service["user"] == "10001:10001"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]


def test_secrets_come_from_the_environment() -> None:
    text = PATH.read_text()
    wanted = set(re.findall(r"\$\{(\w+)", text))
    example = (DEPLOY / "compose.env.example").read_text()
    assert wanted == set(re.findall(r"^(\w+)=", example, flags=re.MULTILINE))
    for name in wanted:
        assert re.search(rf"\$\{{{name}:\?", text), f"{name} has no message for where it is missing"


def test_who_is_waited_for_says_when_it_is_healthy() -> None:
    for service in SERVICES.values():
        needed = service.get("depends_on", {})
        for name, condition in needed.items() if isinstance(needed, dict) else ():
            if condition["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[name]
            if condition["condition"] == "service_completed_successfully":
                assert SERVICES[name]["restart"] == "no"
