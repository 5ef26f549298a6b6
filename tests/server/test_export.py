import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from quantization.errors import UnsupportedModelError
from quantization.graph import analyze, canonicalize
from server.export import export_torch


class Small(nn.Module):
    """Convolution with BatchNormalization, a shortcut and a mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, 1, 1)
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(8, 4)
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.weight.uniform_(0.5, 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.norm(self.first(x)))
        return self.linear(self.dropout(torch.relu(self.second(h) + h)).mean((2, 3)))


class TwoInputs(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


class TwoOutputs(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + 1, x * 2


@pytest.fixture(scope="module")
def exported() -> bytes:
    return export_torch(Small().train(), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_the_export_computes_what_the_module_infers_for_any_number_of_rows(
    exported: bytes, rows: int
) -> None:
    session = ort.InferenceSession(exported, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(rows).normal(size=(rows, 3, 8, 8)).astype(np.float32)
    (logits,) = session.run(["logits"], {"input": x})
    with torch.no_grad():
        expected = Small().eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_the_same_module_gives_the_same_bytes(exported: bytes) -> None:
    assert export_torch(Small().eval(), torch.ones(5, 3, 8, 8)) == exported


def test_no_path_of_this_machine_and_no_metadata_is_in_the_bytes(exported: bytes) -> None:
    model = onnx.load_model_from_string(exported)
    assert not model.metadata_props
    assert not model.graph.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    for word in (b"/", b".py", b"File", b"torch"):
        # Weights are binary and may hold any bytes by chance: look at everything else.
        bare = onnx.ModelProto()
        bare.CopyFrom(model)
        bare.graph.ClearField("initializer")
        assert word not in bare.SerializeToString()


def test_the_export_is_a_model_that_is_quantized(exported: bytes) -> None:
    plan = analyze(canonicalize(exported))
    assert [layer.op for layer in plan.layers] == ["Conv", "Conv", "Gemm"]
    assert plan.input_shape == (None, 3, 8, 8)


def test_the_module_is_left_as_it_was() -> None:
    module = Small().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    export_torch(module, torch.zeros(2, 3, 8, 8))
    assert module.training
    assert module.norm.training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_the_exporter_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    export_torch(Small(), torch.zeros(2, 3, 8, 8))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


@pytest.mark.parametrize("module", [TwoInputs(), TwoOutputs()])
def test_a_module_of_another_form_is_refused_in_one_line(module: nn.Module) -> None:
    with pytest.raises(UnsupportedModelError, match=type(module).__name__) as caught:
        export_torch(module, torch.zeros(2, 3))
    assert "\n" not in str(caught.value)


def test_an_example_without_rows_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="at least one row"):
        export_torch(Small(), torch.zeros(0, 3, 8, 8))
