"""What one simulated experiment measured, and its JSON form."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from quantization.calibration import Range
from quantization.renormalization import LayerDrift
from server.precision_record import PrecisionRecord


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of right answers, 0 to 1, of models run through ONNX Runtime; None where the data has no labels.

    Attributes:
        fp32: The lab's float model on field data that no calibration round saw.
        frozen: int8, lab calibration (generation 0), on the same data.
        tuned: int8, last published generation, on the same data.
        lab_fp32: The float model on the same rows without drift.
        lab_frozen: Generation 0 on the same rows without drift.
    """

    fp32: float | None
    frozen: float | None
    tuned: float | None
    lab_fp32: float | None
    lab_frozen: float | None


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """One generation, as the registry and the test data saw it.

    Attributes:
        generation: Its number; the first one tuned in the field is 1.
        accuracy: On field test data, of the model that serves after this generation; None without labels.
        agreement: Share of field test rows on which it answers as the float model with the same
            corrections does.
        size_bytes: The artifact that serves, inference parts as stored.
        update_bytes: What one device downloaded for it; 0 where nothing was published.
        clients: Devices whose statistics were folded.
        dropped: Devices asked that failed or came too late, by reason.
        published: Whether it went live.
        reason: Why, or why not, in words.
        drift: By layer: how far the field's moments lay from the lab's, of the model that served before.
        residual_drift: By layer, of the candidate.
        ranges: By site, of the policy that serves after this generation.
        statistics_bytes: Bytes of statistics that all devices uploaded.
        seconds: Wall time of the generation.
    """

    generation: int
    accuracy: float | None
    agreement: float | None
    size_bytes: int
    update_bytes: int
    clients: int
    dropped: Mapping[str, int]
    published: bool
    reason: str
    drift: Mapping[str, LayerDrift]
    residual_drift: Mapping[str, LayerDrift]
    ranges: Mapping[str, Range]
    statistics_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ExperimentResult:
    """One run of `quantfleet-sim run`.

    Attributes:
        task: Name of the task, or of the model file.
        seed: Of splits, devices, drifts and faults.
        devices: Size of the fleet.
        drift: Severity by name of the drift, as given.
        accuracy: Before and after.
        generations: One entry per generation, in order.
        size_bytes: "fp32" and "tuned": the ONNX model, and the artifact's inference parts as stored.
        update_bytes: What one device downloaded for the last published generation.
        federated_equals_pooled: Whether ranges from merged statistics equal those from pooled inputs; None
            if not asked.
        wall_seconds: Of the whole command.
        lab_ranges: By site, of generation 0.
        float_ops: Operations kept in float, "name (op): reason".
        layers: Layers in graph order.
        precision: How the weights that serve are stored, and why; None where no precision was asked for.
    """

    task: str
    seed: int
    devices: int
    drift: Mapping[str, float | tuple[float, ...]]
    accuracy: Accuracy
    generations: tuple[GenerationResult, ...]
    size_bytes: Mapping[str, int]
    update_bytes: int
    federated_equals_pooled: bool | None
    wall_seconds: float
    lab_ranges: Mapping[str, Range]
    float_ops: tuple[str, ...]
    layers: tuple[str, ...]
    precision: PrecisionRecord | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return {
            "task": self.task,
            "seed": self.seed,
            "devices": self.devices,
            "drift": {k: list(v) if isinstance(v, tuple) else v for k, v in self.drift.items()},
            "accuracy": {
                "fp32": self.accuracy.fp32,
                "frozen": self.accuracy.frozen,
                "tuned": self.accuracy.tuned,
                "lab_fp32": self.accuracy.lab_fp32,
                "lab_frozen": self.accuracy.lab_frozen,
            },
            "generations": [
                {
                    "generation": g.generation,
                    "accuracy": g.accuracy,
                    "agreement": g.agreement,
                    "size_bytes": g.size_bytes,
                    "update_bytes": g.update_bytes,
                    "clients": g.clients,
                    "dropped": dict(g.dropped),
                    "published": g.published,
                    "reason": g.reason,
                    "statistics_bytes": g.statistics_bytes,
                    "seconds": g.seconds,
                }
                for g in self.generations
            ],
            "size_bytes": dict(self.size_bytes),
            "update_bytes": self.update_bytes,
            "federated_equals_pooled": self.federated_equals_pooled,
            "wall_seconds": self.wall_seconds,
            **_precision_to_json(self.precision),
        }

    def to_detailed_json(self) -> dict[str, Any]:
        """Return `to_json` and, under "details", what the report's plots show by layer and site."""
        return self.to_json() | {
            "details": {
                "layers": list(self.layers),
                "float_ops": list(self.float_ops),
                "lab_ranges": _ranges_to_json(self.lab_ranges),
                "generations": [
                    {
                        "generation": g.generation,
                        "drift": _drift_to_json(g.drift),
                        "residual_drift": _drift_to_json(g.residual_drift),
                        "ranges": _ranges_to_json(g.ranges),
                    }
                    for g in self.generations
                ],
                "precision": None if self.precision is None else json.loads(self.precision.to_json()),
            }
        }


def _precision_to_json(precision: PrecisionRecord | None) -> dict[str, Any]:
    """Return what `--json` tells of precision: every key, and null where none was asked for."""
    if precision is None:
        return dict.fromkeys(_PRECISION_KEYS)
    figures = {key: getattr(precision, key) for key in _PRECISION_KEYS[2:]}
    stored_bits = {layer.name: layer.stored_bits for layer in precision.layers}
    return {"bits": dict(precision.bits), "stored_bits": stored_bits} | figures


_PRECISION_KEYS = (
    "bits",
    "stored_bits",
    "size_ratio",
    "predicted_loss",
    "measured_loss",
    "tune_seconds",
    "weight_bytes",
    "overhead_bytes",
)


def _ranges_to_json(ranges: Mapping[str, Range]) -> dict[str, list[float]]:
    return {site: [chosen.lo, chosen.hi] for site, chosen in ranges.items()}


def _drift_to_json(drift: Mapping[str, LayerDrift]) -> dict[str, dict[str, float | None]]:
    """Return drift by layer; what is not finite, as JSON has no word for it, becomes null."""
    return {
        layer: {name: value if math.isfinite(value) else None for name, value in asdict(found).items()}
        for layer, found in drift.items()
    }
