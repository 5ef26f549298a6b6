"""Sessions of ONNX Runtime over an artifact's graphs, whose tensors are handed over from memory.

No onnx package is needed.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from quantization.arrays import AnyArray
from quantization.artifact import TensorSpec
from quantization.errors import InvalidDataError, UpdateRejectedError

Float32Array = NDArray[np.float32]

_ORT_ERRORS = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
)


def open_session(
    skeleton: bytes,
    files: Mapping[str, bytes],
    threads: int = 1,
    *,
    folds_weights: bool = False,
    profile_prefix: str = "",
) -> ort.InferenceSession:
    """Return an ONNX Runtime session over a skeleton and the contents of its external files.

    The memory arena and the memory patterns are off: they trade resident memory for little speed at the batch
    sizes of a device. The order of execution is the one that runs what observes a tensor right behind it; ONNX
    Runtime's default leaves it to the end and keeps every activation until then (ResNet-20, 32 images: 60 MB).

    Args:
        skeleton: ONNX bytes.
        files: Content by location; may hold more than the skeleton needs. ONNX Runtime copies what it needs.
        threads: Of one inference.
        folds_weights: Keep dequantized weights as float constants, 4 bytes each: convolutions of a float graph over
            codes run twice as fast. Not for graphs that compute in integers.
        profile_prefix: Start of the path of the file that ONNX Runtime writes the time of every kernel to; empty for
            no profile.

    Raises:
        UpdateRejectedError: If ONNX Runtime cannot load them.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = 4  # what goes wrong is raised, and said once
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A MatMul over dequantized weights computes in float32; by default it rounds its input to 8 bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if folds_weights:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if profile_prefix:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    files = files or {
        "unused": b"\0"
    }  # given any file, ONNX Runtime reads none from the disk, whatever a graph says
    locations = list(files)
    contents = [files[location] for location in locations]
    options.add_external_initializers_from_files_in_memory(locations, contents, [len(c) for c in contents])
    try:
        return ort.InferenceSession(skeleton, options, providers=["CPUExecutionProvider"])
    except _ORT_ERRORS as error:
        raise UpdateRejectedError(f"ONNX Runtime cannot load the graph: {_first_line(error)}") from error


def run_session(
    session: ort.InferenceSession, outputs: Sequence[str], feed: Mapping[str, Float32Array]
) -> list[AnyArray]:
    """Return the named outputs.

    Raises:
        InvalidDataError: If ONNX Runtime cannot run the graph on this input.
    """
    try:
        arrays: list[AnyArray] = session.run(list(outputs), dict(feed))
    except (*_ORT_ERRORS, ValueError) as error:
        raise InvalidDataError(f"ONNX Runtime cannot run the graph: {_first_line(error)}") from error
    return arrays


def check_input(x: AnyArray, spec: TensorSpec) -> Float32Array:
    """Return `x` as the contiguous float32 batch that the model takes.

    Raises:
        InvalidDataError: If it has another shape, is not numeric, or holds values that are not finite.
    """
    wanted = "(" + ", ".join("n" if size is None else str(size) for size in spec.shape) + ")"
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "fiu":
        raise InvalidDataError(
            f"the model takes a float32 array of shape {wanted}, not {type(x).__name__} "
            f"of {getattr(x, 'dtype', 'no element type')}"
        )
    fits = x.ndim == len(spec.shape) and all(
        size is None or size == actual for size, actual in zip(spec.shape, x.shape, strict=True)
    )
    if not fits or x.size == 0:
        raise InvalidDataError(f"the model takes inputs of shape {wanted}, not {x.shape}")
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes an infinity, refused below
        batch = np.ascontiguousarray(x, np.float32)
    if not np.isfinite(batch).all():
        raise InvalidDataError("the input holds values that are not finite (NaN or infinity)")
    return batch


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
