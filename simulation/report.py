"""The report of one experiment: a page that needs nothing but itself, its plots as PNG, and the result as JSON.

Rules:

1. Everything that is not written in this package is escaped: names of tasks, layers and files, and reasons.
2. The page names no address, and its content policy forbids loading anything, so a hostile name cannot either.
3. The same result gives the same bytes.
"""

import json
from pathlib import Path

from simulation.page import PLOT_TITLES, render_page
from simulation.plots import draw_plots
from simulation.report_folder import PAGE_NAME, RESULT_NAME, prepare_folder, write_files
from simulation.result import ExperimentResult
from simulation.scenario import Scenario
from simulation.svg import to_inline_svg, to_png


def write_report(result: ExperimentResult, scenario: Scenario, folder: Path) -> Path:
    """Write report.html, the plots as PNG and result.json, and return where the page is.

    Args:
        result: What was measured.
        scenario: What was simulated; the page says how to run it again.
        folder: Made if absent.

    Raises:
        ConfigurationError: The folder cannot be used, or holds another program's file of our name.
    """
    prepare_folder(folder)
    figures = draw_plots(result)
    files = {f"{name}.png": to_png(figure) for name, figure in figures.items()}
    plots = {name: to_inline_svg(figure, name, PLOT_TITLES[name]) for name, figure in figures.items()}
    files[RESULT_NAME] = (json.dumps(result.to_detailed_json(), indent=1, allow_nan=False) + "\n").encode()
    files[PAGE_NAME] = render_page(result, scenario, plots).encode()
    write_files(folder, files)
    return folder / PAGE_NAME
