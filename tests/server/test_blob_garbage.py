"""Collecting content that nothing needs: a real registry, real artifacts, a real folder."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import artifacts
import fleet_registry
import pytest
from shop import CLASS, make_shop, served
from sqlalchemy import Engine
from typer.testing import CliRunner
from waiting import eventually

from quantization.blob import content_digest, encode_blob
from quantization.errors import ConfigurationError, IllegalTransitionError, NotFoundError
from server.blob_garbage import Collected, GarbageRules, collect_garbage
from server.blob_store import BlobStore
from server.candidate import load_manifest
from server.cli import app
from server.database import connect, migrate
from server.folded import write
from server.generation import Event
from server.registry import Registry
from server.rollout import Event as RolloutEvent
from server.rollout_registry import RolloutRegistry

DAY = 86_400.0
NOW = time.time() + 30 * DAY
MODEL = content_digest(artifacts.example("residual_cnn").model)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    made = connect(f"sqlite:///{tmp_path / 'registry.db'}")
    migrate(made)
    return made


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def collect(engine: Engine, folder: Path, rules: GarbageRules | None = None, **more: object) -> Collected:
    return collect_garbage(
        engine,
        str(folder / "blobs"),
        now_seconds=float(more.pop("now", NOW)),  # type: ignore[arg-type]
        rules=rules or GarbageRules(),
        **more,  # type: ignore[arg-type]
    )


def close_with_statistics(engine: Engine, blobs: BlobStore, event: Event = Event.GAVE_UP) -> dict[str, str]:
    """Close a generation of the class that has statistics of every kind, and an artifact; return its content."""
    registry = Registry(engine, lambda: fleet_registry.NOW)
    artifact = artifacts.example("residual_cnn").artifact(7, width=9.0)
    for digest, stored in artifact.blobs.items():
        blobs.put(digest, stored)
    inner = write(blobs, b"second moments of one layer")
    content = {
        "moments_digest": write(blobs, b"moments"),
        "inputs_digest": write(blobs, json.dumps({"layer": inner}).encode()),
        "probes_digest": write(blobs, b"probes"),
        "ranges_digest": write(blobs, b"ranges"),
        "manifest_digest": write(blobs, artifact.manifest.to_bytes()),
    }
    weights = write(blobs, b"weights")
    started = registry.start_generation(MODEL, fleet_registry.CLASS, base_number=1)
    chosen = json.dumps({"weights_digest": weights})
    registry.advance(replace(started, **content, weights=chosen), event)
    return content | {"inner": inner, "weights": weights}


def test_what_the_registry_names_stays_and_the_rest_goes(
    engine: Engine, blobs: BlobStore, tmp_path: Path
) -> None:
    fleet_registry.fill(engine, blobs, devices=2)
    close_with_statistics(engine, blobs)
    needed = blobs.digests()
    stray = write(blobs, b"of a run that was cut off")
    size = len(blobs.get(stray))
    kept = blobs.size_bytes() - size
    assert collect(engine, tmp_path, is_dry_run=True) == Collected(1, size, len(needed), kept)
    assert blobs.has(stray)
    assert collect(engine, tmp_path) == Collected(1, size, len(needed), kept)
    assert blobs.digests() == needed
    assert collect(engine, tmp_path).removed == 0


def test_what_was_stored_lately_stays(engine: Engine, blobs: BlobStore, tmp_path: Path) -> None:
    fleet_registry.fill(engine, blobs, devices=2)
    stray = write(blobs, b"not named yet")
    assert collect(engine, tmp_path, now=time.time() + 6 * DAY).removed == 0
    assert blobs.has(stray)
    with pytest.raises(ConfigurationError, match="1 day at least"):
        GarbageRules(older_than_days=0.5)
    with pytest.raises(ConfigurationError, match="or for ever"):
        GarbageRules(forget_days=0.5)


def test_statistics_of_generations_that_were_closed_long_ago_are_forgotten(
    engine: Engine, blobs: BlobStore, tmp_path: Path
) -> None:
    fleet_registry.fill(engine, blobs, devices=2)
    needed = blobs.digests()
    content = close_with_statistics(engine, blobs)
    late = GarbageRules(forget_days=(NOW - fleet_registry.NOW) / DAY + 1)
    assert collect(engine, tmp_path, late).removed == 0
    assert collect(engine, tmp_path, GarbageRules(forget_days=1)).removed >= len(content)
    assert blobs.digests() == needed  # also the artifacts of the published ones
    assert collect(engine, tmp_path).removed == 0  # what is gone is not asked for


def test_signed_manifests_stay_whole(engine: Engine, blobs: BlobStore, tmp_path: Path) -> None:
    fleet_registry.fill(engine, blobs, devices=2)
    content = close_with_statistics(engine, blobs)
    collect(engine, tmp_path, GarbageRules(forget_days=1), signed={content["manifest_digest"]})
    assert blobs.has(content["manifest_digest"])
    manifest = artifacts.example("residual_cnn").artifact(7, width=9.0).manifest
    assert all(blobs.has(digest) for digest in manifest.blobs)
    assert blobs.has(content["weights"])  # what comes back may be started from
    assert not blobs.has(content["moments_digest"])


def test_what_a_rollback_returns_to_stays_though_its_generation_is_recalled(
    engine: Engine, blobs: BlobStore, tmp_path: Path
) -> None:
    rollout = fleet_registry.fill(engine, blobs, devices=2)
    rollouts = RolloutRegistry(engine, lambda: fleet_registry.NOW)
    rollouts.advance(rollout, RolloutEvent.ACCURACY_DROPPED, actor="test", reason="worse")
    needed = blobs.digests()
    assert collect(engine, tmp_path, GarbageRules(forget_days=1)).removed == 0
    assert blobs.digests() == needed


def test_nothing_goes_while_a_generation_is_open(engine: Engine, blobs: BlobStore, tmp_path: Path) -> None:
    fleet_registry.fill(engine, blobs, devices=2)
    stray = write(blobs, b"stray")
    Registry(engine).start_generation(MODEL, fleet_registry.CLASS, base_number=1)
    with pytest.raises(IllegalTransitionError, match=r"generation 3 .* is open"):
        collect(engine, tmp_path)
    assert blobs.has(stray)


def test_an_empty_registry_is_not_that_of_the_store(engine: Engine, blobs: BlobStore, tmp_path: Path) -> None:
    stray = write(blobs, b"of another registry")
    with pytest.raises(ConfigurationError, match="knows no model"):
        collect(engine, tmp_path)
    assert blobs.has(stray)


def test_nothing_goes_where_a_published_manifest_cannot_be_read(
    engine: Engine, blobs: BlobStore, tmp_path: Path
) -> None:
    rollout = fleet_registry.fill(engine, blobs, devices=2)
    stray = write(blobs, b"stray")
    digest = rollout.manifest_digest
    (tmp_path / "blobs" / digest[:2] / digest).unlink()
    with pytest.raises(NotFoundError, match=digest):
        collect(engine, tmp_path)
    assert blobs.has(stray)


def test_half_written_files_go_and_files_of_others_stay(
    engine: Engine, blobs: BlobStore, tmp_path: Path
) -> None:
    fleet_registry.fill(engine, blobs, devices=2)
    half = tmp_path / "blobs" / "aa" / f"{'a' * 64}.{uuid4().hex}.tmp"
    others = tmp_path / "blobs" / "README"
    half.parent.mkdir(exist_ok=True)
    half.write_bytes(b"half")
    others.write_bytes(b"mine")
    assert collect(engine, tmp_path).removed == 1
    assert not half.exists()
    assert others.exists()


def test_a_store_in_memory_is_collected_too(engine: Engine, blobs: BlobStore) -> None:
    fleet_registry.fill(engine, blobs, devices=2)
    url = f"memory://{uuid4().hex}"
    BlobStore(url).put(content_digest(b"x"), encode_blob(b"x"))
    for digest in blobs.digests():
        BlobStore(url).put(digest, blobs.get(digest))
    assert collect_garbage(engine, url, now_seconds=NOW, rules=GarbageRules()).removed == 1
    assert BlobStore(url).digests() == blobs.digests()


def test_a_server_collects_once_in_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.serve._DAY_SECONDS", 0.05)
    shop = make_shop(tmp_path, garbage_days=1.0)  # type: ignore[arg-type]
    blobs = shop.stores.blobs
    shop.stores.rollouts.publish(shop.model_digest, CLASS, shop.manifests[0], reason="first", actor="ana")
    stray = write(blobs, b"stray")
    path = tmp_path / "blobs" / stray[:2] / stray
    os.utime(path, (1_000_000, 1_000_000))
    with served(shop.settings):
        eventually(lambda: not path.exists())
    shop.stores.engine.dispose()
    assert all(blobs.has(digest) for digest in load_manifest(blobs, shop.manifests[0]).blobs)


def test_the_command_says_what_it_removed(engine: Engine, blobs: BlobStore, tmp_path: Path) -> None:
    fleet_registry.fill(engine, blobs, devices=2)
    needed = len(blobs.digests())
    stray = write(blobs, b"stray")
    path = tmp_path / "blobs" / stray[:2] / stray
    os.utime(path, (1_000_000, 1_000_000))
    run = CliRunner()
    planned = run.invoke(app, ["gc", "--home", str(tmp_path), "--dry-run", "--json"])
    assert planned.exit_code == 0, planned.stderr
    said = json.loads(planned.stdout)
    assert (said["removed"], said["kept"], said["is_dry_run"]) == (1, needed, True)
    assert path.exists()
    done = run.invoke(app, ["gc", "--home", str(tmp_path)])
    assert done.stdout.startswith("removed 1 blobs (")
    assert not path.exists()
    assert run.invoke(app, ["gc", "--home", str(tmp_path), "--older-than-days", "0"]).exit_code == 2
    Registry(engine).start_generation(MODEL, fleet_registry.CLASS, base_number=1)
    refused = run.invoke(app, ["gc", "--home", str(tmp_path)])
    assert refused.exit_code == 1
    assert "is open" in refused.stderr
