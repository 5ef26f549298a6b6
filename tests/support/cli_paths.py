"""What the commands of a program make of paths."""

from collections.abc import Iterator
from pathlib import Path

import click
import typer
from typer.models import TyperPath


def unexpanded_paths(app: typer.Typer) -> list[str]:
    """Return the parameters of all commands that leave the `~` in a path."""
    return [
        f"{command} {parameter.name}"
        for command, parameter in _parameters(typer.main.get_command(app), "")
        if isinstance(parameter.type, TyperPath)
        and parameter.process_value(click.Context(click.Command("any")), "~/x") != Path.home() / "x"
    ]


def _parameters(command: click.Command, name: str) -> Iterator[tuple[str, click.Parameter]]:
    if isinstance(command, click.Group):
        for part, inner in command.commands.items():
            yield from _parameters(inner, f"{name} {part}".strip())
    else:
        yield from ((name, parameter) for parameter in command.params)
