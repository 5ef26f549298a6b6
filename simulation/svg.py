"""Figures as files: PNG for slides, and SVG that lives inside an HTML page and takes its colours from it.

An inline SVG names nothing outside the page: no document type, no namespaces, no metadata, and identifiers
that are unique in the page.
"""

import re
from io import BytesIO, StringIO

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from simulation.plot_style import AFTER, BEFORE, GRID, INK, LAB, MUTED, SURFACE, plot_style
from simulation.report_folder import MARK

COLOR_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    SURFACE: "var(--surface)",
    BEFORE: "var(--before)",
    AFTER: "var(--after)",
    LAB: "var(--lab)",
}
"""CSS variables that stand for the plots' colours in an inline SVG."""

_DPI = 160
_NOT_DRAWN = re.compile(
    r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>|<!--.*?-->| xmlns(?::\w+)?=\"[^\"]*\"", re.DOTALL
)
_FONT = re.compile(r"font: (?:(?P<weight>bold|\d+) )?(?P<size>[\d.]+)px [^;\"]*")


def to_png(figure: Figure) -> bytes:
    """Return the figure as a PNG of 160 dots per inch; same figure, same bytes."""
    stream = BytesIO()
    with plot_style():
        FigureCanvasAgg(figure)
        figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": MARK})
    return stream.getvalue()


def to_inline_svg(figure: Figure, name: str, title: str) -> str:
    """Return the figure as an SVG element for an HTML page that defines `COLOR_VARIABLES`.

    Args:
        figure: What to draw.
        name: Unique in the page, letters only; starts every identifier.
        title: Read out in place of the picture; escaped HTML.
    """
    stream = StringIO()
    with plot_style(), mpl.rc_context({"svg.hashsalt": name}):
        FigureCanvasSVG(figure)
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = _NOT_DRAWN.sub("", stream.getvalue()).strip()
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace('xlink:href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    svg = _FONT.sub(
        lambda found: f"font-size: {found['size']}px; font-weight: {found['weight'] or 'normal'}", svg
    )
    for color, variable in COLOR_VARIABLES.items():
        svg = svg.replace(color, variable)
    return re.sub(r"<svg ", f'<svg role="img" aria-label="{title}" ', svg, count=1)
