"""What the three commands say of themselves."""

from collections.abc import Iterator

import click
import pytest
import typer
from typer.testing import CliRunner

from client.cli import app as client_app
from server.cli import app as server_app
from simulation.cli import app as simulation_app


def command_lines(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of a command and of all below it."""
    yield words
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from command_lines(below, (*words, name))


@pytest.mark.parametrize("app", [server_app, client_app, simulation_app])
def test_help_is_plain_text_without_escapes(app: typer.Typer) -> None:
    words_of_all = list(command_lines(typer.main.get_command(app)))
    assert len(words_of_all) > 5
    for words in words_of_all:
        shown = CliRunner().invoke(app, [*words, "--help"])
        assert shown.exit_code == 0, words
        assert shown.output.startswith("Usage: "), words
        assert "\\[" not in shown.output, words
        assert CliRunner().invoke(app, [*words, "-h"]).output == shown.output, words


def test_required_options_and_defaults_are_said() -> None:
    shown = CliRunner().invoke(server_app, ["prepare", "--help"]).output
    assert "[required]" in shown
    assert "[default: mse]" in shown
