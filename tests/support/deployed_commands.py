"""Every command line in deploy/, with the file that has it, and the real parsers that must take it."""

import importlib
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import typer
import yaml

from client.cli import app as client_app
from server.cli import app as server_app
from simulation.cli import app as simulation_app

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
ENTRYPOINTS = {"server": "quantfleet-server", "client": "quantfleet-client"}
"""What the images of deploy/Containerfile run, by target."""

APPS = {
    "quantfleet-server": server_app,
    "quantfleet-client": client_app,
    "quantfleet-sim": simulation_app,
}
"""Our own programs."""


@dataclass(frozen=True)
class Deployed:
    """A command line.

    Attributes:
        place: File, and where in it.
        words: Program and arguments.
    """

    place: str
    words: tuple[str, ...]

    @property
    def program(self) -> str:
        """Name of the program, without its folder."""
        return Path(self.words[0]).name


def unit_sections(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Return the settings of a systemd unit by section, in order; a key may come again."""
    sections: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in path.read_text().splitlines():
        if not line.strip() or line.lstrip().startswith(("#", ";")):
            continue
        if line.startswith("["):
            name = line.strip("[] ")
            sections[name] = []
        else:
            key, equals, value = line.partition("=")
            assert equals, f"{path.name}: {line!r}"
            sections[name].append((key, value))
    return sections


def containers(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the containers of a manifest's pods, those that run first included."""
    spec = manifest.get("spec", {}).get("template", {}).get("spec", {})
    yield from spec.get("initContainers", [])
    yield from spec.get("containers", [])


def manifests() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield every Kubernetes object in deploy/, with its file."""
    for path in MANIFESTS:
        for manifest in yaml.safe_load_all(path.read_text()):
            yield path, manifest


def deployed_commands() -> list[Deployed]:
    """Return every command line of ours, and of Flower, in deploy/."""
    found = []
    for path in UNITS:
        for key, value in unit_sections(path)["Service"]:
            if key.startswith("Exec"):
                found.append(Deployed(f"{path.name} {key}", tuple(shlex.split(value))))
    for path, manifest in manifests():
        for container in containers(manifest):
            words = (*container.get("command", [_entrypoint(container["image"])]), *container.get("args", []))
            found.append(Deployed(f"{path.name} {container['name']}", words))
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        if service["image"].startswith("quantfleet-"):
            words = (*service.get("entrypoint", [_entrypoint(service["image"])]), *service["command"])
            found.append(Deployed(f"compose.yaml {name}", tuple(_substituted(word) for word in words)))
    return found


def parse(command: Deployed) -> dict[str, Any]:
    """Return what the real program understands of a command line; raises `click.UsageError` where it refuses it."""
    if command.program in APPS:
        return _parse_typer(APPS[command.program], command.words[1:])
    return _parse_flower(command)


def _parse_typer(app: typer.Typer, words: Sequence[str]) -> dict[str, Any]:
    command: click.Command = typer.main.get_command(app)
    arguments, context = list(words), None
    while True:
        context = command.make_context(command.name, arguments, parent=context)
        if not isinstance(command, click.Group):
            return dict(context.params)
        _, found, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        command = found


def _parse_flower(command: Deployed) -> dict[str, Any]:
    """Parse with Flower's own parser, which ends the process where it refuses."""
    kind = command.program.removeprefix("flower-")
    module = importlib.import_module(f"flwr.{kind}.cli.flower_{kind}")
    parser = getattr(module, f"_parse_args_run_{kind}")()
    try:
        return vars(parser.parse_args(command.words[1:]))
    except SystemExit as error:
        raise click.UsageError(f"{command.place}: Flower refuses {command.words[1:]}") from error


def _entrypoint(image: str) -> str:
    target = image.partition(":")[0].rpartition("quantfleet-")[2]
    return ENTRYPOINTS[target]


def _substituted(word: str) -> str:
    return re.sub(r"\$\{(\w+)[^}]*\}", "value", word)
