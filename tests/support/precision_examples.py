"""Records of precision and results of studies, as real ones look, of any number of layers."""

from server.precision_record import FrontPoint, LayerPrecision, PrecisionRecord
from simulation.study_result import (
    ALLOCATED,
    FEDMPQ,
    UNIFORM,
    FrontMeasurement,
    LayerSensitivity,
    StudyResult,
)

_WIDTHS = (6, 3, 4, 3, 2, 3, 8)


def precision_layers(count: int) -> tuple[LayerPrecision, ...]:
    """Return layers of several widths, the last one float where there are several, the second probed by one device."""
    return tuple(_layer(i, is_float=count > 1 and i == count - 1) for i in range(count))


def _layer(place: int, *, is_float: bool) -> LayerPrecision:
    bit_width = 16 if is_float else _WIDTHS[place % len(_WIDTHS)]
    parameters = 432 * (1 + place % 5)
    gain = 0.001 * (1 + place % 4)
    return LayerPrecision(
        name=f"/layer{1 + place // 6}/conv{place}/Conv",
        parameters=parameters,
        storage="fp16" if is_float else "int8",
        bit_width=bit_width,
        stored_bits=bit_width + 0.25,
        size_bytes=int(parameters * (bit_width + 0.25) / 8),
        gain=gain,
        gain_low=0.6 * gain,
        gain_high=None if place == 1 else 1.6 * gain,
        devices=1 if place == 1 else 5,
        predicted_loss=gain * (1 + place % 3),
    )


def precision_record(count: int = 4, *, is_measured: bool = True) -> PrecisionRecord:
    """Return a record of so many layers, with a front of six points."""
    layers = precision_layers(count)
    weight_bytes, loss = (
        sum(layer.size_bytes for layer in layers),
        sum(layer.predicted_loss for layer in layers),
    )
    fp32_bytes = 4 * sum(layer.parameters for layer in layers)
    ratio = fp32_bytes / weight_bytes
    front = tuple(
        FrontPoint(
            size_bytes=round(weight_bytes * scale),
            size_ratio=ratio / scale,
            predicted_loss=loss / scale**3,
            measured_loss=1.2 * loss / scale**3 if is_measured and scale < 1 else None,
            drop=1.3 if is_measured and scale < 1 else None,
        )
        for scale in (0.7, 0.85, 1.0, 1.2, 1.5, 1.9)
    )
    return PrecisionRecord(
        layers=layers,
        size_ratio=ratio,
        weight_bytes=weight_bytes,
        fp32_weight_bytes=fp32_bytes,
        overhead_bytes=10_300,
        predicted_loss=loss,
        measured_loss=1.1 * loss if is_measured else None,
        tune_seconds=8.31,
        front=front,
    )


def study_result(count: int = 4, *, has_labels: bool = True, is_pareto: bool = True) -> StudyResult:
    """Return a study of so many layers: a front of three models, two uniform ones and one by FedMPQ's rule."""
    record = precision_record(count)
    layers = tuple(
        LayerSensitivity(
            name=layer.name,
            parameters=layer.parameters,
            gain=layer.gain,
            gain_low=layer.gain_low,
            gain_high=layer.gain_high,
            devices=layer.devices,
            losses={bits: layer.predicted_loss * 4.0 ** (2 - bits) for bits in (2, 3, 4, 5, 6, 8)},
        )
        for layer in record.layers
    )

    def measured(ratio: float, accuracy: float, bits: int, method: str) -> FrontMeasurement:
        return FrontMeasurement(
            size_bytes=round(record.fp32_weight_bytes / ratio),
            size_ratio=ratio,
            predicted_loss=record.predicted_loss * (ratio / 10) ** 3,
            bits={layer.name: bits for layer in layers},
            stored_bits={layer.name: bits + 0.25 for layer in layers},
            accuracy=accuracy if has_labels else None,
            method=method,
        )

    front = (
        measured(14.0, 0.902, 2, ALLOCATED),
        measured(8.0, 0.918, 4, ALLOCATED),
        measured(10.0, 0.915, 3, ALLOCATED),
        measured(15.4, 0.676, 2, UNIFORM),
        measured(7.8, 0.913, 4, UNIFORM),
        measured(9.0, 0.905, 3, FEDMPQ),
    )
    return StudyResult(
        task="cifar10",
        seed=3,
        devices=50,
        layers=layers,
        front=front if is_pareto else (),
        fp32_accuracy=0.9172 if has_labels else None,
        int8_accuracy=0.9163 if has_labels else None,
        fp32_weight_bytes=record.fp32_weight_bytes,
        tune_seconds=8.31,
        wall_seconds=61.2,
    )
