"""Every command line in deploy/ is one that the real programs take."""

import click
import pytest
from deployed_commands import Deployed, deployed_commands, parse

COMMANDS = deployed_commands()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.place)
def test_the_program_takes_its_command_line(command: Deployed) -> None:
    assert parse(command)


def test_every_part_is_deployed_in_every_way() -> None:
    parts = {(command.place.partition(" ")[0], command.program) for command in COMMANDS}
    for program in ("quantfleet-server", "flower-superlink"):
        assert {place for place, found in parts if found == program} & {"compose.yaml"}
        assert any(place.startswith("quantfleet-") for place, found in parts if found == program)
        assert any(place in ("server.yaml", "superlink.yaml") for place, found in parts if found == program)


@pytest.mark.parametrize(
    "words",
    [
        ("quantfleet-server", "serve", "--no-such-option"),
        ("quantfleet-server", "no-such-command"),
        ("quantfleet-client", "run"),
        ("flower-superlink", "--no-such-option"),
    ],
)
def test_a_wrong_command_line_is_found_out(words: tuple[str, ...]) -> None:
    with pytest.raises(click.UsageError):
        parse(Deployed("nowhere", words))


def test_secrets_are_on_no_command_line() -> None:
    for command in COMMANDS:
        for word in command.words:
            assert "password" not in word.lower()
            assert "://quantfleet:" not in word
