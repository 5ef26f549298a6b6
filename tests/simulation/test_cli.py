import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cli_paths import unexpanded_paths
from interrupts import listen_to_interrupts
from precision_examples import precision_record, study_result
from typer.testing import CliRunner, Result

from quantization.errors import (
    ConfigurationError,
    InvalidDataError,
    MalformedError,
    QuantFleetError,
    RoundFailedError,
    UnsupportedModelError,
    UpdateRejectedError,
)
from server.precision_settings import PrecisionSettings
from simulation.cli import app
from simulation.drift import DRIFT_KINDS
from simulation.result import Accuracy, ExperimentResult
from simulation.scenario import Scenario
from simulation.study_result import DEFAULT_POINTS, StudyResult
from simulation.study_summary import summarize_pareto, summarize_sensitivity
from simulation.summary import describe_precision
from simulation.tasks.catalogue import TASKS

MakeResult = Callable[..., ExperimentResult]
Run = Callable[..., Result]


class Laboratory:
    """Stands in for the minutes that an experiment takes: remembers the scenario, and does as told."""

    def __init__(self, result: ExperimentResult) -> None:
        self.result = result
        self.error: BaseException | None = None
        self.scenario: Scenario | None = None

    def run_experiment(
        self, scenario: Scenario, on_progress: Callable[[float, str], None]
    ) -> ExperimentResult:
        self.scenario = scenario
        on_progress(0.5, "generation 1: moments")
        print("a library that talks")  # noqa: T201  # what a library may do
        warnings.warn("a library that warns", stacklevel=1)
        logging.getLogger("library").warning("a library that logs")
        if self.error is not None:
            raise self.error
        return self.result


@pytest.fixture
def laboratory(make_result: MakeResult, monkeypatch: pytest.MonkeyPatch) -> Laboratory:
    laboratory = Laboratory(make_result())
    module = ModuleType("simulation.experiment")
    module.run_experiment = laboratory.run_experiment  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "simulation.experiment", module)
    return laboratory


@pytest.fixture
def invoke(laboratory: Laboratory) -> Run:
    assert laboratory.scenario is None
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_table_shows_every_model_and_the_sentence(invoke: Run) -> None:
    found = invoke("run")
    assert found.exit_code == 0
    rows = {" ".join(line.split()) for line in found.stdout.splitlines()}
    assert "cifar10 · 50 devices · contrast 0.3 · seed 0" in rows
    assert "fp32 91.7 % 66.6 % 1.1 MB" in rows
    assert "int8 frozen 91.6 % 66.1 %" in rows
    assert "int8 tuned 91.2 % 281.0 KB 8.9 KB generation 1 serves" in rows
    assert any(row.startswith("generation 1 91.2 % 281.0 KB 8.9 KB 47 (2 late, 1 failed)") for row in rows)
    assert "not published: no drift beyond chance" in " ".join(rows)
    assert "Ranges from merged statistics equal those from pooled data, compared bit for bit." in rows
    assert (
        "Contrast 0.3 cost the frozen int8 model 25.5 points; one update of 8.9 KB won back 25.1 of them."
        in rows
    )


def test_table_says_when_ranges_differ_from_pooled_ones(
    invoke: Run, laboratory: Laboratory, make_result: MakeResult
) -> None:
    laboratory.result = make_result(federated_equals_pooled=False)
    assert "merged statistics DIFFER FROM those" in invoke("run").stdout


def test_table_of_unlabelled_data_has_dashes(
    invoke: Run, laboratory: Laboratory, make_result: MakeResult, make_generation: Any
) -> None:
    laboratory.result = make_result(
        accuracy=Accuracy(None, None, None, None, None), generations=(make_generation(accuracy=None),)
    )
    found = invoke("run")
    assert found.exit_code == 0
    assert "None" not in found.stdout
    assert "Without labels" in found.stdout


def test_json_is_one_object_and_nothing_else(invoke: Run, laboratory: Laboratory) -> None:
    found = invoke("run", "--json")
    assert found.exit_code == 0
    assert found.stdout.count("\n") == 1
    assert json.loads(found.stdout) == json.loads(json.dumps(laboratory.result.to_json()))


