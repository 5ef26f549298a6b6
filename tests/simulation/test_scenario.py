import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.calibration_recipe import CalibrationRecipe, Strategy
from quantization.errors import ConfigurationError
from server.precision_settings import PrecisionSettings
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
        ("zzz = 1", "unknown key 'zzz'; known: cache-dir, calibration, check-pooled, data"),
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


def test_precision_has_a_table_of_its_own(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        [precision]
        size-ratio = 10
        rounding-rounds = 4
        train-rounds = 2
        latency-budget = 2.5
        float-layer = ["head=fp16", "auto"]
        """,
    )
    asked = PrecisionSettings(
        size_ratio=10.0,
        rounding_rounds=4,
        train_rounds=2,
        latency_budget_seconds=0.0025,
        float_layers=(("head", "fp16"),),
        may_choose_float=True,
    )
    assert read_scenario(file).precision == asked
    assert read_scenario(file, precision={"rounding-rounds": None, "float-layer": []}).precision == asked


def test_typed_goal_wins_over_another_one_in_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "[precision]\nsize-ratio = 10\nrounding-rounds = 4")
    typed = {"max-drop": 0.5, "size-ratio": None}
    assert read_scenario(file, precision=typed).precision == PrecisionSettings(
        max_drop=0.5, rounding_rounds=4
    )


def test_goal_may_be_typed_where_the_file_has_none(tmp_path: Path) -> None:
    file = write(tmp_path, "[precision]\nrounding-rounds = 4")
    with pytest.raises(ConfigurationError, match="precision is asked for without a goal"):
        read_scenario(file)
    asked = PrecisionSettings(weight_bits=3, rounding_rounds=4)
    assert read_scenario(file, precision={"weight-bits": 3}).precision == asked


def test_precision_is_not_asked_for_unless_it_is(tmp_path: Path) -> None:
    assert read_scenario(write(tmp_path, "[precision]")).precision is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("precision = 10", "precision must be a table of settings, such as { size-ratio = 10 }, not 10"),
        (
            "[precision]\nsize_ratio = 10",
            "unknown setting 'size_ratio' of precision; did you mean 'size-ratio'?",
        ),
        ('[precision]\nsize-ratio = "10"', "size-ratio must be a number, not '10'"),
        ("[precision]\nweight-bits = 4.0", "weight-bits must be a whole number, not 4.0"),
        ("[precision]\nfloat-layer = 3", "float-layer must be a list of texts"),
        ("[precision.size-ratio.a]", "size-ratio must be a number, not {'a': {}}"),
    ],
)
def test_precision_of_another_type_is_refused_with_the_file(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        read_scenario(file)
    assert f"scenario {file}: {message}" in str(caught.value)


def test_command_of_a_study_has_what_a_study_takes() -> None:
    scenario = Scenario(
        generations=5, seed=3, check_pooled=True, precision=PrecisionSettings(size_ratio=10.0)
    )
    assert scenario.to_command("pareto") == "quantfleet-sim pareto --seed=3"
    assert "--size-ratio=10.0 --check-pooled" in scenario.to_command()


def test_command_names_no_folder() -> None:
    assert Scenario(out=Path("secret"), cache_dir=Path("secret")).to_command() == "quantfleet-sim run"


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.toml")), ids=lambda file: file.name)
def test_example_is_a_scenario(file: Path) -> None:
    scenario = read_scenario(file)
    assert scenario != Scenario()
    assert tomllib.loads(file.read_text(encoding="utf-8"))


def test_there_are_examples() -> None:
    assert len(list(EXAMPLES.glob("*.toml"))) >= 3


def test_a_table_sets_the_calibration_and_options_win_over_it(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        [calibration]
        strategy = "loss"
        hard_sample_weight = 4
        augmentations = ["flip", "noise=0.05"]
        """,
    )
    recipe = CalibrationRecipe(Strategy.LOSS, 4.0, ("flip", "noise=0.05"))
    scenario = read_scenario(file)
    assert scenario.calibration == recipe
    assert shlex.split(scenario.to_command())[2:] == [
        "--calibration=loss",
        "--hard-sample-weight=4.0",
        "--augment=flip",
        "--augment=noise=0.05",
    ]
    typed = read_scenario(file, calibration={"strategy": "margin", "augmentations": ["brightness=0.1"]})
    assert typed.calibration == CalibrationRecipe(Strategy.MARGIN, 4.0, ("brightness=0.1",))
    assert read_scenario(file, calibration={"strategy": "uniform"}).calibration == CalibrationRecipe(
        augmentations=("flip", "noise=0.05")
    )


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("weight = 2.0", "unknown setting 'weight' of calibration"),
        ('strategy = "margin"\nhard_sample_weight = nan', "is nan; give a number from 1 to 256"),
        ('strategy = "margin"\nhard_sample_weight = 0.99', "is 0.99; give a number from 1 to 256"),
        ('augmentations = ["sharpen=2"]', "unknown augmentation 'sharpen'; known: flip"),
        ('augmentations = ["flip", "flip"]', "'flip' is given 2 times; give it once"),
    ],
)
def test_a_wrong_calibration_is_refused_with_file_value_and_remedy(
    tmp_path: Path, table: str, said: str
) -> None:
    file = write(tmp_path, f"[calibration]\n{table}\n")
    with pytest.raises(ConfigurationError) as caught:
        read_scenario(file)
    assert str(caught.value).startswith(f"scenario {file}: ")
    assert said in str(caught.value)


def test_a_calibration_that_is_no_table_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, 'calibration = "margin"\n')
    with pytest.raises(ConfigurationError, match="calibration must be a table of settings"):
        read_scenario(file)
