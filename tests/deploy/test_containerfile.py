"""The build file of the images is one that a builder takes, and builds what it should."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from deployed_commands import DEPLOY, ENTRYPOINTS, ROOT, Deployed, parse
from dockerfile_parse import DockerfileParser

PATH = DEPLOY / "Containerfile"
INSTRUCTIONS = {
    "FROM", "ARG", "ENV", "RUN", "COPY", "WORKDIR", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT", "CMD"
}  # fmt: skip
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

Steps = list[tuple[str, str]]


def stages(tmp_path: Path) -> dict[str, tuple[str, Steps]]:
    """Return the instructions of each stage by name, with what it starts from."""
    parser = DockerfileParser(str(tmp_path / "Dockerfile"))
    parser.content = PATH.read_text()
    found: dict[str, tuple[str, Steps]] = {}
    for one in parser.structure:
        instruction, value = one["instruction"], one["value"]
        if instruction == "COMMENT":
            continue
        assert instruction in INSTRUCTIONS, instruction
        if instruction == "FROM":
            image, _, name = value.partition(" AS ")
            assert name
            assert name not in found
            found[name] = (image, [])
            steps = found[name][1]
        else:
            steps.append((instruction, value))
    return found


def test_stages_start_from_a_version_or_from_one_another(tmp_path: Path) -> None:
    known: set[str] = set()
    for name, (image, _) in stages(tmp_path).items():
        assert image in known or re.search(r":\d+\.\d+\.\d+[\w.-]*$", image), image
        known.add(name)
    assert {"server", "client"} <= known


@pytest.mark.parametrize("target", sorted(ENTRYPOINTS))
def test_an_image_runs_our_program_as_nobody_special(tmp_path: Path, target: str) -> None:
    image, steps = stages(tmp_path)[target]
    assert image == "base"
    last = dict(steps)
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", last["USER"])
    assert json.loads(last["ENTRYPOINT"]) == [ENTRYPOINTS[target]]
    assert ENTRYPOINTS[target] in PROJECT["project"]["scripts"]
    order = [instruction for instruction, _ in steps]
    assert order.index("USER") < order.index("ENTRYPOINT") < order.index("CMD")
    assert "RUN" not in order  # nothing of the build, no package manager's files


def test_what_an_image_does_by_itself_is_a_command_that_is_there(tmp_path: Path) -> None:
    _, steps = stages(tmp_path)["server"]
    words = (*json.loads(dict(steps)["ENTRYPOINT"]), *json.loads(dict(steps)["CMD"]))
    assert parse(Deployed("Containerfile", words))["address"] == "0.0.0.0:9443"
    _, steps = stages(tmp_path)["client"]
    words = (*json.loads(dict(steps)["ENTRYPOINT"]), *json.loads(dict(steps)["CMD"]))
    assert str(parse(Deployed("Containerfile", words))["state"]) == "/var/lib/quantfleet"


def test_what_is_copied_is_there_and_all_of_the_project_is(tmp_path: Path) -> None:
    _, steps = stages(tmp_path)["build"]
    sources = [word for name, value in steps if name == "COPY" for word in value.split()[:-1]]
    for source in sources:
        assert (ROOT / source).exists(), source
    packages = {name.partition(".")[0] for name in PROJECT["tool"]["setuptools"]["packages"]}
    assert packages <= set(sources)


def test_extras_that_are_installed_are_there() -> None:
    text = PATH.read_text()
    wanted = {name for found in re.findall(r'"\.\[([\w,]+)\]"', text) for name in found.split(",")}
    assert wanted == {"server", "s3", "client"}
    assert wanted <= PROJECT["project"]["optional-dependencies"].keys()


def test_the_build_sees_only_what_it_copies() -> None:
    lines = (DEPLOY / "Containerfile.dockerignore").read_text().split("\n")
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    shown = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = set(re.findall(r"^COPY (?!--from)(.*) \S+$", PATH.read_text(), flags=re.MULTILINE))
    assert shown == {word for line in copied for word in line.split()}
