import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.errors import ConfigurationError
from simulation.scenario import Scenario, read_scenario

EXAMPLES = Path(__file__).parents[2] / "examples"


def write(folder: Path, text: str) -> Path:
    file = folder / "scenario.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_nothing_given_is_the_default_task() -> None:
    assert read_scenario(None) == Scenario()
    assert Scenario().task == "digits"


def test_file_sets_every_field(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        task = "har"
        devices = 7
        generations = 3
        labelled = 1
        seed = 4
        partition = "classes:2"
        dropout = 0.25
        stragglers = 0.5
        device-class = ["x86", "arm"]
        range-method = "percentile:0.999"
        check-pooled = true
        out = "result"
        cache-dir = "/var/cache/models"

        [drift]
        sensor-gain = 1.5
        acc-offset = [0.3, 0.2, -0.2]
        """,
    )
    assert read_scenario(file) == Scenario(
        task="har",
        devices=7,
        generations=3,
        drifts=("sensor-gain=1.5", "acc-offset=0.3,0.2,-0.2"),
        labelled=1.0,
        seed=4,
        partition="classes:2",
        dropout=0.25,
        stragglers=0.5,
        device_classes=("x86", "arm"),
        range_method="percentile:0.999",
        check_pooled=True,
        out=tmp_path / "result",
        cache_dir=Path("/var/cache/models"),
    )


def test_drifts_may_be_listed_as_typed(tmp_path: Path) -> None:
    file = write(tmp_path, 'drift = ["contrast=0.3", "blur=3"]')
    assert read_scenario(file).drifts == ("contrast=0.3", "blur=3")


def test_options_win_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "devices = 7\nseed = 4\n[drift]\ncontrast = 0.3")
    scenario = read_scenario(file, devices=9, drifts=["blur=3"], seed=None, device_classes=[])
    assert (scenario.devices, scenario.seed, scenario.drifts) == (9, 4, ("blur=3",))
    assert scenario.device_classes == ("x86-vnni",)


def test_paths_of_a_file_start_at_its_folder_and_typed_ones_do_not(tmp_path: Path) -> None:
    file = write(tmp_path, 'model = "m.onnx"\ndata = "d.npz"')
    scenario = read_scenario(file, data=Path("other.npz"))
    assert (scenario.task, scenario.model, scenario.data) == (None, tmp_path / "m.onnx", Path("other.npz"))


def test_typed_source_replaces_the_source_in_the_file(tmp_path: Path) -> None:
    own = write(tmp_path, 'model = "m.onnx"\ndata = "d.npz"')
    assert read_scenario(own, task="har") == Scenario(task="har")
    built_in = write(tmp_path, 'task = "har"')
    files = {"model": Path("m.onnx"), "data": Path("d.npz")}
    assert read_scenario(built_in, **files) == Scenario(task=None, **files)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("device = 3", "unknown key 'device'; did you mean 'devices'?"),
        ('range_method = "mse"', "unknown key 'range_method'; did you mean 'range-method'?"),
        ("Seed = 1", "did you mean 'seed'?"),
        ("zzz = 1", "unknown key 'zzz'; known: cache-dir, check-pooled, data"),
        ('devices = "7"', "devices must be a whole number, not '7'"),
        ("devices = 7.0", "devices must be a whole number, not 7.0"),
        ("devices = true", "devices must be a whole number, not True"),
        ("labelled = true", "labelled must be a number, not True"),
        ("task = 3", 'task must be text in quotes, such as "digits", not 3'),
        ("check-pooled = 1", "check-pooled must be true or false, not 1"),
        ('device-class = "arm"', "device-class must be a list of texts"),
        ("device-class = [1]", "device-class must be a list of texts"),
        ("drift = 0.3", "drift must be a table of severities"),
        ('drift = { contrast = "0.3" }', "drift must be a table whose severities are numbers"),
        ("drift = { contrast = [] }", "drift must be a table whose severities are numbers"),
        ("drift = { contrast = [true] }", "drift must be a table whose severities are numbers"),
        ('out = ""', "out must be a path in quotes"),
        ('out = "a\\u0000b"', "out must be a path in quotes"),
        ("devices = ", "is not TOML"),
        ("a = " + "[" * 5000, "scenario"),
    ],
)
def test_file_that_cannot_be_used_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        read_scenario(file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read scenario .*absent.toml: No such file"):
        read_scenario(tmp_path / "absent.toml")
    with pytest.raises(ConfigurationError, match=r"cannot read scenario .*: Is a directory"):
        read_scenario(tmp_path)
    (tmp_path / "latin").write_bytes(b'task = "\xff"')
    with pytest.raises(ConfigurationError, match="is not TOML"):
        read_scenario(tmp_path / "latin")
    (tmp_path / "long").write_bytes(b"#" * (1 << 21))
    with pytest.raises(ConfigurationError, match="longer than"):
        read_scenario(tmp_path / "long")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"devices": 0}, "devices is 0; give a whole number from 1"),
        ({"devices": 10**7}, "devices is 10000000"),
        ({"generations": 0}, "generations is 0; give a whole number from 1"),
        ({"seed": -1}, "seed is -1; give a whole number from 0"),
        ({"labelled": 1.5}, "labelled is 1.5; give a fraction from 0 to 1"),
        ({"dropout": -0.1}, "dropout is -0.1; give a fraction"),
        ({"stragglers": float("nan")}, "stragglers is nan; give a fraction"),
        ({"dropout": 0.6, "stragglers": 0.6}, "dropout 0.6 and stragglers 0.6 are more than all devices"),
        ({"drifts": ("contrast",)}, "drift 'contrast' has no severity; give contrast=0.3"),
        ({"drifts": ("contrats=0.3",)}, "unknown drift 'contrats'"),
        ({"drifts": ("contrast=much",)}, "'much' is no number"),
        ({"partition": "by-moon"}, "partition 'by-moon' is unknown; give auto, owner, iid, classes:K"),
        ({"partition": "classes"}, "partition 'classes' is unknown"),
        ({"partition": "classes:0"}, "partition 'classes:0' is unknown"),
        ({"partition": "classes:two"}, "partition 'classes:two' is unknown"),
        ({"partition": "owner:"}, "partition 'owner:' is unknown"),
        ({"partition": "dirichlet:-1"}, "partition 'dirichlet:-1' is unknown"),
        ({"partition": "dirichlet:nan"}, "partition 'dirichlet:nan' is unknown"),
        ({"range_method": "magic"}, "unknown range method 'magic'; known: minmax"),
        ({"device_classes": ()}, "device-class names no hardware kind"),
        ({"device_classes": ("No Such",)}, "device class 'No Such'"),
        ({"task": ""}, "task '' is empty"),
        ({"model": Path("m.onnx")}, "task 'digits' has a model and data of its own"),
        ({"task": None}, "a model file is missing"),
        (
            {"task": None, "model": Path("m.onnx")},
            "a data file is missing; give --model FILE.onnx with --data",
        ),
        ({"task": None, "data": Path("d.npz")}, "a model file is missing"),
    ],
)
def test_value_that_cannot_be_simulated_is_refused_in_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Scenario(**fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


scenarios = st.builds(
    Scenario,
    task=st.text(min_size=1, max_size=8),
    devices=st.integers(1, 1000),
    generations=st.integers(1, 9),
    drifts=st.lists(st.sampled_from(["contrast=0.3", "blur=3", "acc-offset=0.3,0.2,-0.2"]), unique=True).map(
        tuple
    ),
    labelled=st.floats(0, 1),
    seed=st.integers(0, 2**63 - 1),
    partition=st.sampled_from(["auto", "owner", "iid", "classes:2", "dirichlet:0.5"]),
    dropout=st.floats(0, 0.5),
    stragglers=st.floats(0, 0.5),
    device_classes=st.lists(st.sampled_from(["x86-vnni", "x86", "arm"]), min_size=1).map(tuple),
    range_method=st.sampled_from(["mse", "kl", "percentile:0.999"]),
    check_pooled=st.booleans(),
)


@given(scenarios)
def test_command_says_what_differs_from_the_defaults(scenario: Scenario) -> None:
    words = shlex.split(scenario.to_command())
    assert words[:2] == ["quantfleet-sim", "run"]
    said = [word.removeprefix("--").partition("=") for word in words[2:]]
    assert ("devices" in [name for name, _, _ in said]) == (scenario.devices != 50)
    assert tuple(value for name, _, value in said if name == "drift") == scenario.drifts
    if scenario.task != "digits":
        assert ("task", "=", scenario.task) in said


def test_command_names_no_folder() -> None:
    assert Scenario(out=Path("secret"), cache_dir=Path("secret")).to_command() == "quantfleet-sim run"


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.toml")), ids=lambda file: file.name)
def test_example_is_a_scenario(file: Path) -> None:
    scenario = read_scenario(file)
    assert scenario != Scenario()
    assert tomllib.loads(file.read_text(encoding="utf-8"))


def test_there_are_examples() -> None:
    assert len(list(EXAMPLES.glob("*.toml"))) >= 3
