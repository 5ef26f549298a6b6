"""Accuracy of the models that devices run, on rows that no device holds, through ONNX Runtime."""

from collections.abc import Callable

import numpy as np
import onnxruntime as ort

from client.runtime import Runtime
from quantization.arrays import FloatArray, IntArray
from quantization.artifact import Manifest
from quantization.draft import first_line
from quantization.errors import UnsupportedModelError
from server.blob_store import BlobStore

BATCH_SIZE = 256

InferFunction = Callable[[FloatArray], FloatArray]


def float_model(model: bytes) -> InferFunction:
    """Return inference with the fp32 ONNX model itself.

    Raises:
        UnsupportedModelError: If ONNX Runtime cannot load the model; the inference, if it cannot run it.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, and said once
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise UnsupportedModelError(f"ONNX Runtime cannot load it: {first_line(error)}") from error
    name, output = session.get_inputs()[0].name, session.get_outputs()[0].name

    def infer(batch: FloatArray) -> FloatArray:
        try:
            logits: FloatArray = session.run([output], {name: np.ascontiguousarray(batch, np.float32)})[0]
        except Exception as error:
            raise UnsupportedModelError(
                f"ONNX Runtime cannot run it on inputs of shape {batch.shape}: {first_line(error)}"
            ) from error
        return logits

    return infer


def artifact_model(manifest: Manifest, blobs: BlobStore, threads: int = 2) -> InferFunction:
    """Return inference with a compiled artifact, as a device runs it."""
    return Runtime(manifest, blobs.get, threads=threads).infer


def predictions(infer: InferFunction, inputs: FloatArray) -> IntArray:
    """Return the class that a model gives each input, int64 (N,)."""
    starts = range(0, len(inputs), BATCH_SIZE)
    parts = [infer(inputs[start : start + BATCH_SIZE]).argmax(axis=-1) for start in starts]
    return np.concatenate(parts).astype(np.int64)


def accuracy(infer: InferFunction, inputs: FloatArray, labels: IntArray | None) -> float | None:
    """Return the share of inputs whose class is the label, 0 to 1; None without labels."""
    if labels is None:
        return None
    return float(np.mean(predictions(infer, inputs) == labels))
