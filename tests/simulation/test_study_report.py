import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from precision_examples import study_result

from quantization.errors import ConfigurationError
from simulation.study_plots import draw_pareto, draw_sensitivity
from simulation.study_report import write_study
from simulation.svg import to_png

STUDIES = ("pareto", "sensitivity")


@pytest.mark.parametrize("study", STUDIES)
def test_study_is_a_page_a_picture_and_an_object(tmp_path: Path, study: str) -> None:
    result = study_result()
    page = write_study(study, result, f"quantfleet-sim {study}", tmp_path / "new")
    assert {path.name for path in page.parent.iterdir()} == {
        f"{study}.{end}" for end in ("html", "png", "json")
    }
    assert json.loads((page.parent / f"{study}.json").read_bytes()) == json.loads(
        json.dumps(result.to_json())
    )
    content = page.read_text(encoding="utf-8")
    assert f"<pre>quantfleet-sim {study}</pre>" in content
    assert content.count("<svg ") == 1
    assert "None" not in content
    assert not re.search(r"https?:|//\w|@import|<script|<link|<iframe", content.replace("nats", ""))


@pytest.mark.parametrize("study", STUDIES)
def test_hostile_names_stay_text(tmp_path: Path, study: str) -> None:
    result = study_result()
    hostile = '</text><script>alert("x")</script>\x1b[2J'
    layers = (replace(result.layers[0], name=hostile), *result.layers[1:])
    page = write_study(study, replace(result, task=hostile, layers=layers), hostile, tmp_path)
    content = page.read_text(encoding="utf-8")
    assert "<script" not in content
    assert "\x1b" not in content


@pytest.mark.parametrize("study", STUDIES)
def test_study_of_nothing_has_a_page(tmp_path: Path, study: str) -> None:
    empty = replace(study_result(has_labels=False), layers=(), front=())
    write_study(study, study_result(), "again", tmp_path)
    page = write_study(study, empty, "again", tmp_path)
    assert "<svg" not in page.read_text(encoding="utf-8")
    assert not (tmp_path / f"{study}.png").exists(), "the picture of the study before is gone"


def test_studies_and_a_report_share_a_folder(tmp_path: Path) -> None:
    for study in STUDIES:
        write_study(study, study_result(), "again", tmp_path)
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("end", ["html", "png", "json"])
def test_file_of_another_program_is_not_replaced(tmp_path: Path, end: str) -> None:
    (tmp_path / f"pareto.{end}").write_bytes(b"precious")
    with pytest.raises(ConfigurationError, match=f"pareto.{end} was not written by quantfleet-sim; move it"):
        write_study("pareto", study_result(), "again", tmp_path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"precious"]


def test_result_of_many_layers_and_points_is_known_as_ours(tmp_path: Path) -> None:
    result = study_result(400)
    long = replace(result, front=result.front * 10)
    write_study("pareto", long, "again", tmp_path)
    assert (tmp_path / "pareto.json").stat().st_size > 1 << 20
    write_study("pareto", long, "again", tmp_path)


@pytest.mark.parametrize("count", [1, 20, 200])
def test_pictures_of_few_and_many_layers(count: int) -> None:
    for draw in (draw_pareto, draw_sensitivity):
        figure = draw(study_result(count))
        assert figure is not None
        assert to_png(figure).startswith(b"\x89PNG")


def test_front_shows_accuracy_above_predicted_divergence() -> None:
    figure = draw_pareto(study_result())
    assert figure is not None
    above, below = figure.axes
    assert above.get_ylabel() == "right on test rows"
    assert below.get_ylabel() == "predicted divergence, nats"
    line = next(line for line in above.lines if line.get_label() == "allocated")
    assert list(line.get_ydata()) == [0.902, 0.915, 0.918]
    assert below.get_yscale() == "log"


def test_model_far_below_is_named_at_the_edge() -> None:
    figure = draw_pareto(study_result())
    assert figure is not None
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "2 bits 67.6 %" in texts
    assert "4 bits" in texts
    assert figure.axes[0].get_ylim()[0] > 0.676


def test_front_without_labels_shows_divergence_alone() -> None:
    figure = draw_pareto(study_result(has_labels=False))
    assert figure is not None
    assert [axes.get_ylabel() for axes in figure.axes] == ["predicted divergence, nats"]


def test_layers_that_cost_nothing_have_a_picture() -> None:
    result = study_result(3)
    still = tuple(
        replace(layer, gain=0.0, gain_low=0.0, gain_high=0.0, losses=dict.fromkeys(layer.losses, 0.0))
        for layer in result.layers
    )
    unknown = replace(result.layers[0], losses={})
    for layers in (still, (still[0], *result.layers[1:]), (unknown,), (unknown, *result.layers[1:])):
        figure = draw_sensitivity(replace(result, layers=layers))
        assert figure is not None
        assert to_png(figure).startswith(b"\x89PNG")
