import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from precision_examples import precision_record

from quantization.calibration import Range
from quantization.errors import ConfigurationError
from quantization.renormalization import LayerDrift
from simulation.report import write_report
from simulation.report_folder import prepare_folder
from simulation.result import Accuracy, ExperimentResult
from simulation.scenario import Scenario

MakeResult = Callable[..., ExperimentResult]

HOSTILE = (
    '</text><script src="https://evil.example/x.js">alert(1)</script>-->'
    "<img src=//evil.example onerror=x>\x1b[2J$x_{&amp;"
)
FILES = {"report.html", "result.json", "accuracy.png", "drift.png", "ranges.png", "sizes.png"}
OF_PRECISION = {"bits.png", "front.png", "layers.png", "prediction.png"}
VOID = {"meta", "br", "img", "link"}


class Page(HTMLParser):
    """What a browser would make of a page: balanced elements, their attributes, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def addresses(self) -> list[str]:
        """Everything that an element points to."""
        pointing = ("src", "href", "xlink:href", "data", "action", "srcset", "poster")
        return [
            value or "" for _, attrs in self.elements for name, value in attrs.items() if name in pointing
        ]


def hostile_result(make_result: MakeResult, make_generation: Any) -> ExperimentResult:
    names = (HOSTILE, "-->", "$\\frac{", "漢字 🚀", "", "a" * 500)
    drift = {name: LayerDrift(0.5, 0.1, 3.0) for name in names}
    ranges = {name: Range(0.0, 1.0) for name in names}
    generation = make_generation(
        drift=drift, residual_drift=drift, ranges=ranges, reason=HOSTILE, dropped={HOSTILE: 3}
    )
    return make_result(
        task=HOSTILE,
        drift={HOSTILE: 0.3},
        generations=(generation,),
        lab_ranges=ranges,
        layers=names,
        float_ops=(HOSTILE,),
    )


def test_report_holds_page_plots_and_result(tmp_path: Path, make_result: MakeResult) -> None:
    result = make_result()
    page = write_report(result, Scenario(), tmp_path / "new" / "out")
    assert page == tmp_path / "new" / "out" / "report.html"
    assert {path.name for path in page.parent.iterdir()} == FILES
    assert json.loads((page.parent / "result.json").read_bytes()) == result.to_detailed_json()
    for name in FILES - {"report.html", "result.json"}:
        assert (page.parent / name).read_bytes().startswith(b"\x89PNG")


def test_page_shows_the_key_figures(tmp_path: Path, make_result: MakeResult) -> None:
    scenario = Scenario(task="cifar10", drifts=("contrast=0.3",))
    text = Page(write_report(make_result(), scenario, tmp_path)).text
    for words in (
        "Contrast 0.3 cost the frozen int8 model 25.5 points; one update of 8.9 KB won back 25.1 of them.",
        "66.1 % frozen int8 in the field",
        "91.2 % tuned int8 in the field",
        "8.9 KB last update, one device 3.2 % of the int8 artifact",
        "281.0 KB int8 artifact 25.8 % of the float model",
        "equal ranges from sums and from pooled data",
        "labelled hits rose from 65.9 % to 91.0 %",
        "no drift beyond chance",
        "generation 1 2 late",
        "Pad_3 (Pad): no integer kernel",
        "quantfleet-sim run --task=cifar10 --drift=contrast=0.3",
    ):
        assert words in text


def test_report_of_precision_has_its_plots_and_figures(tmp_path: Path, make_result: MakeResult) -> None:
    record = precision_record(4)
    page = write_report(make_result(precision=record), Scenario(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES | OF_PRECISION
    assert json.loads((tmp_path / "result.json").read_bytes())["bits"] == dict(record.bits)
    text = Page(page).text
    for words in (
        "Bits per layer",
        "What size costs",
        "Which layers hurt",
        "Predicted and measured divergence",
    ):
        assert words in text
    assert f"{record.size_ratio:.1f}\N{MULTIPLICATION SIGN} smaller weights than in fp32" in text
    assert page.read_text(encoding="utf-8").count("<svg ") == 8


def test_report_without_precision_does_not_speak_of_it(tmp_path: Path, make_result: MakeResult) -> None:
    write_report(make_result(precision=precision_record()), Scenario(), tmp_path)
    text = Page(write_report(make_result(), Scenario(), tmp_path)).text
    assert "Bits per layer" not in text
    assert "smaller weights" not in text
    assert {path.name for path in tmp_path.iterdir()} == FILES, "plots of the report before are gone"


def test_hostile_layers_of_a_precision_record_stay_text(tmp_path: Path, make_result: MakeResult) -> None:
    record = precision_record(4)
    layers = tuple(replace(layer, name=HOSTILE, storage=HOSTILE) for layer in record.layers)
    path = write_report(make_result(precision=replace(record, layers=layers)), Scenario(), tmp_path)
    page = Page(path)
    assert {tag for tag, _ in page.elements} & {"script", "img", "iframe", "object"} == set()
    assert all(address.startswith("#") for address in page.addresses)
    assert "\x1b" not in path.read_text(encoding="utf-8")


def test_page_names_no_address(tmp_path: Path, make_result: MakeResult) -> None:
    page = write_report(make_result(precision=precision_record()), Scenario(), tmp_path)
    content = page.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//\w|@import|<script|<link|<iframe", content)
    assert not re.search(r"url\((?!#)", content)
    assert all(address.startswith("#") for address in Page(page).addresses)


def test_identifiers_are_unique_and_references_point_to_them(tmp_path: Path, make_result: MakeResult) -> None:
    path = write_report(make_result(precision=precision_record()), Scenario(), tmp_path)
    page = Page(path)
    identifiers = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(set(identifiers)) == len(identifiers)
    pointed = {address[1:] for address in page.addresses}
    pointed |= set(re.findall(r"url\(#([^)]*)\)", path.read_text(encoding="utf-8")))
    assert pointed
    assert pointed <= set(identifiers)


def test_hostile_names_stay_text(tmp_path: Path, make_result: MakeResult, make_generation: Any) -> None:
    result = hostile_result(make_result, make_generation)
    path = write_report(result, Scenario(task=HOSTILE), tmp_path)
    page = Page(path)
    assert {tag for tag, _ in page.elements} & {"script", "img", "iframe", "object"} == set()
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert all(address.startswith("#") for address in page.addresses)
    assert '</text><script src="https://evil.example/x.js">' in page.text
    assert "\x1b" not in path.read_text(encoding="utf-8")


def test_same_result_gives_the_same_bytes(tmp_path: Path, make_result: MakeResult) -> None:
    for name in ("one", "two"):
        write_report(make_result(precision=precision_record()), Scenario(), tmp_path / name)
    for name in FILES | OF_PRECISION:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"accuracy": Accuracy(None, None, None, None, None)},
        {"generations": ()},
        {
            "generations": (),
            "accuracy": Accuracy(None, None, None, None, None),
            "lab_ranges": {},
            "layers": (),
        },
        {"size_bytes": {"fp32": 0, "tuned": 0}},
        {"federated_equals_pooled": None},
        {"drift": {}},
    ],
    ids=["no labels", "no generations", "nothing", "no sizes", "not compared", "no drift"],
)
def test_result_that_lacks_something_has_a_report(
    tmp_path: Path, make_result: MakeResult, changes: dict[str, Any]
) -> None:
    page = Page(write_report(make_result(**changes), Scenario(), tmp_path))
    assert "None" not in page.text.replace("None: every device", "")
    assert "nan" not in page.text.split()


def test_difference_to_pooled_data_is_not_hidden(tmp_path: Path, make_result: MakeResult) -> None:
    assert (
        "differ ranges from sums"
        in Page(write_report(make_result(federated_equals_pooled=False), Scenario(), tmp_path)).text
    )


def test_later_report_replaces_an_earlier_one_and_its_plots(tmp_path: Path, make_result: MakeResult) -> None:
    write_report(make_result(), Scenario(), tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    write_report(make_result(generations=(), layers=(), lab_ranges={}), Scenario(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"drift.png", "ranges.png"} | {"notes.txt"}


@pytest.mark.parametrize("name", sorted(FILES | OF_PRECISION))
def test_file_of_another_program_is_not_replaced(tmp_path: Path, make_result: MakeResult, name: str) -> None:
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(ConfigurationError, match=f"{name} was not written by quantfleet-sim; move it"):
        write_report(make_result(), Scenario(), tmp_path)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"precious")]


def test_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"cannot write to .*file: File exists; give --out a folder"):
        prepare_folder(tmp_path / "file")
    with pytest.raises(ConfigurationError, match="Not a directory; give --out a folder"):
        prepare_folder(tmp_path / "file" / "out")
    (tmp_path / "report.html").mkdir()
    with pytest.raises(ConfigurationError, match=r"report\.html was not written by quantfleet-sim"):
        prepare_folder(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(
        ConfigurationError, match="Permission denied; give --out a folder that you may write to"
    ):
        prepare_folder(tmp_path)


def test_files_are_readable_as_the_umask_says(tmp_path: Path, make_result: MakeResult) -> None:
    (tmp_path / "plain").write_text("")
    page = write_report(make_result(), Scenario(), tmp_path / "out")
    assert page.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.slow
@pytest.mark.parametrize("is_hostile", [False, True], ids=["plain", "hostile"])
def test_chromium_shows_the_page_and_asks_for_nothing(
    tmp_path: Path, make_result: MakeResult, make_generation: Any, is_hostile: bool
) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    result = hostile_result(make_result, make_generation) if is_hostile else make_result(layer_count=24)
    page = write_report(result, Scenario(), tmp_path / "out")
    log = tmp_path / "net.json"
    shown = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    assert "one update of 8.9 KB won back 25.1 of them." in shown
    assert shown.count("<svg ") == 4
    assert "<script" not in shown
    requested = set(
        re.findall(r'"url":"(https?://[^/"]+)', log.read_text(encoding="utf-8", errors="replace"))
    )
    own = (".google.com", ".googleapis.com")  # what the browser itself asks for
    assert not [host for host in requested if not host.endswith(own)]
