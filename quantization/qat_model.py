"""A canonical model as torch trains it: learned steps, straight-through rounding.

The forward pass computes what the compiled model computes: weights as their codes stand for them, activations rounded
at the plan's sites with the policy's 8-bit parameters. Gradients pass through both roundings as if they were not there
(straight-through), and steps are learned by LSQ (Esser et al. 2020, arXiv:1902.08153).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from quantization.affine import AffineParams
from quantization.arrays import FloatArray
from quantization.draft import Draft
from quantization.errors import ConfigurationError
from quantization.graph_plan import GraphPlan, Layer
from quantization.layer_codes import weight_rows
from quantization.qat_graph import Hook, make_program
from quantization.training_state import LayerState, TrainedState, TrainingGrid


class LearnedStep(torch.autograd.Function):
    """Fake quantization with a learned step per row: equations 1 to 3 of LSQ (arXiv:1902.08153)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, step: Tensor, greatest: int) -> Tensor:  # noqa: ANN401 - torch's own
        """Return code x step, with code = clamp(rint(weight / step)).

        Args:
            ctx: Torch's.
            weight: (O, K).
            step: (O,).
            greatest: Q_P, and -Q_N.
        """
        ratio = weight / step[:, None]
        ctx.save_for_backward(ratio)
        ctx.greatest = greatest
        return ratio.round().clamp_(-greatest, greatest) * step[:, None]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        """Return the gradients of weight and step; the step's is scaled by 1 / sqrt(K Q_P) (section 2.2)."""
        (ratio,) = ctx.saved_tensors
        greatest = ctx.greatest
        is_inside = ratio.abs() <= greatest * (1 + 1e-6)
        slope = torch.where(is_inside, ratio.round() - ratio, ratio.sign() * greatest)
        scale = (ratio.shape[1] * greatest) ** -0.5
        return gradient * is_inside, (gradient * slope).sum(1) * scale, None


def quantized(weight: Tensor, step: Tensor, greatest: int) -> Tensor:
    """Return weights as their codes stand for them; see `LearnedStep`."""
    result: Tensor = LearnedStep.apply(weight, step, greatest)  # type: ignore[no-untyped-call]
    return result


