"""Every link and every command line of ours in the documentation."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import typer
from deployed_commands import APPS, Deployed

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "deploy/**/*.md", "benchmarks/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)

_FENCED = re.compile(r"^(```|~~~)[^\n]*\n(.*?)^\1\s*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)<>\s]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_PROGRAM = re.compile(r"(?:^|[\s/(])(quantfleet-(?:server|client|sim)) +([\w-]+)")
_PROMPT = re.compile(r"[\s$]*[\w./-]*")
_ENDS = re.compile(r"\s(?:\||>|2>|&|;)|\s#|\\$|$")


@dataclass(frozen=True)
class Link:
    """A link from one page to a file of the repository.

    Attributes:
        page: That has it.
        target: As it stands there.
    """

    page: Path
    target: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.target}"


def links() -> list[Link]:
    """Return every relative link of the documentation."""
    found = []
    for page in PAGES:
        targets = _LINK.findall(_without_code(page.read_text()))
        found += [Link(page, target) for target in targets if not re.match(r"[a-z]+:", target)]
    return found


def anchors(page: Path) -> set[str]:
    """Return what a link can point at in a page, as GitHub makes it of headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", _FENCED.sub("", page.read_text()), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        number = 0
        while (name := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(name)
    return found | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", page.read_text()))


def typed_commands() -> list[Deployed]:
    """Return the command lines of ours in fenced blocks, without what the shell does with them."""
    found = []
    for page in PAGES:
        for _, block in _FENCED.findall(page.read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                for match in _PROGRAM.finditer(line):
                    is_first = _PROMPT.fullmatch(line[: match.start(1)]) is not None
                    if is_first or match[2] in _commands(match[1]):
                        found.append(_command(page, line[match.start(1) :]))
    return found


def mentioned_commands() -> list[Deployed]:
    """Return the command lines of ours that a sentence names: not all of them are whole."""
    found = []
    for page in PAGES:
        codes = re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", _FENCED.sub("", page.read_text()))
        found += [_command(page, code.replace("\n", " ")) for code in codes if _PROGRAM.match(code)]
    return found


def command_and_rest(words: Sequence[str]) -> tuple[click.Command, list[str]]:
    """Return the command that some words begin with, and the words behind its name."""
    command: click.Command = typer.main.get_command(APPS[words[0]])
    rest = [word.rstrip(",") for word in words[1:]]
    while isinstance(command, click.Group) and rest and rest[0] in command.commands:
        command = command.commands[rest.pop(0)]
    return command, rest


def options(command: click.Command) -> set[str]:
    """Return the options that a command has."""
    own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return own | {"--help", "-h"}


def _commands(program: str) -> set[str]:
    command = typer.main.get_command(APPS[program])
    return set(command.commands) if isinstance(command, click.Group) else set()


def _command(page: Path, text: str) -> Deployed:
    """Return a command line without brackets around what is optional, and with a number in the place of N."""
    whole = text[: next(_ENDS.finditer(text)).start()]
    words = shlex.split(re.sub(r"[\[\]]", "", whole))
    return Deployed(
        f"{page.relative_to(ROOT)}: {whole}", tuple("20" if word == "N" else word for word in words)
    )


def _without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", _FENCED.sub("", text))
