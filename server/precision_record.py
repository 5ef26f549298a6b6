"""What allocating precision brought, as a value with a JSON form: in the registry, in results, in reports."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from quantization.errors import MalformedError


@dataclass(frozen=True, slots=True)
class LayerPrecision:
    """How one layer is stored, and why.

    Attributes:
        name: Of the layer.
        parameters: Weights, biases left out.
        storage: "int8" (codes of 2 to 8 bits), "fp16" or "bf16".
        bit_width: Bits of its codes, 2 to 8; 16 for a float layer.
        stored_bits: Bits per weight as stored, scales and compression included.
        size_bytes: Bytes as stored, codes and scales.
        gain: Nats of divergence per unit of the layer's loss.
        gain_low: Lower end of the gain's 95 % interval.
        gain_high: Upper end; None where one device alone measured it.
        devices: Devices that probed it.
        predicted_loss: Divergence that it is predicted to cause, nats.
    """

    name: str
    parameters: int
    storage: str
    bit_width: int
    stored_bits: float
    size_bytes: int
    gain: float
    gain_low: float
    gain_high: float | None
    devices: int
    predicted_loss: float


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """One allocation of the Pareto front.

    Attributes:
        size_bytes: Bytes of all weights as stored.
        size_ratio: fp32 bytes of the weights over `size_bytes`.
        predicted_loss: Predicted divergence of the model, nats.
        measured_loss: The same, measured by devices; None where nobody did.
        drop: Points of accuracy (labels) or agreement that devices saw it lose; None where nobody looked.
    """

    size_bytes: int
    size_ratio: float
    predicted_loss: float
    measured_loss: float | None = None
    drop: float | None = None


@dataclass(frozen=True, slots=True)
class PrecisionRecord:
    """One allocation: what was chosen, out of what, and how long it took.

    Attributes:
        layers: In the order of the graph.
        size_ratio: fp32 bytes of the weights over their bytes as stored, codes and scales.
        weight_bytes: Bytes of all weights as stored.
        fp32_weight_bytes: Bytes of all weights as float32.
        overhead_bytes: Bytes of the manifest and of the skeleton that runs.
        predicted_loss: Predicted divergence of the model, nats at temperature 4.
        measured_loss: What devices measured for it; None before they did.
        tune_seconds: Time the server took to round, allocate and compile; rounds with devices not counted.
        front: The Pareto front, from the smallest size.
    """

    layers: tuple[LayerPrecision, ...]
    size_ratio: float
    weight_bytes: int
    fp32_weight_bytes: int
    overhead_bytes: int
    predicted_loss: float
    measured_loss: float | None
    tune_seconds: float
    front: tuple[FrontPoint, ...] = field(default=())

    @property
    def bits(self) -> Mapping[str, int]:
        """Bits of the codes by layer."""
        return {layer.name: layer.bit_width for layer in self.layers}

    def to_json(self) -> str:
        """Return the record as JSON."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return what `to_json` wrote.

        Raises:
            MalformedError: The text is something else.
        """
        try:
            record: dict[str, Any] = json.loads(text)
            record["layers"] = tuple(LayerPrecision(**layer) for layer in record["layers"])
            record["front"] = tuple(FrontPoint(**point) for point in record["front"])
            return cls(**record)
        except (ValueError, KeyError, TypeError) as error:
            raise MalformedError(f"not a record of precision: {error}") from error
