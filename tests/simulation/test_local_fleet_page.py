import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from simulation.fleet_timeline import Series
from simulation.local_fleet_page import FILES, PAGE, PICTURE, RESULT, write_fleet_report
from simulation.local_fleet_result import Accuracies, LocalFleetResult, QueryResult, RolloutResult
from simulation.local_fleet_terminal import print_fleet, sentence
from simulation.report_folder import prepare_folder

_RESULT = LocalFleetResult(
    agents=12,
    nodes=4,
    database="SQLite",
    drift="contrast=0.3",
    bad="destroyed-ranges",
    accuracies=Accuracies(0.99, 0.2, 0.96, 0.7, 0.96),
    rollouts=[
        RolloutResult(2, "the tuned generation", (("canary", 0.0), ("complete", 16.0)), "no alarm", 12, 16.0),
        RolloutResult(
            3, "a bad generation", (("canary", 0.0), ("rolled_back", 4.0)), "4 of 5 canaries", 5, 4.0
        ),
    ],
    canary_share=5 / 12,
    asked=10_000,
    unanswered=0,
    queries=[
        QueryResult("up", (({"job": "quantfleet-server", "instance": "a:1"}, 1.0), ({"job": "x"}, 12_345.0))),
        QueryResult("nothing", ()),
    ],
    status="model  class\n<b>reader</b>  x86-vnni\n",
    history="rollout\n",
    phases=(
        (3.0, "99 % of the answers are right; now the field does contrast=0.3"),
        (4.0, "the tuned generation, version 2: canary at 25% (why); 0 of 12 devices run it"),
        (
            5.5,
            "a bad generation (destroyed-ranges), version 3: rolled back (4 of 5); 5 of 12 devices run it",
        ),
    ),
    series=Series((2.0, 4.0, 6.0), (None, 0.2, 0.96), {1: (12, 6, 0), 2: (0, 6, 12), 3: (0, 0, 0)}),
    failures=(),
    wall_seconds=190.0,
)


def test_the_report_is_a_page_a_picture_and_the_result(tmp_path: Path) -> None:
    prepare_folder(tmp_path, FILES)
    page = write_fleet_report(_RESULT, "quantfleet-sim fleet", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {PAGE, RESULT, PICTURE}
    text = page.read_text()
    assert "&lt;b&gt;reader&lt;/b&gt;" in text
    assert "bad: rolled back" in text
    assert "<svg" in text
    assert json.loads((tmp_path / RESULT).read_text())["canary_share"] == 5 / 12
    prepare_folder(tmp_path, FILES)  # its own files are replaced the next time


def test_the_terminal_shows_accuracies_rollouts_queries_and_status() -> None:
    console = Console(record=True, width=200, markup=False)
    print_fleet(_RESULT, console)
    shown = console.export_text()
    for words in (
        "20.0 %",
        "canary 0 s, rolled back 4 s",
        "job=quantfleet-server",
        "12,345",
        "<b>reader</b>",
    ):
        assert words in shown
    assert "instance" not in shown


def test_the_sentence_says_what_was_shown() -> None:
    assert sentence(_RESULT) == (
        "12 devices: tuning took the fleet from 20.0 % to 96.0 %; the bad generation was rolled back after 4 s with "
        "5 devices reached; 10,000 inputs, 0 unanswered."
    )


def test_a_result_with_failures_is_not_good() -> None:
    assert _RESULT.is_good
    assert not replace(_RESULT, failures=("something",)).is_good
