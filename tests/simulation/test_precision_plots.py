from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
from precision_examples import precision_record

from simulation.plot_style import plot_style
from simulation.precision_plots import draw_precision
from simulation.svg import to_png


@pytest.fixture(autouse=True)
def _styled() -> Iterator[None]:
    with plot_style():
        yield


@pytest.mark.parametrize("count", [1, 20, 200])
def test_every_plot_of_few_and_many_layers_renders(count: int) -> None:
    figures = draw_precision(precision_record(count))
    assert list(figures) == ["bits", "front", "layers", "prediction"]
    for figure in figures.values():
        assert figure is not None
        assert to_png(figure).startswith(b"\x89PNG")


def test_nothing_is_drawn_where_no_precision_was_asked_for() -> None:
    assert draw_precision(None) == {}


def test_what_nobody_measured_has_no_plot() -> None:
    figures = draw_precision(replace(precision_record(is_measured=False), front=(), layers=()))
    assert figures == dict.fromkeys(("bits", "front", "layers", "prediction"))


def test_bits_are_in_the_order_of_the_graph() -> None:
    record = precision_record(5)
    figure = draw_precision(record)["bits"]
    assert figure is not None
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == [layer.name for layer in record.layers]
    assert [bar.get_width() for bar in left.patches] == [layer.stored_bits for layer in record.layers]
    assert [text.get_text() for text in left.texts] == ["6", "3", "4", "3", "fp16"]
    assert [bar.get_width() for bar in right.patches] == [layer.size_bytes for layer in record.layers]


def test_names_of_many_layers_do_not_overlap() -> None:
    for name in ("bits", "layers"):
        figure = draw_precision(precision_record(200))[name]
        assert figure is not None
        figure.canvas.draw()
        boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
        assert all(not a.overlaps(b) for a, b in pairwise(boxes))


def test_layer_that_costs_most_is_on_top() -> None:
    figure = draw_precision(precision_record(6))["layers"]
    assert figure is not None
    losses = [bar.get_width() for bar in figure.axes[1].patches]
    assert losses == sorted(losses, reverse=True)
    bottom, top = figure.axes[0].get_ylim()
    assert bottom > top


def test_front_marks_the_chosen_point_and_what_was_measured() -> None:
    record = precision_record()
    figure = draw_precision(record)["front"]
    assert figure is not None
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    chosen = next(line for label, line in lines.items() if str(label).startswith("chosen: "))
    assert list(chosen.get_xdata()) == [record.weight_bytes]
    assert len(lines["predicted"].get_xdata()) == len(record.front)
    assert len(lines["measured by devices"].get_xdata()) == 3
    assert "\N{MINUS SIGN}1.3 points" in [text.get_text() for text in figure.axes[0].texts]


def test_prediction_is_compared_with_the_diagonal() -> None:
    figure = draw_precision(precision_record())["prediction"]
    assert figure is not None
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(lines["as predicted"].get_xdata()) == list(lines["as predicted"].get_ydata())
    (predicted,), (measured,) = lines["chosen"].get_xdata(), lines["chosen"].get_ydata()
    assert measured == pytest.approx(1.1 * predicted)
    assert len(lines["on the front"].get_xdata()) == 2


def test_losses_of_nothing_have_plots() -> None:
    record = precision_record(3)
    still = tuple(
        replace(layer, predicted_loss=0.0, gain=0.0, gain_low=0.0, gain_high=0.0) for layer in record.layers
    )
    front = tuple(replace(point, predicted_loss=0.0, measured_loss=0.0) for point in record.front)
    for figure in draw_precision(
        replace(record, layers=still, front=front, predicted_loss=0.0, measured_loss=0.0)
    ).values():
        assert figure is not None
        assert to_png(figure).startswith(b"\x89PNG")


def test_measured_gain_below_zero_has_a_plot() -> None:
    record = precision_record(3)
    below = replace(record.layers[0], gain_low=-0.001)
    figure = draw_precision(replace(record, layers=(below, *record.layers[1:]), measured_loss=-0.002))
    for drawn in figure.values():
        assert drawn is not None
        assert to_png(drawn).startswith(b"\x89PNG")
