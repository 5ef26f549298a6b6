"""The documentation can be followed: links lead somewhere, commands are taken, settings have those defaults."""

import dataclasses
import re
from typing import Any, get_type_hints

import click
import pytest
from deployed_commands import Deployed, parse
from documented_commands import (
    PAGES,
    ROOT,
    Link,
    anchors,
    command_and_rest,
    links,
    mentioned_commands,
    options,
    typed_commands,
)

from client.settings import DeviceSettings

LINKS, TYPED, MENTIONED = links(), typed_commands(), mentioned_commands()
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def test_there_is_something_to_follow() -> None:
    assert len(PAGES) > 25
    assert min(len(LINKS), len(TYPED), len(MENTIONED)) > 20


@pytest.mark.parametrize("link", LINKS, ids=str)
def test_a_link_leads_somewhere(link: Link) -> None:
    path, _, anchor = link.target.partition("#")
    target = (link.page.parent / path).resolve() if path else link.page
    assert target.exists(), f"{link}: there is no {target}"
    assert target.is_relative_to(ROOT)
    if anchor:
        assert anchor in anchors(target), f"{link}: {target.name} has {sorted(anchors(target))}"


@pytest.mark.parametrize("command", TYPED, ids=lambda command: command.place)
def test_a_command_that_is_to_be_typed_is_one(command: Deployed) -> None:
    assert isinstance(parse(command), dict)


@pytest.mark.parametrize("command", MENTIONED, ids=lambda command: command.place)
def test_a_command_that_is_named_has_that_name_and_those_options(command: Deployed) -> None:
    found, rest = command_and_rest(command.words)
    named = {word.partition("=")[0] for word in rest if word.startswith("--") and word != "--"}
    assert named <= options(found)
    assert not isinstance(found, click.Group) or not rest or rest[0].startswith("-")


def test_anchors_are_those_of_headings(tmp_path: Any) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `Name` of (two)\n\n```\n# no heading\n```\n## Twice\n## Twice\n")
    assert anchors(page) == {"a-name-of-two", "twice", "twice-1"}


def device_settings() -> dict[tuple[str, str], str]:
    """Return by table and key the default that the page for owners of devices states."""
    text = (ROOT / "docs" / "device.md").read_text().partition("## Settings")[2].partition("\n## ")[0]
    found, table = {}, ""
    for row in re.findall(r"^\| (.*) \|$", text, re.MULTILINE)[2:]:
        first, keys, defaults, _ = (cell.strip() for cell in re.split(r"(?<!\\)\|", row))
        table = first.strip("`") or table
        names = re.findall(r"`(\w+)`", keys)
        stated = re.split(r",\s", defaults) if len(names) > 1 else [defaults]
        assert len(stated) == len(names), row
        found.update({(table, name): value for name, value in zip(names, stated, strict=True)})
    return found


def value_of(stated: str) -> object:
    """Return the value that a text such as "4 MiB", "10,000", "false" or "`latest`" states."""
    text = stated.strip("`").replace(",", "")
    number, _, unit = text.partition(" ")
    if unit in UNITS:
        return int(number) * UNITS[unit]
    known: dict[str, object] = {"true": True, "false": False, "": ()}
    return known[text] if text in known else float(text) if re.fullmatch(r"[\d.]+", text) else text


def test_settings_of_a_device_have_the_defaults_that_owners_read() -> None:
    actual: dict[tuple[str, str], object] = {}
    whole = DeviceSettings("arm")
    for name, hint in get_type_hints(DeviceSettings).items():
        if dataclasses.is_dataclass(hint):
            part = getattr(whole, name)
            actual |= {(name, one.name): getattr(part, one.name) for one in dataclasses.fields(part)}
        else:
            actual["device", name.replace("device_class", "class")] = getattr(whole, name)
    stated = {key: value_of(text) for key, text in device_settings().items()}
    actual[("device", "class")], actual[("device", "model_digest")] = (), ()  # without defaults
    assert stated == actual
