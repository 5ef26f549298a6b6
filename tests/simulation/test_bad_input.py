"""What the command says to models, data and settings that it cannot use, and what it runs in spite of them."""

import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from models import ModelBuilder
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from simulation.cli import app

ROWS, SHAPE, CLASSES = 60, (3, 8, 8), 4

Wrap = Callable[[ModelBuilder, str], str]


def built(
    wrap: Wrap = lambda _, x: x, shape: tuple[int | str, ...] = ("N", *SHAPE)
) -> tuple[ModelBuilder, str]:
    """Return a Conv, what `wrap` puts behind it, pooling and a Gemm; and the name of the logits."""
    b = ModelBuilder(shape)
    x = wrap(b, b.add("Relu", [b.conv("x", 3, 6, 3)]))
    x = b.add("Flatten", [b.add("GlobalAveragePool", [x])])
    return b, b.gemm(x, 6, CLASSES)


def model(wrap: Wrap = lambda _, x: x, shape: tuple[int | str, ...] = ("N", *SHAPE)) -> bytes:
    b, logits = built(wrap, shape)
    return b.bytes(logits)


def edited(edit: Callable[[onnx.ModelProto], object]) -> bytes:
    proto = onnx.load_model_from_string(model())
    edit(proto)
    return proto.SerializeToString()


def with_weights(change: Callable[[np.ndarray], np.ndarray], *, first_only: bool = False) -> bytes:
    b, logits = built()
    names = list(b.tensors)[:1] if first_only else list(b.tensors)
    for name in names:
        b.tensors[name] = change(b.tensors[name]).astype(np.float32)
    return b.bytes(logits)


def rows(count: int = ROWS) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, *SHAPE)).astype(np.float32)


def classes(count: int = ROWS) -> np.ndarray:
    return np.arange(count) % CLASSES


