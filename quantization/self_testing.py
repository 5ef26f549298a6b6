"""What an inference graph must compute, so that a device can tell before it depends on one.

The inputs are made, not sent: codes from SHAKE-128 of the model's digest, on the grid of the model's input. What is
sent is what the integers give for them, as codes on the grid of the model's output. That is a few bytes for each class,
and no data of anybody.

A device's outputs are right if they differ by at most `TOLERANCE` of how much they vary, both as root mean squares.
Layers are the same bits everywhere, but kernels between them (residual additions, global means, activations) may round
the other way on another kind of CPU, and each such code spreads. Between the integers and ONNX Runtime's kernels for
x86 that makes 0 on most small models (four were swept), and 0.06 on MobileNetV2: no bound in codes holds for all
models and would still tell anything. What the test is for is far away: products that saturate at 7 bits (0.5 to 0.9),
weights in another order (0.07 to 0.8), scales of other channels (0.8 to 3.4).
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantization.affine import AffineParams, dequantize, params_from_range, quantize
from quantization.arrays import AnyArray, FloatArray
from quantization.errors import ConfigurationError, MalformedError, UpdateRejectedError

ROWS = 4
TOLERANCE = 40 / 256

_MAX_ROWS = 64
# Scales of input and output, their zero points, tolerance in 1/256, zero, rows.
_HEADER = struct.Struct("<ffBBBBI")


@dataclass(frozen=True, slots=True, eq=False)  # eq=False: arrays have no single truth value
class SelfTest:
    """Known inputs and what a graph must give for them.

    Attributes:
        input_params: Grid of the inputs, per tensor, 8 bits.
        output_params: Grid of the outputs, likewise.
        codes: What must come out, uint8 (rows, values): the model's first output, 1 to 64 rows.
        tolerance: Root mean square of what the outputs may differ by, in units of their standard deviation; 0 to
            255/256. One code is always allowed.
    """

    input_params: AffineParams
    output_params: AffineParams
    codes: NDArray[np.uint8]
    tolerance: float = TOLERANCE

    def __post_init__(self) -> None:
        """Refuse what no self-test can be."""
        if self.codes.ndim != 2 or not 1 <= len(self.codes) <= _MAX_ROWS or self.codes.size == 0:
            raise MalformedError(f"self-test of codes {self.codes.shape}")

    @classmethod
    def of_outputs(
        cls, input_params: AffineParams, outputs: FloatArray, output_params: AffineParams | None = None
    ) -> "SelfTest":
        """Return the test that a graph with these outputs passes.

        Args:
            input_params: Grid on which the inputs were made.
            outputs: Of the integer graph, float32 (rows, ...).
            output_params: Grid of the model's output; None where it is not quantized, and what came out says it.
        """
        flat = np.asarray(outputs, np.float32).reshape(len(outputs), -1)
        params = output_params or params_from_range(float(flat.min()), float(flat.max()))
        return cls(input_params, params, np.asarray(quantize(flat, params), np.uint8))

    def inputs(self, model_digest: str, shape: Sequence[int | None]) -> NDArray[np.float32]:
        """Return the inputs, float32; see `known_inputs`."""
        return known_inputs(model_digest, shape, self.input_params, len(self.codes))

    def check(self, outputs: AnyArray) -> None:
        """Compare what came out.

        Args:
            outputs: Of the graph for `inputs`, float32 (rows, ...).

        Raises:
            UpdateRejectedError: If it is not what must come out.
        """
        flat = np.asarray(outputs).reshape(len(outputs), -1) if np.ndim(outputs) else np.zeros((0, 0))
        if flat.dtype != np.float32 or flat.shape != self.codes.shape or not np.isfinite(flat).all():
            raise UpdateRejectedError(
                f"the self-test gave {flat.dtype} {flat.shape}, not {self.codes.shape} finite float32 values"
            )
        wanted = self.codes.astype(np.float64)
        difference = float(np.sqrt(np.mean((quantize(flat, self.output_params) - wanted) ** 2)))
        allowed = max(self.tolerance * float(wanted.std()), 1.0)
        if difference > allowed:
            raise UpdateRejectedError(
                f"the self-test gave outputs {difference:.1f} codes from what they must be; {allowed:.1f} are allowed"
            )

    def to_content(self) -> bytes:
        """Return the bytes, of which `docs/formats/artifact.md` is the page."""
        header = _HEADER.pack(
            float(self.input_params.scale),
            float(self.output_params.scale),
            int(self.input_params.zero_point),
            int(self.output_params.zero_point),
            round(self.tolerance * 256),
            0,
            len(self.codes),
        )
        return header + self.codes.tobytes()

    @classmethod
    def from_content(cls, content: bytes) -> "SelfTest":
        """Return what `to_content` wrote.

        Raises:
            MalformedError: If the bytes are anything else.
        """
        if len(content) <= _HEADER.size:
            raise MalformedError(f"self-test of {len(content)} bytes")
        in_scale, out_scale, in_zero, out_zero, tolerance, reserved, rows = _HEADER.unpack_from(content)
        codes = np.frombuffer(content, np.uint8, offset=_HEADER.size)
        if reserved or not 1 <= rows <= _MAX_ROWS or codes.size % rows:
            raise MalformedError(f"self-test of {rows} rows and {codes.size} codes")
        try:
            params = [
                AffineParams(np.array(scale, np.float32), np.array(zero, np.uint8))
                for scale, zero in ((in_scale, in_zero), (out_scale, out_zero))
            ]
        except ConfigurationError as error:
            raise MalformedError(f"self-test on a grid that is none: {error}") from error
        return cls(params[0], params[1], codes.reshape(rows, -1), tolerance / 256)


def known_inputs(
    model_digest: str, shape: Sequence[int | None], params: AffineParams, rows: int = ROWS
) -> NDArray[np.float32]:
    """Return inputs that are the same wherever they are made: any of the grid's values with equal probability.

    Args:
        model_digest: SHA-256 of the canonical model, hex.
        shape: Of the model's input; sizes that the caller chooses (None) are 1, but for the first, which is `rows`.
        params: The input's grid, 8 bits without sign.
        rows: How many.
    """
    sizes = [rows, *(size or 1 for size in shape[1:])]
    codes = hashlib.shake_128(bytes.fromhex(model_digest)).digest(int(np.prod(sizes, dtype=np.int64)))
    return dequantize(np.frombuffer(codes, np.uint8).reshape(sizes), params)