def test_what_libraries_print_does_not_reach_stdout(invoke: Run) -> None:
    found = invoke("run", "--json")
    assert found.stderr == "a library that talks\n"


def test_verbose_run_logs_phases(invoke: Run) -> None:
    found = invoke("run", "--json", "--verbose")
    json.loads(found.stdout)
    assert "phase_started" in found.stderr
    assert "generation 1: moments" in found.stderr


def test_options_reach_the_scenario(invoke: Run, laboratory: Laboratory, tmp_path: Path) -> None:
    found = invoke(
        "run", "--task", "har", "--devices", 7, "--generations", 3, "--drift", "sensor-gain=1.5",
        "--drift", "acc-offset=0.3,0.2,-0.2", "--labelled", 0.5, "--seed", 4, "--partition", "owner",
        "--dropout", 0.1, "--stragglers", 0.2, "--device-class", "x86", "--device-class", "arm",
        "--range-method", "kl", "--check-pooled", "--cache-dir", tmp_path / "cache", "--json",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert laboratory.scenario == Scenario(
        task="har",
        devices=7,
        generations=3,
        drifts=("sensor-gain=1.5", "acc-offset=0.3,0.2,-0.2"),
        labelled=0.5,
        seed=4,
        partition="owner",
        dropout=0.1,
        stragglers=0.2,
        device_classes=("x86", "arm"),
        range_method="kl",
        check_pooled=True,
        cache_dir=tmp_path / "cache",
    )


def test_precision_options_reach_the_scenario(invoke: Run, laboratory: Laboratory) -> None:
    found = invoke(
        "run", "--size-ratio", 10, "--rounding-rounds", 4, "--learned-rounding", 3, "--train-rounds", 2,
        "--latency-budget", 2.5,
        "--float-layer", "/head/Gemm=fp16", "--float-layer", "auto", "--json",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert laboratory.scenario == Scenario(
        precision=PrecisionSettings(
            size_ratio=10.0,
            rounding_rounds=4,
            learned_rounding=3,
            train_rounds=2,
            latency_budget_seconds=0.0025,
            float_layers=(("/head/Gemm", "fp16"),),
            may_choose_float=True,
        )
    )


@pytest.mark.parametrize(
    "goal", ["--size-ratio=10", "--max-drop=0.5", "--weight-bits=4", "--latency-budget=3"]
)
def test_each_goal_runs_again_as_the_command_in_the_report_says(
    invoke: Run, laboratory: Laboratory, goal: str
) -> None:
    assert invoke("run", goal, "--float-layer", "a b=bf16").exit_code == 0
    first = laboratory.scenario
    assert first is not None
    assert first.precision is not None
    assert invoke(*shlex.split(first.to_command())[1:]).exit_code == 0
    assert laboratory.scenario == first


def test_table_tells_of_precision(invoke: Run, laboratory: Laboratory, make_result: MakeResult) -> None:
    record = precision_record(4)
    laboratory.result = make_result(precision=record)
    for sentence in describe_precision(record):
        assert sentence in invoke("run").stdout.splitlines()


def test_own_model_takes_the_place_of_the_task(invoke: Run, laboratory: Laboratory) -> None:
    assert invoke("run", "--model", "m.onnx", "--data", "d.npz").exit_code == 0
    assert laboratory.scenario == Scenario(task=None, model=Path("m.onnx"), data=Path("d.npz"))


def test_options_win_over_the_scenario_file(invoke: Run, laboratory: Laboratory, tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text("devices = 7\nseed = 4\ncheck-pooled = true\n[drift]\ncontrast = 0.3\n")
    assert invoke("run", "--scenario", file, "--devices", 9, "--no-check-pooled").exit_code == 0
    assert laboratory.scenario == Scenario(devices=9, seed=4, drifts=("contrast=0.3",), check_pooled=False)


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "examples").glob("*.toml")), ids=lambda f: f.name
)
def test_command_in_a_report_runs_the_same_scenario(invoke: Run, laboratory: Laboratory, file: Path) -> None:
    assert invoke("run", "--scenario", file).exit_code == 0
    first = laboratory.scenario
    assert first is not None
    assert invoke(*shlex.split(first.to_command())[1:]).exit_code == 0
    assert laboratory.scenario == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", "0"], "devices is 0; give a whole number"),
        (["--drift", "contrats=0.3"], "unknown drift 'contrats'; did you mean 'contrast'?"),
        (["--partition", "by-moon"], "partition 'by-moon' is unknown"),
        (["--labelled", "nan"], "labelled is nan"),
        (["--range-method", "magic"], "unknown range method 'magic'"),
        (["--task", "digits", "--model", "m.onnx"], "task 'digits' has a model and data of its own"),
        (["--model", "m.onnx"], "a data file is missing"),
        (["--scenario", "absent.toml"], "cannot read scenario absent.toml"),
        (["--out", "/proc/nowhere"], "cannot write to /proc/nowhere"),
        (["--size-ratio", "1"], "size-ratio is 1.0; give a number above 1"),
        (["--max-drop", "nan"], "max-drop is nan; give a number above 0"),
        (["--size-ratio", "8", "--weight-bits", "4"], "size-ratio 8.0 and weight-bits 4 are different goals"),
        (["--rounding-rounds", "2"], "precision is asked for without a goal"),
        (["--weight-bits", "4", "--float-layer", "a=int4"], "unknown type 'int4'; give fp16 or bf16"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(invoke: Run, arguments: list[str], message: str) -> None:
    found = invoke("run", *arguments)
    assert found.exit_code == 2
    assert found.stdout == ""
    assert found.stderr.startswith("error: ")
    assert message in found.stderr
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--devices", "many"],
        ["run", "--nonsense"],
        ["run", "--weight-bits", "4.5"],
        ["run", "--size-ratio", "ten"],
        ["run", "--points", "3"],
        ["pareto", "--points", "many"],
        ["sensitivity", "--points", "3"],
        ["pareto", "--size-ratio", "10"],
        ["fly"],
    ],
)
def test_wrong_usage_has_exit_code_2_and_no_traceback(invoke: Run, arguments: list[str]) -> None:
    found = invoke(*arguments)
    assert found.exit_code == 2
    assert "Traceback" not in found.output


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (ConfigurationError("wrong"), 2),
        (InvalidDataError("wrong"), 2),
        (UnsupportedModelError("wrong"), 2),
        (MalformedError("wrong"), 2),
        (RoundFailedError("wrong"), 1),
        (UpdateRejectedError("wrong"), 1),
        (QuantFleetError("wrong"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_have_their_exit_codes(
    invoke: Run, laboratory: Laboratory, error: QuantFleetError, exit_code: int
) -> None:
    laboratory.error = error
    found = invoke("run", "--json")
    assert found.exit_code == exit_code
    assert found.stdout == ""
    assert found.stderr.splitlines()[-1] == "error: wrong"
    assert "Traceback" not in found.stderr


def test_error_of_several_lines_is_printed_on_one(invoke: Run, laboratory: Laboratory) -> None:
    laboratory.error = ConfigurationError("first\nsecond \x1b[31mred")
    found = invoke("run")
    assert found.stderr.splitlines()[-1] == "error: first second \N{REPLACEMENT CHARACTER}[31mred"


def test_interrupt_ends_cleanly(invoke: Run, laboratory: Laboratory) -> None:
    laboratory.error = KeyboardInterrupt()
    found = invoke("run", "--json")
    assert found.exit_code == 130
    assert found.stdout == ""
    assert found.stderr.splitlines()[-1] == "interrupted"
    assert "Traceback" not in found.stderr


def test_report_is_written_where_asked(invoke: Run, tmp_path: Path) -> None:
    found = invoke("run", "--out", tmp_path / "out", "--json")
    assert found.exit_code == 0
    assert json.loads(found.stdout)["task"] == "cifar10"
    assert found.stderr.splitlines()[-1] == f"report: {tmp_path / 'out' / 'report.html'}"
    assert (tmp_path / "out" / "report.html").exists()


def test_folder_that_cannot_be_used_is_refused_before_the_run(
    invoke: Run, laboratory: Laboratory, tmp_path: Path
) -> None:
    (tmp_path / "report.html").write_text("precious")
    found = invoke("run", "--out", tmp_path)
    assert found.exit_code == 2
    assert "report.html was not written by quantfleet-sim; move it" in found.stderr
    assert laboratory.scenario is None


class Workshop:
    """Stands in for the minutes that a study takes."""

    def __init__(self) -> None:
        self.result = study_result()
        self.scenario: Scenario | None = None
        self.points: int | None = None

    def run_study(
        self, scenario: Scenario, on_progress: Callable[[float, str], None], *, points: int
    ) -> StudyResult:
        self.scenario, self.points = scenario, points
        on_progress(0.5, "probing")
        print("a library that talks")  # noqa: T201  # what a library may do
        return self.result


@pytest.fixture
def workshop(monkeypatch: pytest.MonkeyPatch) -> Workshop:
    workshop = Workshop()
    module = ModuleType("simulation.study")
    module.run_study = workshop.run_study  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "simulation.study", module)
    return workshop


def test_study_takes_the_fleet_and_the_points(invoke: Run, workshop: Workshop, tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text("devices = 7\n[precision]\nsize-ratio = 10\n[drift]\ncontrast = 0.3\n")
    found = invoke("pareto", "--scenario", file, "--seed", 4, "--dropout", 0.1, "--points", 5, "--json")
    assert found.exit_code == 0, found.output
    assert workshop.scenario == Scenario(devices=7, seed=4, dropout=0.1, drifts=("contrast=0.3",))
    assert workshop.points == 5
    assert invoke("pareto").exit_code == 0
    assert workshop.points == DEFAULT_POINTS


def test_study_takes_a_model_of_ones_own(invoke: Run, workshop: Workshop) -> None:
    assert invoke("sensitivity", "--model", "m.onnx", "--data", "d.npz").exit_code == 0
    assert workshop.scenario == Scenario(task=None, model=Path("m.onnx"), data=Path("d.npz"))
    assert workshop.points == 0, "no model is built"


@pytest.mark.parametrize("study", ["pareto", "sensitivity"])
def test_study_prints_one_object_and_nothing_else(invoke: Run, workshop: Workshop, study: str) -> None:
    found = invoke(study, "--json")
    assert found.exit_code == 0
    assert found.stdout.count("\n") == 1
    assert StudyResult.from_json(json.loads(found.stdout)) == workshop.result
    assert found.stderr == "a library that talks\n"


@pytest.mark.parametrize(
    ("study", "row"),
    [
        ("pareto", "allocated 14.0× 1.2 KB 90.2 %"),  # noqa: RUF001  # what is printed
        ("sensitivity", "/layer1/conv2/Conv 1,296 0.003 0.0018 to 0.0048 5 0.009 0.0023"),
    ],
)
def test_study_prints_a_table(invoke: Run, workshop: Workshop, study: str, row: str) -> None:
    found = invoke(study)
    assert found.exit_code == 0
    rows = [" ".join(line.split()) for line in found.stdout.splitlines()]
    assert "cifar10 · 50 devices · seed 3" in rows
    assert any(line.startswith(row) for line in rows), rows
    summarize = {"pareto": summarize_pareto, "sensitivity": summarize_sensitivity}[study]
    assert rows[-1] == summarize(workshop.result)


@pytest.mark.parametrize("study", ["pareto", "sensitivity"])
def test_study_is_written_where_asked(invoke: Run, workshop: Workshop, study: str, tmp_path: Path) -> None:
    found = invoke(study, "--out", tmp_path / "out", "--json")
    assert found.exit_code == 0
    assert found.stderr.splitlines()[-1] == f"report: {tmp_path / 'out' / f'{study}.html'}"
    saved = json.loads((tmp_path / "out" / f"{study}.json").read_bytes())
    assert saved == json.loads(found.stdout) == json.loads(json.dumps(workshop.result.to_json()))
    assert (tmp_path / "out" / f"{study}.png").read_bytes().startswith(b"\x89PNG")


def test_page_of_a_front_says_how_many_points_were_asked_for(
    invoke: Run, workshop: Workshop, tmp_path: Path
) -> None:
    assert invoke("pareto", "--points", 5, "--seed", 4, "--out", tmp_path).exit_code == 0
    assert workshop.points == 5
    assert "quantfleet-sim pareto --seed=4 --points=5<" in (tmp_path / "pareto.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pareto", "--points", "1"], "points is 1; give a whole number from 2 to 64"),
        (["pareto", "--points", "-3"], "points is -3; give a whole number from 2 to 64"),
        (["pareto", "--points", "1000000000"], "points is 1000000000; give a whole number from 2 to 64"),
        (["pareto", "--devices", "0"], "devices is 0; give a whole number"),
        (["sensitivity", "--drift", "contrats=0.3"], "unknown drift 'contrats'"),
        (["sensitivity", "--model", "m.onnx"], "a data file is missing"),
        (["sensitivity", "--out", "/proc/nowhere"], "cannot write to /proc/nowhere"),
    ],
)
def test_study_refuses_bad_input_before_it_starts(
    invoke: Run, workshop: Workshop, arguments: list[str], message: str
) -> None:
    found = invoke(*arguments)
    assert found.exit_code == 2
    assert found.stdout == ""
    assert found.stderr.startswith("error: ")
    assert message in found.stderr
    assert found.stderr.count("\n") == 1
    assert workshop.scenario is None


