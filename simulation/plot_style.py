"""How plots look: one width, few lines, two colours.

Colours mean the same everywhere: orange is the frozen model or the lab's view of the field, blue is the tuned
one, grey is the lab. Orange and blue are the Okabe-Ito pair that stays apart in every common colour blindness.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl

INK, MUTED, GRID, SURFACE = "#1b1f24", "#5d6673", "#dfe3e8", "#fefefe"
BEFORE, AFTER, LAB = "#d55e00", "#0072b2", "#8a93a0"
"""Used nowhere else in a figure, so that a page can exchange them for its own (see `simulation.svg`)."""

WIDTH = 9.0  # inches

_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "figure.facecolor": SURFACE,
    "font.family": "sans-serif",
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "savefig.facecolor": "auto",
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # a layer may be named "$x_{"
    "xtick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.color": MUTED,
    "ytick.major.size": 0,
}


@contextmanager
def plot_style() -> Iterator[None]:
    """Hold matplotlib to this module's style: while a figure is drawn, and while it is saved.

    A name may hold characters that its font lacks: a PNG shows boxes for them, and a browser has more fonts.
    """
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield
