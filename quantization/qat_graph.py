"""A canonical ONNX model as a program of torch operators: what training runs, node by node.

Rules:

1. An operator that training does not know is refused by name when the program is made, not when it runs.
2. Operators that compute on codes see what the codes stand for; all others see values as they were written.
3. A value is let go after its last use, so that inference takes the memory of the widest cut alone.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import onnx
from torch import Tensor

from quantization.qat_operators import Operation, operation

Hook = Callable[[str, Tensor], Tensor]
"""The name of a tensor and its value, to what its readers see."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One node.

    Attributes:
        run: What it computes.
        inputs: Names of its operands, empty where one is left out.
        outputs: Names of its results.
        last_uses: Values that nobody needs afterwards.
        reads_codes: It computes on codes: it sees its operands as their codes stand for them.
    """

    run: Operation
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last_uses: tuple[str, ...]
    reads_codes: bool


@dataclass(frozen=True, slots=True)
class Program:
    """A graph, ready to run.

    Attributes:
        instructions: In topological order.
        input_name: Of the data.
        output_names: In order.
    """

    instructions: tuple[Instruction, ...]
    input_name: str
    output_names: tuple[str, ...]

    def run(
        self, inputs: Tensor, constants: Mapping[str, Tensor], written: Hook, read_as_codes: Hook
    ) -> list[Tensor]:
        """Return the outputs for one batch.

        Args:
            inputs: float32 (N, ...).
            constants: Every constant by name; weights as this step has them.
            written: Sees every computed tensor; what it returns takes its place.
            read_as_codes: Sees, once, what operators on codes read; what it returns is what they read.
        """
        values: dict[str, Tensor] = {self.input_name: inputs}
        rounded: dict[str, Tensor] = {}

        def operand(name: str, reads_codes: bool) -> Tensor | None:
            if name not in values:
                return constants[name] if name else None
            if not reads_codes:
                return values[name]
            if name not in rounded:
                rounded[name] = read_as_codes(name, values[name])
            return rounded[name]

        for step in self.instructions:
            results = step.run(*[operand(name, step.reads_codes) for name in step.inputs])
            if isinstance(results, Tensor):
                results = (results,)
            for name, result in zip(step.outputs, results, strict=False):
                values[name] = written(name, result)
            for name in step.last_uses:
                values.pop(name, None)
                rounded.pop(name, None)
        return [values[name] for name in self.output_names]


def make_program(
    graph: onnx.GraphProto, constant_names: Iterable[str], code_readers: Collection[str]
) -> Program:
    """Return the graph as a program.

    Args:
        graph: Of a canonical model.
        constant_names: Names that are not the data.
        code_readers: Names of the nodes that compute on codes.

    Raises:
        UnsupportedModelError: If it holds an operator that training does not know.
    """
    constants = set(constant_names)
    kept = constants | {value.name for value in graph.output}
    last: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        last.update({name: index for name in node.input if name and name not in kept})
    steps = []
    for index, node in enumerate(graph.node):
        unused = tuple(name for name in dict.fromkeys(node.input) if last.get(name) == index)
        steps.append(
            Instruction(
                operation(node), tuple(node.input), tuple(node.output), unused, node.name in code_readers
            )
        )
    (data,) = (value.name for value in graph.input if value.name not in constants)
    return Program(tuple(steps), data, tuple(value.name for value in graph.output))
