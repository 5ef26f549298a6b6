"""Learned rounding: shadow weights that are drawn to their codes while each block still gives what the float one gives.

Straight-through training knows a weight's code alone, and at 3 bits what turns a code over is mostly noise. Here the
weights are used as they are while they are between two codes, and a penalty that grows over the rounds moves them to
one of them: the regulariser of AdaRound (Nagel et al. 2020, arXiv:2004.10568, equation 24), of the weights themselves
instead of a sigmoid's argument. The rules:

1. The target is not the answer but the output of every block, which has thousands of values for each input where an
   answer has ten: block reconstruction (BRECQ, Li et al. 2021, arXiv:2102.05426). A block ends where one tensor alone
   leads on, behind a residual sum and its activation.
2. All blocks are trained at once, in one pass. Each reads what the quantized blocks before it give, and no gradient
   passes from one to the other.
3. Blocks settle from the input on: the first half way through, the last at the end. Whatever a block's codes cost, the
   ones behind it can still make up for.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quantization.qat_graph import Program
from quantization.qat_model import QatModel

PENALTY = 10.0
"""Weight of the penalty beside the blocks' relative errors."""

FREE = 0.1
"""Part of the training before any weight is drawn."""

HEAD_START = 0.5
"""How much of the training before the last block the first one has settled."""

_FIRST_POWER, _LAST_POWER = 20.0, 2.0  # of the penalty: at first it leaves all but weights near a code alone


@dataclass(frozen=True, slots=True)
class Block:
    """Layers between two cuts of the graph.

    Attributes:
        output: The tensor at its end.
        layers: Names.
        depth: 0 for the first block, 1 for the last.
    """

    output: str
    layers: tuple[str, ...]
    depth: float


class BlockReconstruction:
    """The loss of a model whose rounding is learned."""

    def __init__(self, model: QatModel, example: Tensor) -> None:
        """Cut the model into blocks.

        Args:
            model: To train.
            example: One input or more, (N, ...), to see how large tensors are.
        """
        self._model = model
        sizes: dict[str, int] = {}

        def measure(name: str, value: Tensor) -> Tensor:
            sizes[name] = value.numel()
            return value

        model.reference(example[:1], measure)
        weights = {layer.weight: name for name, layer in model.layers.items()}
        self.blocks = find_blocks(model.program, weights, sizes)
        self._ends = {block.output for block in self.blocks}
        self._depths = {name: block.depth for block in self.blocks for name in block.layers}

    def loss(self, inputs: Tensor, progress: float) -> Tensor:
        """Return the blocks' errors and the penalty.

        Args:
            inputs: float32 (N, ...).
            progress: Of the whole training, 0 to 1.
        """
        return self.errors(inputs).sum() + PENALTY * self.penalty(progress)

    def errors(self, inputs: Tensor) -> Tensor:
        """Return each block's mean square error over the variance of its float output, (blocks,)."""
        wanted: dict[str, Tensor] = {}
        given: dict[str, Tensor] = {}

        def keep(name: str, value: Tensor) -> Tensor:
            if name in self._ends:
                wanted[name] = value
            return value

        def cut(name: str, value: Tensor) -> Tensor:
            if name not in self._ends:
                return value
            given[name] = value
            return value.detach()

        self._model.reference(inputs, keep)
        self._model.run_unrounded(inputs, cut)
        found = []
        for block in self.blocks:
            target = wanted[block.output]
            spread = (target - target.mean()).square().mean()
            found.append((given[block.output] - target).square().mean() / spread.clamp(min=1e-12))
        return torch.stack(found)

    def penalty(self, progress: float) -> Tensor:
        """Return the sum over layers of how far weights are from their codes, each 0 to 1."""
        total = torch.zeros(())
        for name, (weight, step, *_) in self._model.parameters_by_layer():
            drawn = _share(progress, self._depths.get(name, 1.0))
            if drawn > 0:
                ratio = weight / step.detach()[:, None]
                power = _FIRST_POWER + (_LAST_POWER - _FIRST_POWER) * drawn
                centred = 2 * (ratio - ratio.detach().floor()) - 1
                total = total + (1 - centred.abs().pow(power)).mean()
        return total


def _share(progress: float, depth: float) -> float:
    """Return how much of its way to its codes a block of some depth has gone, 0 to 1."""
    end = 1 - HEAD_START * (1 - depth)
    return min(1.0, max(0.0, (progress - FREE) / (end - FREE)))


def find_blocks(program: Program, layers: Mapping[str, str], sizes: Mapping[str, int]) -> tuple[Block, ...]:
    """Return the blocks of a program.

    A block ends at the largest tensor that alone leads on to the next one's layers, and at the last of equal ones:
    behind an activation, before a pooling.

    Args:
        program: Of the model.
        layers: Names of layers by the constant that holds their weights.
        sizes: Elements of each computed tensor.
    """
    last_use = {
        name: index for index, step in enumerate(program.instructions) for name in step.inputs if name
    }
    last_use |= dict.fromkeys(program.output_names, len(program.instructions))
    found: list[tuple[str, tuple[str, ...]]] = []
    members: list[str] = []
    end: str | None = None
    alive = {program.input_name}
    for index, step in enumerate(program.instructions):
        own = [layers[name] for name in step.inputs if name in layers]
        if own and end is not None:
            found.append((end, tuple(members)))
            members, end = [], None
        members += own
        alive = {name for name in alive | set(step.outputs) if last_use.get(name, -1) > index}
        if members and len(alive) == 1:
            (only,) = alive
            if end is None or sizes.get(only, 0) >= sizes.get(end, 0):
                end = only
    if members:
        found.append((end or program.output_names[0], tuple(members)))
    return tuple(
        Block(output, names, index / max(1, len(found) - 1)) for index, (output, names) in enumerate(found)
    )
