"""A registry with all that metrics show: targets, a rollout, generations, rounds, and devices, as many as wanted."""

import json
from dataclasses import replace
from pathlib import Path

import artifacts
from sqlalchemy import Engine, insert

from quantization.blob import content_digest, encode_blob
from quantization.device_class import ARM, X86_VNNI
from server.blob_store import BlobStore
from server.database import connect, migrate
from server.entries import Model
from server.generation import Event as GenerationEvent
from server.registry import Registry
from server.rollout import Rollout
from server.rollout_registry import RolloutRegistry
from server.tables import ClassTotalsRow, DeviceTelemetryRow, RolloutDeviceRow
from server.telemetry_codec import counts_to_json
from server.telemetry_counts import TelemetryCounts
from strategies.rounds import RoundEnd

CLASS = X86_VNNI.name
NOW = 1_000_000.0


def fill(engine: Engine, blobs: BlobStore, devices: int, now: float = NOW) -> Rollout:
    """Fill an empty registry; return the rollout that is open.

    Class `arm` is registered and has nothing. Class `x86-vnni` has published generations 0 and 1, a failed one,
    version 1 of its target and a rollout of version 2, and devices of which one in ten reports version 2.
    """
    registry, rollouts = Registry(engine, lambda: now), RolloutRegistry(engine, lambda: now)
    example = artifacts.example("residual_cnn")
    model_digest = content_digest(example.model)
    registry.add_model(Model(model_digest, "reader", len(example.model)))
    registry.add_device_class(ARM)
    registry.add_device_class(X86_VNNI)
    manifests = [_publish(registry, blobs, model_digest, number, 8 - 4 * number) for number in range(2)]
    failed = registry.start_generation(model_digest, CLASS, base_number=1)
    registry.advance(replace(failed, reason="nobody answered"), GenerationEvent.GAVE_UP)
    for end in (
        RoundEnd("moments", 10, 7, {"late": 3}, 7000, 1.5),
        RoundEnd("moments", 12, 12, {}, 12000, 1.0),
        RoundEnd("assess", 12, 11, {"late": 1}, 500, 2.0),
    ):
        registry.add_round(model_digest, CLASS, 1, end)
    rollouts.publish(model_digest, CLASS, manifests[0], reason="first", actor="test")
    rollout = rollouts.start(model_digest, CLASS, manifests[1], actor="test", reason="next")
    _add_devices(engine, rollout, devices)
    return rollout


def _publish(registry: Registry, blobs: BlobStore, model_digest: str, number: int, bits: int) -> str:
    artifact = artifacts.example("residual_cnn").artifact(number, bits=bits)
    manifest = artifact.manifest.to_bytes()
    digest = content_digest(manifest)
    for name, stored in {**artifact.blobs, digest: encode_blob(manifest)}.items():
        blobs.put(name, stored)
    layers = [layer.name for layer in artifacts.example("residual_cnn").plan.layers]
    widths = {layer: 8 if layer in (layers[0], layers[-1]) else bits for layer in layers}
    drift = {
        "is_drifted": True,
        "layers": {
            layer: {"shift": 0.5 * (place % 2), "log_spread": 0.0, "significance": 9.0}
            for place, layer in enumerate(layers)
        },
    }
    generation = registry.start_generation(model_digest, CLASS, base_number=0 if number else None)
    found = replace(
        generation,
        policy=json.dumps({"bit_widths": widths, "float_layers": {}}),
        manifest_digest=digest,
        moments_digest="c" * 64,
        drift=json.dumps(drift),
    )
    registry.advance(found, GenerationEvent.LAB_CALIBRATED)
    return digest


def _add_devices(engine: Engine, rollout: Rollout, devices: int) -> None:
    """Add devices as reports would have: their own rows, the rollout's, and the totals."""
    counts = TelemetryCounts(samples=100, labelled=50, hits=45, judged=40, agreements=38, failures=1)
    text, nothing = counts_to_json(counts), counts_to_json(TelemetryCounts())
    key = {"model_digest": rollout.model_digest, "device_class": rollout.device_class}
    versions = [2 if number % 10 == 0 else 1 for number in range(devices)]
    rows = [
        {**key, "device_id": f"device-{number}", "last_sequence": 1, "version": version, "counts": text}
        for number, version in enumerate(versions)
    ]
    canaries = [
        {
            "rollout_id": rollout.rollout_id,
            "device_id": f"device-{number}",
            "is_canary": version == 2,
            "before": nothing,
            "counts": text,
            "has_unit": False,
            **dict.fromkeys(("devices", "marked", "loading", "destroyed", "slow", "large"), 0),
        }
        for number, version in enumerate(versions)
    ]
    totals = [
        {
            **key,
            "version": version,
            "shard": 3,
            "devices": found,
            "samples": 100 * found,
            "failures": found,
            "load_failures": 0,
            "labelled": 50 * found,
            "hits": 45 * found,
            "judged": 40 * found,
            "agreements": 38 * found,
            "observed_values": 1000 * found,
            "clipped_values": 10 * found,
        }
        for version, found in ((1, versions.count(1)), (2, versions.count(2)), (-1, devices))
    ]
    with engine.begin() as connection:
        connection.execute(insert(DeviceTelemetryRow), rows)
        connection.execute(insert(RolloutDeviceRow), canaries)
        connection.execute(insert(ClassTotalsRow), totals)


def open_filled(folder: Path, devices: int, now: float = NOW) -> tuple[Engine, BlobStore, Rollout]:
    """Return the engine of a new registry in a folder, its blobs, and the rollout that is open."""
    engine = connect(f"sqlite:///{folder / 'registry.db'}")
    migrate(engine)
    blobs = BlobStore(folder / "blobs")
    return engine, blobs, fill(engine, blobs, devices, now)