class RoundedActivation(torch.autograd.Function):
    """Fake quantization with fixed parameters, whose gradient is 1 inside the range and 0 outside.

    The values of `torch.fake_quantize_per_tensor_affine`, whose kernel is not vectorised and took a third of training.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, low: int, high: int) -> Tensor:  # noqa: ANN401 - torch's own
        """Return code x scale, with code = clamp(rint(x / scale)).

        Args:
            ctx: Torch's.
            x: Any shape.
            scale: Step between codes.
            low: Least code, the zero point taken off.
            high: Greatest code, likewise.
        """
        code = (x * (1.0 / scale)).round_()
        inside = code.clamp(low, high)
        ctx.save_for_backward(code == inside)
        return inside.mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        """Return the gradient where the value lay inside the range."""
        (is_inside,) = ctx.saved_tensors
        return gradient * is_inside, None, None, None


class QatModel(nn.Module):
    """A canonical model as torch runs and trains it.

    `quantizes` is True for the quantized model, False for the float model with the shadow weights.
    """

    def __init__(
        self,
        model: bytes,
        plan: GraphPlan,
        grids: Mapping[str, TrainingGrid],
        activations: Mapping[str, AffineParams],
    ) -> None:
        """Read the model; its weights are those of the file until `load` gives others.

        Args:
            model: Canonical ONNX bytes.
            plan: What `graph.analyze` says of it.
            grids: By layer: what its codes may be. Layers that are absent stay float and are not trained.
            activations: Parameters by site; sites that are absent stay float.

        Raises:
            UnsupportedModelError: If an operator cannot be trained.
        """
        super().__init__()
        draft = Draft.from_model(onnx.load_model_from_string(model))
        graph = draft.to_model().graph
        self.layers = {layer.name: layer for layer in plan.layers if layer.name in grids}
        self.grids = dict(grids)
        readers = plan.integer_ops | plan.moving_ops | {layer.name for layer in plan.layers}
        self.program = make_program(graph, draft.tensors, readers)
        self.quantizes = True
        written = {site.name for site in plan.sites if site.is_computed_in_integers}
        self._written = {name: _rounding(p) for name, p in activations.items() if name in written}
        self._read = {name: _rounding(p) for name, p in activations.items() if name not in written}
        self._constants = {name: torch.from_numpy(np.array(value)) for name, value in draft.tensors.items()}
        self._shapes = {layer.name: draft.tensors[layer.weight].shape for layer in self.layers.values()}
        self.weights, self.steps, self.biases = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        self._keys = {name: f"p{index}" for index, name in enumerate(self.layers)}
        self.original = {name: self._as_stored(layer, draft) for name, layer in self.layers.items()}
        self.load(self.original)

    def load(self, state: TrainedState) -> None:
        """Take the values of a state.

        Raises:
            ConfigurationError: If a layer is missing or of another shape.
        """
        for name, layer in self.layers.items():
            held = state.get(name)
            if (
                held is None
                or held.weight.shape != self._rows(name)
                or (layer.bias is None) != (not held.bias.size)
            ):
                raise ConfigurationError(f"the state does not hold layer {name!r} as the model has it")
            key = self._keys[name]
            self.weights[key] = nn.Parameter(torch.from_numpy(held.weight.copy()))
            self.steps[key] = nn.Parameter(
                torch.from_numpy(held.step.copy()), requires_grad=self.grids[name].learns_step
            )
            if layer.bias is not None:
                self.biases[key] = nn.Parameter(torch.from_numpy(held.bias.copy()))

    def state(self) -> dict[str, LayerState]:
        """Return the present values."""
        none = np.zeros(0, np.float32)
        return {
            name: LayerState(
                _array(self.weights[key]),
                _array(self.steps[key]),
                _array(self.biases[key]) if key in self.biases else none,
            )
            for name, key in self._keys.items()
        }

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the first output, logits, for float32 inputs (N, ...)."""
        weights = {
            name: quantized(self.weights[key], self.steps[key], self.grids[name].greatest_code)
            if self.quantizes
            else self.weights[key]
            for name, key in self._keys.items()
        }
        return self.program.run(inputs, self._with_layers(weights), self._on_write, self._on_read)[0]

    def run_unrounded(self, inputs: Tensor, seen: Hook) -> None:
        """Run with the shadow weights as they are, and with activations rounded.

        The gradient of a step is that of all weights of its row together, each of which stays as many steps long.

        Args:
            inputs: float32 (N, ...).
            seen: Called with every computed tensor; what it returns takes its place.
        """
        weights = {}
        for name, key in self._keys.items():
            step = self.steps[key]
            weights[name] = self.weights[key] * (step / step.detach())[:, None]
        self.program.run(
            inputs,
            self._with_layers(weights),
            lambda name, value: seen(name, self._on_write(name, value)),
            self._on_read,
        )

    def reference_logits(self, inputs: FloatArray, batch_size: int = 64) -> FloatArray:
        """Return the logits of the float model of the file, (N, classes), for inputs (N, ...)."""
        return self._in_batches(self.reference, inputs, batch_size)

    def logits(self, inputs: FloatArray, batch_size: int = 64) -> FloatArray:
        """Return the logits of the model as it is now, (N, classes), for inputs (N, ...)."""
        return self._in_batches(self, inputs, batch_size)

    def reference(self, inputs: Tensor, seen: Hook | None = None) -> Tensor:
        """Return the first output of the float model of the file, whatever this model holds; not to be trained.

        Args:
            inputs: float32 (N, ...).
            seen: Called with every computed tensor; what it returns takes its place.
        """
        with torch.no_grad():
            return self.program.run(inputs, self._constants, seen or _unchanged, _unchanged)[0]

    @staticmethod
    def _in_batches(run: Callable[[Tensor], Tensor], inputs: FloatArray, batch_size: int) -> FloatArray:
        starts = range(0, len(inputs), batch_size)
        with torch.no_grad(), one_thread():
            parts = [run(torch.from_numpy(inputs[i : i + batch_size])) for i in starts]
        return np.asarray(torch.cat(parts).numpy())

    def parameters_by_layer(self) -> Iterator[tuple[str, list[nn.Parameter]]]:
        """Yield each layer's shadow weights, steps and, where it has one, bias."""
        for name, key in self._keys.items():
            parts = (self.weights, self.steps, self.biases)
            yield name, [part[key] for part in parts if key in part]

    def keep_on_grid(self) -> None:
        """Move shadow weights and steps back to where gradients reach them."""
        with torch.no_grad():
            for name, key in self._keys.items():
                end = self.steps[key][:, None] * self.grids[name].greatest_code
                self.weights[key].copy_(torch.minimum(torch.maximum(self.weights[key], -end), end))

    def _on_write(self, name: str, value: Tensor) -> Tensor:
        return self._written[name](value) if self.quantizes and name in self._written else value

    def _on_read(self, name: str, value: Tensor) -> Tensor:
        return self._read[name](value) if self.quantizes and name in self._read else value

    def _with_layers(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return all constants, with the layers' biases and these weights, (O, K) by layer."""
        constants = dict(self._constants)
        for name, layer in self.layers.items():
            constants[layer.weight] = self._unrolled(name, layer, weights[name])
            if layer.bias is not None:
                constants[layer.bias] = self.biases[self._keys[name]]
        return constants

    def _unrolled(self, name: str, layer: Layer, rows: Tensor) -> Tensor:
        shape, axis = self._shapes[name], layer.weight_axis
        return rows.reshape(shape[axis], *shape[:axis], *shape[axis + 1 :]).movedim(0, axis)

    def _rows(self, name: str) -> tuple[int, int]:
        shape, axis = self._shapes[name], self.layers[name].weight_axis
        return shape[axis], int(np.prod(shape, dtype=np.int64)) // shape[axis]

    def _as_stored(self, layer: Layer, draft: Draft) -> LayerState:
        rows = np.asarray(weight_rows(draft.tensors[layer.weight], layer.weight_axis), np.float32)
        bias = np.zeros(0, np.float32) if layer.bias is None else draft.tensors[layer.bias]
        step = np.maximum(np.abs(rows).max(1) / self.grids[layer.name].greatest_code, 1e-12)
        return LayerState(rows, step.astype(np.float32), np.asarray(bias, np.float32))


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep this thread's sums in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _unchanged(_name: str, value: Tensor) -> Tensor:
    return value


def _array(parameter: Tensor) -> Any:  # noqa: ANN401 - float32 of any shape
    return parameter.detach().numpy().copy()


def _rounding(params: AffineParams) -> Any:  # noqa: ANN401
    """Return the fake quantization of one site."""
    scale, zero_point = float(params.scale), int(params.zero_point)
    low, high = params.qmin - zero_point, params.qmax - zero_point
    return lambda x: RoundedActivation.apply(x, scale, low, high)  # type: ignore[no-untyped-call]