def test_drifts_are_listed_with_units(invoke: Run) -> None:
    found = invoke("drifts")
    assert found.exit_code == 0
    for kind in DRIFT_KINDS:
        assert f"{kind.name}={kind.example}" in found.stdout
        assert kind.unit in " ".join(found.stdout.split())


def test_tasks_are_listed_with_their_files(invoke: Run) -> None:
    found = invoke("tasks")
    assert found.exit_code == 0
    rows = [" ".join(line.split()) for line in found.stdout.splitlines()]
    for source in TASKS:
        start = f"{source.name} {', '.join(source.data_files) or 'none'} {source.summary.split()[0]}"
        assert any(row.startswith(start) for row in rows)


def test_version_is_printed(invoke: Run) -> None:
    found = invoke("--version")
    assert found.exit_code == 0
    assert found.stdout.startswith("quantfleet-sim 0.")


def test_help_does_not_load_what_experiments_need() -> None:
    script = (
        "import sys, simulation.cli as cli\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'matplotlib', 'scipy', 'sklearn', 'flwr'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run(
        [sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())}
    )


def start(*arguments: str, **more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "simulation.cli", "run", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1", **more}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=environment,
        preexec_fn=listen_to_interrupts,  # noqa: PLW1509  # nothing else of this process runs in the child
    )


@pytest.mark.slow
def test_default_task_runs_from_start_to_report(tmp_path: Path) -> None:
    process = start(
        "--devices", "6", "--generations", "1", "--drift", "brightness=0.35", "--check-pooled", "--json",
        "--out", str(tmp_path / "out"), "--cache-dir", str(tmp_path / "cache"),
    )  # fmt: skip
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    found = json.loads(out)
    assert found["task"] == "digits"
    assert found["federated_equals_pooled"] is True
    assert found["accuracy"]["lab_frozen"] > 0.9
    assert found["accuracy"]["tuned"] > found["accuracy"]["frozen"]
    assert err.splitlines() == [f"report: {tmp_path / 'out' / 'report.html'}"]
    saved = json.loads((tmp_path / "out" / "result.json").read_bytes())
    assert {key: saved[key] for key in found} == found


@pytest.mark.slow
def test_interrupted_run_leaves_no_traceback(tmp_path: Path) -> None:
    process = start("--devices", "50", "--cache-dir", str(tmp_path), "--verbose")
    assert process.stderr is not None
    seen = ""
    while "training" not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err


def test_every_path_may_begin_at_home() -> None:
    assert unexpanded_paths(app) == []
