"""Torch modules as ONNX bytes: what `quantization.graph.canonicalize` takes.

Torch writes stack traces with local file paths into the metadata of every node: they would leak who built
the model, and change its bytes from machine to machine. None of it is kept.
"""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch

from quantization.errors import UnsupportedModelError

INPUT_NAME = "input"
OUTPUT_NAME = "logits"


def export_torch(module: torch.nn.Module, example: torch.Tensor, *, opset_version: int = 21) -> bytes:
    """Return a module as a float32 ONNX model: one input, one output, any number of rows.

    The module is exported as it infers (`eval`): BatchNormalization behind a convolution is folded into it.
    The same weights and the same version of torch give the same bytes; no path, name or time of the machine
    is in them. Takes about 3 seconds the first time in a process, then under a second.

    Args:
        module: Takes one float32 tensor (N, ...) and returns one (N, classes). It is not changed.
        example: An input of the right shape, float32 (N, ...); its values do not matter.
        opset_version: Version of the ONNX operator set; 21 or newer.

    Returns:
        A serialized `ModelProto` with its weights inside; the input is `input`, the output `logits`.

    Raises:
        UnsupportedModelError: If torch cannot trace the module, or it computes something else than one
            tensor from one tensor.
    """
    frozen = copy.deepcopy(module).cpu().eval()
    rows = _two_rows(example.detach().cpu())
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                frozen,
                (rows,),
                dynamo=True,
                opset_version=opset_version,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except Exception as error:  # torch raises errors of many kinds, whatever the module does
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedModelError(
            f"torch cannot export {type(module).__name__} to ONNX: {reason}; export it yourself and give the file"
        ) from error
    if program is None:
        raise UnsupportedModelError(f"torch exported nothing for {type(module).__name__}")
    model = program.model_proto
    if len(model.graph.input) != 1 or len(model.graph.output) != 1:
        raise UnsupportedModelError(
            f"{type(module).__name__} has {len(model.graph.input)} inputs and {len(model.graph.output)} outputs;"
            " wrap it in a module with one of each"
        )
    _strip(model)
    exported: bytes = model.SerializeToString(deterministic=True)
    return exported


def _two_rows(example: torch.Tensor) -> torch.Tensor:
    """Return the example with two rows at least: torch takes an axis of length 1 for a constant."""
    if example.ndim < 2 or example.shape[0] < 1:
        raise UnsupportedModelError(
            f"example of shape {tuple(example.shape)}; give at least one row, as (1, ...)"
        )
    return example if example.shape[0] > 1 else torch.cat([example, example])


def _strip(model: onnx.ModelProto) -> None:
    """Drop everything from a model that does not take part in computing."""
    graph = model.graph
    for holder in (
        model,
        graph,
        *graph.node,
        *graph.value_info,
        *graph.input,
        *graph.output,
        *graph.initializer,
    ):
        holder.ClearField("metadata_props")
        holder.ClearField("doc_string")
    model.ClearField("producer_name")
    model.ClearField("producer_version")
    graph.name = "main"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's exporter, which reports its own internals on stderr."""
    logger = logging.getLogger("torch.onnx")
    was_disabled, level = logger.disabled, logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)
            logger.disabled = was_disabled
