"""A policy: what a generation is, for one model and one device class.

Its JSON is canonical (sorted keys, shortest exact floats), so equal policies are equal bytes.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quantization.calibration import Range
from quantization.errors import ConfigurationError, MalformedError
from quantization.renormalization import ChannelCorrection

FORMAT_VERSION = 1
FLOAT_TYPES = ("fp16", "bf16")
"""Storage of layers that are kept in float."""

MAX_JSON_BYTES = 64 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Policy:
    """Ranges, bit-widths and channel corrections for every site and layer of one model and device class.

    Attributes:
        model_digest: SHA-256 of the canonical fp32 ONNX model, 64 hex digits.
        device_class: Name of the device class.
        generation: Number, 0 for the lab's own calibration, growing by one.
        ranges: By activation site.
        bit_widths: By layer: bits per weight code, 2 to 8.
        corrections: By layer; a layer that is absent is not corrected.
        range_method: Name of the method that chose the ranges, as `calibration.method_from_name` reads it.
        weights_digest: SHA-256 of the rounded weights (`layer_codes`), hex; empty where all are rounded to nearest.
        float_layers: By layer that is stored in 16-bit float: "fp16" or "bf16".
    """

    model_digest: str
    device_class: str
    generation: int
    ranges: Mapping[str, Range]
    bit_widths: Mapping[str, int]
    corrections: Mapping[str, ChannelCorrection]
    range_method: str
    weights_digest: str = ""
    float_layers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no model can have."""
        if not _DIGEST.fullmatch(self.model_digest):
            raise ConfigurationError(f"model digest {self.model_digest!r} is not 64 hex digits")
        if self.generation < 0:
            raise ConfigurationError(f"generation {self.generation} is negative")
        for layer, bits in self.bit_widths.items():
            if not 2 <= bits <= 8:
                raise ConfigurationError(f"layer {layer}: bit-width {bits} is not 2 to 8")
        if self.weights_digest and not _DIGEST.fullmatch(self.weights_digest):
            raise ConfigurationError(f"weights digest {self.weights_digest!r:.80} is not 64 hex digits")
        for layer, kind in self.float_layers.items():
            if kind not in FLOAT_TYPES:
                raise ConfigurationError(
                    f"layer {layer}: float type {kind!r:.40} is unknown; known are fp16 and bf16"
                )

    def correction(self, layer: str, channels: int) -> ChannelCorrection:
        """Return the layer's correction, the identity where the policy has none."""
        return self.corrections.get(layer) or ChannelCorrection.identity(channels)

    def changes_nothing_in(self, other: "Policy") -> bool:
        """Return whether both run the same: all but the generation number and the method's name are equal."""
        return (
            self.model_digest == other.model_digest
            and self.device_class == other.device_class
            and dict(self.ranges) == dict(other.ranges)
            and dict(self.bit_widths) == dict(other.bit_widths)
            and dict(self.corrections) == dict(other.corrections)
            and self.weights_digest == other.weights_digest
            and dict(self.float_layers) == dict(other.float_layers)
        )

    def to_json_bytes(self) -> bytes:
        """Return the policy as canonical JSON; floats are exact (shortest form that reads back equal)."""
        record: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "model_digest": self.model_digest,
            "device_class": self.device_class,
            "generation": self.generation,
            "ranges": {site: [r.lo, r.hi] for site, r in self.ranges.items()},
            "bit_widths": dict(self.bit_widths),
            "corrections": {
                layer: {"gain": c.gain.tolist(), "offset": c.offset.tolist()}
                for layer, c in self.corrections.items()
            },
            "range_method": self.range_method,
        }
        if self.weights_digest:
            record["weights_digest"] = self.weights_digest
        if self.float_layers:
            record["float_layers"] = dict(self.float_layers)
        return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_json_bytes(cls, data: bytes) -> "Policy":
        """Return the policy that `to_json_bytes` wrote.

        Raises:
            MalformedError: If the bytes are not a policy of this format.
        """
        if len(data) > MAX_JSON_BYTES:
            raise MalformedError(f"policy of {len(data)} bytes; at most {MAX_JSON_BYTES} are read")
        try:
            record = json.loads(data)
            version = record["format_version"]
            if version != FORMAT_VERSION:
                raise MalformedError(f"policy format {version}, this version reads {FORMAT_VERSION}")
            return cls(
                model_digest=str(record["model_digest"]),
                device_class=str(record["device_class"]),
                generation=int(record["generation"]),
                ranges={site: Range(_real(r[0]), _real(r[1])) for site, r in record["ranges"].items()},
                bit_widths={layer: int(bits) for layer, bits in record["bit_widths"].items()},
                corrections={layer: _correction(c) for layer, c in record["corrections"].items()},
                range_method=str(record["range_method"]),
                weights_digest=str(record.get("weights_digest", "")),
                float_layers={k: str(v) for k, v in record.get("float_layers", {}).items()},
            )
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            IndexError,
            RecursionError,
            ConfigurationError,
        ) as error:
            raise MalformedError(f"not a policy: {error}") from error


def _real(value: float) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise MalformedError(f"policy with a value of {number}")
    return number


def _correction(record: Mapping[str, Any]) -> ChannelCorrection:
    return ChannelCorrection(np.array(record["gain"], np.float64), np.array(record["offset"], np.float64))
