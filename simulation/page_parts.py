"""Pieces of a page that needs nothing but itself; everything from outside goes through `text`."""

import sys
from collections.abc import Iterable, Sequence
from html import escape
from importlib import metadata

from quantization.printable import printable
from simulation.page_style import STYLE
from simulation.report_folder import MARK

_UNBROKEN = 24  # characters
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

Card = tuple[str, str, str, str]
"""One figure of a page: its kind ("before", "after" or ""), the value, what it is, and a note."""


def document(title: str, sections: Sequence[str]) -> str:
    """Return a page of sections, each as HTML, with a title from outside."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="generator" content="{MARK}">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def text(content: str) -> str:
    """Return text from outside as HTML: escaped, on one line, without control characters."""
    return escape(printable(content), quote=True)


def header(facts: str, sentence: str) -> str:
    """Return the head of a page: what was run, and the sentence that sums it up, its percentages unbroken."""
    unbroken = text(sentence).replace(" %", "&nbsp;%")
    return f'<header><p class="facts">{text(facts)}</p><h1>{unbroken}</h1></header>'


def section(title: str, content: str) -> str:
    """Return a section with a title from outside; its content is HTML."""
    return f"<section><h2>{text(title)}</h2>{content}</section>"


def cards(figures: Sequence[Card]) -> str:
    """Return a row of figures; six of them are two rows of three, so that none stands alone."""
    shown = (
        f'<div class="figure {kind}"><strong>{text(value)}</strong><span>{text(label)}</span>'
        f"<small>{text(note)}</small></div>"
        for kind, value, label, note in figures
    )
    kind = "figures thirds" if len(figures) == 6 else "figures"
    return f'<div class="{kind}">{"".join(shown)}</div>'


def plot(title: str, note: str, svg: str | None) -> str:
    """Return a plot with its title and what to see in it; nothing where there is none."""
    if svg is None:
        return ""
    return f'<figure><h2>{text(title)}</h2><p>{text(note)}</p><div class="plot">{svg}</div></figure>'


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; its first column names the row."""
    head = "".join(f'<th scope="col">{text(cell)}</th>' for cell in heads)
    body = "".join(
        f'<tr><th scope="row">{text(first)}</th>{"".join(_cell(cell) for cell in others)}</tr>'
        for first, *others in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(content: str) -> str:
    """Return a cell; a short text stays on one line."""
    if len(content) > _UNBROKEN:
        return f'<td class="long">{text(content)}</td>'
    return f"<td>{text(content).replace(' ', '&nbsp;')}</td>"


def run_again(command: str, wall_seconds: float, result_name: str) -> str:
    """Return the section that says how to run it again, with what, and where the figures are."""
    versions = ", ".join(
        f"{name} {_version(name)}" for name in ("quantfleet", "onnxruntime", "numpy", "flwr")
    )
    python = ".".join(str(part) for part in sys.version_info[:3])
    content = (
        f"<pre>{text(command)}</pre>"
        f"<p>{text(f'{wall_seconds:.1f} seconds with {versions} on Python {python}.')}"
        f" The figures behind the plots are in {result_name}.</p>"
    )
    return section("Run it again", content)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "(not installed)"
