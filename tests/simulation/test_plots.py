from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from quantization.calibration import Range
from simulation.plots import draw_plots
from simulation.result import Accuracy, ExperimentResult
from simulation.summary import shorten
from simulation.svg import to_inline_svg, to_png

MakeResult = Callable[..., ExperimentResult]


def test_layers_are_rows_in_graph_order(make_result: MakeResult) -> None:
    result = make_result(layer_count=24)
    left, right = draw_plots(result)["drift"].axes
    assert [label.get_text() for label in left.get_yticklabels()] == [shorten(name) for name in result.layers]
    bottom, top = left.get_ylim()
    assert bottom > top  # the first layer is on top
    assert left.get_title(loc="left") == "shift of channel means"
    assert right.get_title(loc="left") == "change of channel spreads"


def test_names_of_many_layers_do_not_overlap(make_result: MakeResult) -> None:
    figure = draw_plots(make_result(layer_count=150))["drift"]
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert all(not a.overlaps(b) for a, b in pairwise(boxes))


def test_accuracy_starts_at_the_frozen_model(make_result: MakeResult) -> None:
    (axes,) = draw_plots(make_result())["accuracy"].axes
    line = max(axes.lines, key=lambda line: len(line.get_xdata()) * line.get_linewidth())
    assert list(line.get_xdata()) == [0, 1, 2]
    assert list(line.get_ydata()) == pytest.approx([0.661, 0.912, 0.912])


def test_unlabelled_data_plots_agreement(make_result: MakeResult) -> None:
    unknown = Accuracy(None, None, None, None, None)
    (axes,) = draw_plots(make_result(accuracy=unknown))["accuracy"].axes
    assert axes.get_ylabel() == "agreement with the corrected float model"


def test_narrow_ranges_stay_visible_beside_a_wide_one(make_result: MakeResult) -> None:
    ranges = {f"site{i}": Range(0.0, 1.0) for i in range(5)}
    (axes,) = draw_plots(make_result(lab_ranges=ranges, generations=()))["ranges"].axes
    assert axes.get_xscale() == "linear"
    (axes,) = draw_plots(make_result(lab_ranges=ranges | {"wide": Range(-1e4, 1e4)}, generations=()))[
        "ranges"
    ].axes
    assert axes.get_xscale() == "symlog"


def test_all_zero_ranges_have_a_plot(make_result: MakeResult, make_generation: Any) -> None:
    zero = {"site": Range(0.0, 0.0)}
    figures = draw_plots(make_result(lab_ranges=zero, generations=(make_generation(ranges=zero),)))
    assert to_png(figures["ranges"]).startswith(b"\x89PNG")


def test_what_nothing_was_measured_for_has_no_plot(make_result: MakeResult) -> None:
    unknown = Accuracy(None, None, None, None, None)
    assert list(draw_plots(make_result(accuracy=unknown, generations=(), lab_ranges={}))) == ["sizes"]


def test_inline_picture_takes_its_colours_from_the_page(make_result: MakeResult) -> None:
    figures = draw_plots(make_result())
    for name, figure in figures.items():
        svg = to_inline_svg(figure, name, "title")
        assert svg.startswith('<svg role="img" aria-label="title" ')
        assert "var(--after)" in svg
        assert "http" not in svg
        assert "<!--" not in svg


def test_long_names_keep_their_end() -> None:
    assert shorten("a" * 40 + "/conv1") == "…" + "a" * 27 + "/conv1"
    assert shorten("conv1") == "conv1"
    assert len(shorten("x" * 1000)) == 34