class Desk:
    """A folder with a model and data, and the command run on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = folder / "my.onnx"
        self.data = folder / "my.npz"
        self.give(model())
        self.give_data()

    def give(self, content: bytes) -> "Desk":
        self.model.write_bytes(content)
        return self

    def give_data(self, **changes: Any) -> "Desk":
        arrays = {"x": rows(), "y": classes()} | changes
        np.savez(self.data, **{name: array for name, array in arrays.items() if array is not None})
        return self

    def run(self, *options: object) -> Result:
        command = [
            "run",
            "--model",
            self.model,
            "--data",
            self.data,
            "--devices",
            4,
            "--generations",
            1,
            *options,
        ]
        return CliRunner().invoke(app, [str(word) for word in command])

    def success(self, *options: object) -> str:
        found = self.run("--check-pooled", *options)
        assert found.exit_code == 0, found.stderr
        assert found.stderr == ""
        assert "DIFFER" not in found.stdout
        return found.stdout

    def refusal(self, *options: object, exit_code: int = 2) -> str:
        """Return the one line that the user sees."""
        found = self.run(*options)
        assert isinstance(found.exception, SystemExit), found.exception
        assert found.exit_code == exit_code, found.stderr
        assert found.stdout == ""
        assert found.stderr.startswith("error: ")
        assert found.stderr.count("\n") == 1, found.stderr
        return found.stderr


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


# Models that are refused.


def control_flow() -> bytes:
    b, logits = built()
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("Identity", [logits], [f"{name}_out"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)],
        )
        for name in ("then", "else")
    }
    b.tensors["condition"] = np.array(True)
    return b.bytes(b.add("If", ["condition"], **branches))


def half_precision(proto: onnx.ModelProto) -> None:
    tensors = [numpy_helper.to_array(tensor) for tensor in proto.graph.initializer]
    names = [tensor.name for tensor in proto.graph.initializer]
    del proto.graph.initializer[:]
    for name, tensor in zip(names, tensors, strict=True):
        half = tensor.astype(np.float16) if tensor.dtype == np.float32 else tensor
        proto.graph.initializer.append(numpy_helper.from_array(half, name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16


def no_layer() -> bytes:
    b = ModelBuilder(["N", *SHAPE])
    return b.bytes(b.add("Flatten", [b.add("GlobalAveragePool", [b.add("Relu", ["x"])])]))


def without_flatten() -> bytes:
    b = ModelBuilder(["N", *SHAPE])
    return b.bytes(b.conv("x", 3, CLASSES, 3))


def answers_classes() -> bytes:
    b, logits = built()
    proto = b.model(b.add("ArgMax", [logits], axis=1))
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    return proto.SerializeToString()


def wrong_channels() -> bytes:
    b = ModelBuilder(["N", *SHAPE])
    return b.bytes(b.gemm(b.add("Flatten", [b.conv("x", 5, 6, 3)]), 384, CLASSES))


def contradicts_dynamic_shape() -> bytes:
    b = ModelBuilder(["N", 3, "H", "W"])
    x = b.add("Reshape", [b.add("Relu", [b.conv("x", 3, 6, 3)]), b.ints(0, -1)])
    return b.bytes(b.gemm(x, 6 * 10 * 10, CLASSES))


def terabytes() -> bytes:
    b, logits = built()
    huge = b.add("ConstantOfShape", [b.ints(1_000_000, 1_000_000)])
    return b.bytes(b.add("Add", [logits, b.add("ReduceMean", [huge], keepdims=0)]))


def external_file(proto: onnx.ModelProto) -> None:
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def lying_dims(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].dims[0] = 10**9


def short_data(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-3]


def dangling(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].input[0] = "nowhere"


def scaled_up(b: ModelBuilder, x: str) -> str:
    return b.add("Mul", [b.add("Mul", [x, b.constant(3e38)]), b.constant(3e38)])


def overflows_before_a_layer(b: ModelBuilder, x: str) -> str:
    return b.add("Relu", [b.conv(b.add("Exp", [b.add("Mul", [x, b.constant(1e3)])]), 6, 6, 3)])


def logarithm_of_negative(b: ModelBuilder, x: str) -> str:
    return b.add("Relu", [b.conv(b.add("Log", [b.add("Neg", [x])]), 6, 6, 3)])


REFUSED_MODELS: dict[str, tuple[Callable[[], bytes], str]] = {
    "random bytes": (
        lambda: np.random.default_rng(0).bytes(3000),
        "not an ONNX model, or a truncated one; export it",
    ),
    "truncated": (
        lambda: model()[: len(model()) // 2],
        "not an ONNX model, or a truncated one; export it again",
    ),
    "text": (lambda: b"hello world", "not an ONNX model, or a truncated one; export it again"),
    "empty file": (lambda: b"", "it has no nodes; export it again"),
    "control flow": (control_flow, "control flow (If 'If_5') cannot be quantized; export the model traced"),
    "fp16": (
        lambda: edited(half_precision),
        "is float16; export the model in float32 (model.float() in torch)",
    ),
    "no Conv or Gemm": (
        no_layer,
        "no Conv, Gemm or MatMul with constant weights, so there is nothing to quantize",
    ),
    "unknown operator": (
        lambda: model(lambda b, x: b.add("Frobnicate", [x])),
        "not a valid ONNX model: No Op registered for Frobnicate",
    ),
    "no shape": (
        lambda: edited(lambda proto: proto.graph.input[0].type.tensor_type.ClearField("shape")),
        "input 'x' needs a declared shape with a batch axis and another",
    ),
    "no classifier": (
        without_flatten,
        "must be float32 logits (N, classes), and is float32 (2, 4, 8, 8) for 2 rows",
    ),
    "classes for logits": (
        answers_classes,
        "must be float32 logits (N, classes), and is int64 (2, 1) for 2 rows",
    ),
    "channels that contradict": (
        wrong_channels,
        "ONNX Runtime cannot run it on inputs of shape (2, 3, 8, 8)",
    ),
    "shapes that contradict the data": (
        contradicts_dynamic_shape,
        "ONNX Runtime cannot run it on inputs of shape",
    ),
    "constant of terabytes": (terabytes, "check the model with onnxruntime alone"),
    "tensor in another file": (
        lambda: edited(external_file),
        "lies in another file; save the model as one file",
    ),
    "tensor that declares gigabytes": (lambda: edited(lying_dims), "not a valid ONNX model"),
    "tensor that is too short": (lambda: edited(short_data), "not a valid ONNX model"),
    "input from nowhere": (lambda: edited(dangling), "not a valid ONNX model"),
    "NaN weights": (lambda: with_weights(lambda w: w * np.nan, first_only=True), "repair the model before"),
    "weights that overflow": (lambda: with_weights(lambda w: w * 1e37, first_only=True), "check their scale"),
    "overflows everywhere": (
        lambda: model(scaled_up),
        "has no finite value on the lab's inputs; check their scale",
    ),
    "overflows before a layer": (
        lambda: model(overflows_before_a_layer),
        "are not finite, or too large for float32",
    ),
    "gives NaN": (lambda: model(logarithm_of_negative), "are not finite, or too large for float32"),
}


@pytest.mark.parametrize("name", REFUSED_MODELS)
def test_a_model_that_cannot_be_used_is_refused(
    desk: Desk, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    build, message = REFUSED_MODELS[name]
    told = desk.give(build()).refusal()
    assert str(desk.model) in told
    assert message in told
    assert capfd.readouterr().err == "", "nothing else reaches the terminal"


def test_a_model_that_is_not_there_is_named(desk: Desk) -> None:
    desk.model.unlink()
    assert f"cannot read model {desk.model}: No such file or directory; check --model" in desk.refusal()
    desk.model.mkdir()
    assert f"cannot read model {desk.model}: Is a directory; check --model" in desk.refusal()


# Models that run.


@pytest.mark.parametrize("op", ["Erf", "Softplus", "Sigmoid", "Elu"])
def test_an_operator_without_integer_kernel_stays_float_and_is_reported(desk: Desk, op: str) -> None:
    told = desk.give(model(lambda b, x: b.add(op, [x]))).success()
    assert f"Kept in float: {op}_2 ({op}): it has no integer kernel" in told


def initializers_listed(proto: onnx.ModelProto) -> None:
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def reshaping_to_batch_1() -> bytes:
    b = ModelBuilder([1, *SHAPE])
    x = b.add("Reshape", [b.add("Relu", [b.conv("x", 3, 6, 3)]), b.ints(1, 6 * 64)])
    return b.bytes(b.gemm(x, 6 * 64, CLASSES))


def one_layer() -> bytes:
    b = ModelBuilder(["N", *SHAPE])
    return b.bytes(b.gemm(b.add("Flatten", ["x"]), 192, CLASSES))


def two_outputs() -> bytes:
    b, logits = built()
    return b.bytes(logits, b.add("Relu", [logits]))


def ending_in_softmax() -> bytes:
    b, logits = built()
    return b.bytes(b.add("Softmax", [logits], axis=-1))


def node_by_node(count: int) -> bytes:
    def chain(b: ModelBuilder, x: str) -> str:
        for _ in range(count):
            x = b.add("Identity", [b.add("Relu", [x])])
        return x

    return model(chain)


ACCEPTED_MODELS: dict[str, Callable[[], bytes]] = {
    "dynamic height and width": lambda: model(shape=("N", 3, "H", "W")),
    "fixed batch": lambda: model(shape=(1, *SHAPE)),
    "fixed batch in a Reshape": reshaping_to_batch_1,
    "initializers among the inputs": lambda: edited(initializers_listed),
    "one layer": one_layer,
    "two outputs": two_outputs,
    "ends in Softmax": ending_in_softmax,
    "a thousand nodes": lambda: node_by_node(500),
    "all weights zero": lambda: with_weights(np.zeros_like),
    "all weights equal": lambda: with_weights(lambda w: np.full_like(w, 0.5)),
    "first layer dead": lambda: with_weights(np.zeros_like, first_only=True),
    "denormal weights": lambda: with_weights(lambda w: w * 1e-42, first_only=True),
}


@pytest.mark.parametrize("name", ACCEPTED_MODELS)
def test_an_unusual_model_runs(desk: Desk, name: str) -> None:
    desk.give(ACCEPTED_MODELS[name]()).success("--drift", "gain=1.5")


# Data that is refused.


def changed(value: float, dtype: Any = np.float32) -> np.ndarray:
    x = rows().astype(dtype)
    x[7, 0, 0, 0] = value
    return x


REFUSED_DATA: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": (
        {"x": changed(np.nan)},
        "array 'x' must have finite float32 values, and has 1 others (the first in row 7)",
    ),
    "inf": ({"x": changed(np.inf)}, "array 'x' must have finite float32 values"),
    "beyond float32": ({"x": changed(1e300, np.float64)}, "array 'x' must have finite float32 values"),
    "too large for the model": (
        {"x": rows() * 1e30},
        "are not finite, or too large for float32, on the lab's inputs",
    ),
    "channels last": (
        {"x": rows().transpose(0, 2, 3, 1)},
        "must have shape (N, 3, 8, 8), as my.onnx takes it, and has (60, 8, 8, 3); transpose or resize it",
    ),
    "flat rows": ({"x": rows().reshape(ROWS, -1)}, "must have shape (N, 3, 8, 8)"),
    "no rows": ({"x": rows()[:0], "y": None}, "must have rows, and has none; give at least one"),
    "too few rows": ({"x": rows(9), "y": None}, "must have 10 rows to draw a split from, and has 9"),
    "pickled rows": (
        {"x": np.array([{"a": 1}] * ROWS, dtype=object)},
        "array 'x' holds pickled Python objects, which are never loaded; save it as a plain array of numbers",
    ),
    "pickled classes": (
        {"y": np.array([None] * ROWS, dtype=object)},
        "array 'y' holds pickled Python objects",
    ),
    "classes too few": (
        {"y": classes(59)},
        "must have shape (60,), one class for each row of x, and has (59,)",
    ),
    "class out of range": (
        {"y": classes() + 1},
        "must have classes from 0 to 3, and has 1 to 4; renumber them",
    ),
    "class below 0": ({"y": classes() - 1}, "must have classes from 0 to 3, and has -1 to 2"),
    "fractions for classes": ({"y": classes() + 0.5}, "array 'y' must have whole numbers"),
    "text for classes": ({"y": np.array(["cat"] * ROWS)}, "must have whole numbers, and it is of type <U3"),
    "owners too few": ({"device": np.arange(3)}, "one owner for each row of x"),
    "a side without rows": ({"split": np.arange(ROWS) % 2}, "rows of each side, and has none of 2 (test)"),
    "unknown side": (
        {"split": np.full(ROWS, 7)},
        "must have 0, 1 or 2, and has 7; use 0 lab, 1 field, 2 test",
    ),
    "unknown array": ({"labels": classes()}, "unknown array 'labels'; known: 'x', 'y', 'device', 'split'"),
}


@pytest.mark.parametrize("name", REFUSED_DATA)
def test_data_that_cannot_be_used_is_refused(desk: Desk, name: str) -> None:
    arrays, message = REFUSED_DATA[name]
    told = desk.give_data(**arrays).refusal()
    assert str(desk.data) in told
    assert message in told


def npz_declaring(path: Path, header: str, body: bytes = b"") -> None:
    text = header.encode() + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 3, 8, 8)}",
            "and has 0; save it again",
        ),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3, 8, 8)}", "declares shape (-1, 3, 8, 8)"),
        (
            "{'descr': '|S0', 'fortran_order': False, 'shape': (1000000000000,)}",
            "save it as a plain array of numbers",
        ),
        ("__import__('os').abort()", "entry 'x' is not a numpy array; save it with numpy.savez"),
        ("[" * 5000, "entry 'x' is not a numpy array"),
    ],
    ids=["petabytes", "negative", "empty text", "code", "nested"],
)
def test_an_array_that_lies_about_itself_is_refused_before_memory_is_taken(
    desk: Desk, header: str, message: str
) -> None:
    npz_declaring(desk.data, header)
    told = desk.refusal()
    assert str(desk.data) in told
    assert message in told


@pytest.mark.parametrize("spoil", ["absent", "folder", "text", "truncated", "flipped"])
def test_a_damaged_data_file_is_refused(desk: Desk, spoil: str) -> None:
    content = desk.data.read_bytes()
    desk.data.unlink()
    if spoil == "folder":
        desk.data.mkdir()
    elif spoil != "absent":
        flipped = content[:3000] + bytes(byte ^ 255 for byte in content[3000:3050]) + content[3050:]
        parts = {"text": b"x = 3", "truncated": content[: len(content) // 2], "flipped": flipped}
        desk.data.write_bytes(parts[spoil])
    told = desk.refusal()
    assert str(desk.data) in told
    assert "; " in told, "a remedy"


# Fleets.


@pytest.mark.parametrize("value", [0.0, 0.7, -3.0])
def test_rows_that_are_all_the_same_run(desk: Desk, value: float) -> None:
    desk.give_data(x=np.full((ROWS, *SHAPE), value)).success("--drift", "offset=0.5")


def test_devices_with_one_row_each_run(desk: Desk) -> None:
    split = np.array([0, 0, 1, 1, 1, 1, 2, 2])
    told = desk.give_data(x=rows(8), y=classes(8), split=split).success("--drift", "noise=0.1")
    assert "4 devices" in told


def test_devices_without_rows_are_left_out(desk: Desk) -> None:
    split = np.array([0, 0, 1, 1, 2, 2])
    found = desk.give_data(x=rows(6), y=classes(6), split=split).run("--devices", 500, "--json")
    assert found.exit_code == 0, found.stderr
    (generation,) = json.loads(found.stdout)["generations"]
    assert generation["clients"] == 2, "the devices that have a row"
    assert generation["dropped"] == {}


def test_field_values_that_overflow_the_model_do_no_harm(desk: Desk) -> None:
    split, x = np.repeat([0, 1, 2], 20), rows()
    x[20:30] = np.clip(x[20:30].astype(np.float64) * 3e38, -3e38, 3e38)
    desk.give_data(x=x, split=split).success()


def test_owners_may_have_names(desk: Desk) -> None:
    desk.give_data(device=np.array(["ann", "bob", "cy"])[np.arange(ROWS) % 3]).success("--partition", "owner")


def test_classes_may_be_named_twice_or_outnumber_the_devices(desk: Desk) -> None:
    desk.success("--device-class", "arm", "--device-class", "arm", "--device-class", "x86")
    desk.success("--device-class", "arm", "--device-class", "x86", "--devices", 1)


def test_data_without_labels_runs(desk: Desk) -> None:
    assert "Without labels" in desk.give_data(y=None).success()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--dropout", 1),
            "no device class finished its generation: x86-vnni: 0 of 4 devices replied, 2 are needed",
        ),
        (("--stragglers", 1), "0 of 4 devices replied, 2 are needed: 4 without an answer after 600 s"),
    ],
)
def test_a_fleet_that_fails_altogether_is_a_failure(
    desk: Desk, options: tuple[object, ...], message: str
) -> None:
    assert message in desk.refusal(*options, exit_code=1)


# Settings.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--drift", "fog=1"), "unknown drift 'fog'"),
        (("--drift", "brightness=0.3"), "drift 'brightness' is not for generic data; known: gain"),
        (
            ("--drift", "offset=1,2,3,4"),
            "a drift gives 4 values, and these rows have 3 channels; give one each",
        ),
        (("--drift", "dead-channels=99"), "names channel 99, and there are 3; give numbers from 0 to 2"),
        (("--drift", "gain=nan"), "drift 'gain=nan' has nan; give factor"),
        (("--drift", "gain=inf"), "drift 'gain=inf' has inf; give factor"),
        (("--drift", "gain"), "drift 'gain' has no severity; give gain=1.8"),
        (("--drift", "gain=2", "--drift", "gain=3"), "drift 'gain' is given 2 times; give it once"),
        (("--devices", -3), "devices is -3; give a whole number from 1 to 1000000"),
        (("--devices", 10**9), "devices is 1000000000; give a whole number from 1 to 1000000"),
        (("--generations", 0), "generations is 0; give a whole number from 1 to 1000"),
        (("--seed", -1), "seed is -1; give a whole number from 0"),
        (("--seed", 2**63), "seed is 9223372036854775808; give a whole number from 0"),
        (("--labelled", "nan"), "labelled is nan; give a fraction from 0 to 1"),
        (("--dropout", 0.6, "--stragglers", 0.6), "give fractions that add up to 1 at most"),
        (
            ("--partition", "owner"),
            "partition 'owner' needs owners, and this data has none; give the npz file an array",
        ),
        (("--device-class", "a b/c"), "device class 'a b/c': use 1 to 63 of"),
        (("--size-ratio", "nan"), "size-ratio is nan; give a number above 1, at most 100: such as 10"),
        (("--size-ratio", "inf"), "size-ratio is inf; give a number above 1"),
        (("--size-ratio", 0), "size-ratio is 0.0; give a number above 1"),
        (("--size-ratio", "1e300"), "size-ratio is 1e+300; give a number above 1, at most 100"),
        (("--max-drop", -1), "max-drop is -1.0; give a number above 0, at most 100: points of accuracy"),
        (("--weight-bits", 1), "weight-bits is 1; give a whole number from 2 to 8"),
        (("--weight-bits", 4, "--rounding-rounds", 0), "rounding-rounds is 0; give a whole number from 1"),
        (("--weight-bits", 4, "--train-rounds", -1), "train-rounds is -1; give a whole number from 0"),
        (("--latency-budget", 0), "latency-budget is 0; give milliseconds above 0"),
        (
            ("--size-ratio", 10, "--max-drop", 1),
            "size-ratio 10.0 and max-drop 1.0 are different goals; give one",
        ),
        (("--train-rounds", 3), "precision is asked for without a goal; give --size-ratio R"),
        (
            ("--size-ratio", 8, "--float-layer", "head=fp8"),
            "float-layer 'head=fp8' has an unknown type 'fp8'; give fp16 or bf16",
        ),
        (("--size-ratio", 8, "--float-layer", "head"), "float-layer 'head' has no type; give head=fp16"),
        (("--range-method", "percentile:2"), "the fraction of a percentile is 0.5 to 1, got 2.0"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_settings_that_cannot_be_used_are_refused(
    desk: Desk, options: tuple[object, ...], message: str
) -> None:
    assert message in desk.refusal(*options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a = " + "[" * 30000, "is nested too deep"),
        ("a." * 20_000 + "b = 1\n" + "#" * 50_000, "is longer than 65536 bytes; is it the right file?"),
        ("seed = " + "9" * 5000, "is not TOML: Exceeds the limit"),
        ("[precision]\nweight-bits = 0x" + "f" * 5000, "has a whole number of more than 64 bits"),
        ("precision.size-ratio" + ".a" * 20_000 + " = 1", "is nested too deep"),
        (
            "[precision]\nsize-ration = 3",
            "unknown setting 'size-ration' of precision; did you mean 'size-ratio'?",
        ),
        ("precision = 3", "precision must be a table of settings, such as { size-ratio = 10 }, not 3"),
        ("seed = 1\nseed = 2", "is not TOML: Cannot overwrite a value"),
        ("devise = 3", "has an unknown key 'devise'; did you mean 'devices'?"),
        ("devices = true", "devices must be a whole number, not True"),
        ('task = "digits"\0', "is not TOML"),
    ],
    ids=[
        "nested",
        "dotted",
        "digits",
        "hexadecimal",
        "tables",
        "precision",
        "no table",
        "twice",
        "misspelt",
        "boolean",
        "zero byte",
    ],
)
def test_a_hostile_scenario_is_refused(desk: Desk, content: str, message: str) -> None:
    file = desk.folder / "scenario.toml"
    file.write_text(content)
    told = desk.refusal("--scenario", file)
    assert str(file) in told
    assert message in told


def test_an_output_that_is_a_file_is_refused_and_kept(desk: Desk) -> None:
    file = desk.folder / "precious"
    file.write_text("mine")
    assert f"cannot write to {file}: File exists; give --out a folder" in desk.refusal("--out", file)
    assert f"cannot write to {file / 'sub'}: Not a directory" in desk.refusal("--out", file / "sub")
    assert file.read_text() == "mine"


def test_paths_may_have_spaces_and_any_letters(tmp_path: Path) -> None:
    folder = tmp_path / 'a folder with späce & "quotes" %s {x}'
    folder.mkdir()
    desk = Desk(folder)
    desk.model = desk.model.rename(folder / "möd [bold]el.onnx")
    found = desk.run("--out", folder / "out")
    assert found.exit_code == 0, found.stderr
    assert "möd [bold]el · 4 devices" in found.stdout
    assert (folder / "out" / "report.html").exists()


def test_the_greatest_seed_and_an_odd_partition_run(desk: Desk) -> None:
    desk.success("--seed", 2**63 - 1, "--partition", "classes:999999999999999999999")
    desk.success("--partition", "dirichlet:1e-300")


def test_a_fresh_process_says_one_line_and_nothing_else(desk: Desk) -> None:
    desk.give(model(scaled_up))
    command = [sys.executable, "-m", "simulation.cli", "run", "--model", desk.model, "--data", desk.data]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, env=environment)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith(f"error: {desk.model} with {desk.data}: ")
    assert found.stderr.count("\n") == 1
