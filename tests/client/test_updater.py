import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import killed_upgrade
import numpy as np
import pytest
from artifacts import example
from dying_disk import Death, DyingDisk, deaths
from memory_updates import MemoryUpdates

from client.disk import Disk
from client.garbage import Limits, used_bytes
from client.runtime import Runtime
from client.self_testing import load
from client.slots import MAX_ATTEMPTS, Phase, Slots, Target
from client.state import StateFolder
from client.transport import Piece, Want
from client.trial import TrialRules
from client.update_result import Outcome
from client.updater import Updater, UpdateSettings
from quantization.affine import params_from_range
from quantization.artifact import Artifact, BlobRef
from quantization.blob import HEADER_BYTES, content_digest, encode_blob
from quantization.errors import (
    ConfigurationError,
    IllegalTransitionError,
    NotFoundError,
    OverloadedError,
    UnreachableError,
    UpdateRejectedError,
)
from quantization.self_testing import SelfTest

ROOT = Path(__file__).parents[2]
EXAMPLE = example("mlp")
OLD, NEW, NEWER = (EXAMPLE.artifact(number, width=4.0 + number, is_observed=False) for number in range(3))
INPUTS = EXAMPLE.inputs(4)
WANTED = [
    Runtime(artifact.manifest, artifact.blobs.__getitem__).infer(INPUTS) for artifact in (OLD, NEW, NEWER)
]
RULES = TrialRules(least_seconds=10.0, least_runs=5, longest_seconds=100.0, latency_ratio=1e9)
SETTINGS = UpdateSettings("x86-vnni", trial=RULES, limits=Limits(free_bytes=0))


class Bench:
    """A device with a service in memory and a clock by hand."""

    def __init__(self, path: Path, updates: MemoryUpdates | None = None, **options: Any) -> None:
        self.now = 0.0
        self.updates = updates or MemoryUpdates(chunk_bytes=256)
        self.state = StateFolder(path, disk=options.pop("disk", Disk()))
        settings = replace(SETTINGS, **options.pop("settings", {}))
        try:
            self.updater = Updater(
                self.state, self.updates, settings, **{"test": load, "clock": lambda: self.now, **options}
            )
        except BaseException:
            self.state.close()
            raise

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *_: object) -> None:
        self.updater.close()
        self.state.close()

    def publish(self, artifact: Artifact, version: int) -> Target:
        return self.updates.publish(artifact, version)

    def infer(self) -> np.ndarray:
        assert self.updater.runtime is not None
        return self.updater.runtime.infer(INPUTS)

    def serves(self) -> int:
        """Return which of the artifacts it is that serves."""
        logits = self.infer()
        return next(number for number, wanted in enumerate(WANTED) if np.array_equal(logits, wanted))

    def confirm(self) -> None:
        for _ in range(RULES.least_runs):
            self.infer()
        self.now += RULES.least_seconds
        result = self.updater.watch()
        assert result is not None
        assert result.outcome is Outcome.CONFIRMED


def with_skeleton(artifact: Artifact, skeleton: bytes) -> Artifact:
    """Return the artifact with another graph, which no self-test knows."""
    stored, stage = encode_blob(skeleton), artifact.manifest.stages[0]
    ref = replace(
        stage.skeleton, digest=content_digest(skeleton), shape=(len(skeleton),), stored_size_bytes=len(stored)
    )
    manifest = replace(artifact.manifest, stages=(replace(stage, skeleton=ref),))
    return Artifact(manifest, {**artifact.blobs, ref.digest: stored})


BROKEN = with_skeleton(NEW, b"not a graph")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Return a device that runs the old artifact."""
    with Bench(tmp_path) as made:
        made.publish(OLD, 1)
        assert made.updater.update().outcome is Outcome.INSTALLED
        yield made


def test_the_first_artifact_is_installed_without_a_trial(tmp_path: Path) -> None:
    with Bench(tmp_path, settings={"model_digest": OLD.manifest.model_digest}) as bench:
        assert bench.updater.update().outcome is Outcome.UNCHANGED
        target = bench.publish(OLD, 1)
        result = bench.updater.update()
        assert (result.outcome, result.target, bench.serves()) == (Outcome.INSTALLED, target, 0)
        assert result.fetched_bytes > OLD.size_bytes // 2
        assert bench.updates.checks[-1] == ("x86-vnni", OLD.manifest.model_digest, None)
        assert bench.updater.update().outcome is Outcome.UNCHANGED
        assert bench.updates.checks[-1] == ("x86-vnni", OLD.manifest.model_digest, target)


def test_an_update_serves_on_trial_and_is_confirmed(bench: Bench) -> None:
    bench.publish(NEW, 2)
    assert bench.updater.update().outcome is Outcome.ON_TRIAL
    assert bench.serves() == 1
    assert bench.updater.watch() is None
    bench.confirm()
    assert bench.serves() == 1
    old, new = Target(1, OLD.manifest.digest()), Target(2, NEW.manifest.digest())
    assert bench.state.slots() == Slots(Phase.CONFIRMED, new, None, old)


def test_only_what_changed_is_fetched_and_what_nothing_names_is_removed(bench: Bench) -> None:
    for version, artifact in ((2, NEW), (3, NEWER)):
        bench.updates.sent.clear()
        bench.publish(artifact, version)
        bench.updater.update()
        assert bench.updates.sent_bytes < 1200
        bench.confirm()
    named = {*NEW.blobs, *NEWER.blobs, NEW.manifest.digest(), NEWER.manifest.digest()}
    assert bench.state.digests() == named


@pytest.mark.parametrize("failure", ["raises", "not finite"])
def test_an_artifact_that_fails_on_trial_is_reverted_and_no_inference_fails(
    bench: Bench, failure: str
) -> None:
    bench.publish(NEW, 2)
    bench.updater.update()
    runtime = bench.updater.runtime
    assert runtime is not None

    class FailingSession:
        def run(self, *_: object) -> list[np.ndarray]:
            if failure == "raises":
                raise RuntimeError("out of memory")
            return [np.full((4, 4), np.nan, np.float32)]

    runtime._live = replace(runtime._live, session=FailingSession())
    assert bench.serves() == 0
    result = bench.updater.watch()
    assert result is not None
    assert (result.outcome, result.target, bench.serves()) == (Outcome.REVERTED, bench.updates.target, 0)
    assert "1 of 1 inferences failed" in result.reason
    assert bench.updater.update().outcome is Outcome.UNCHANGED  # it is not tried again
    assert bench.state.slots().phase is Phase.REVERTED


def test_an_artifact_that_is_too_slow_is_reverted(tmp_path: Path) -> None:
    with Bench(tmp_path, settings={"trial": replace(RULES, latency_ratio=3.0)}) as bench:
        bench.publish(OLD, 1)
        bench.updater.update()
        meter, runtime = bench.updater._serving._meter, bench.updater.runtime
        assert runtime is not None
        for _ in range(5):
            meter.record(runtime.manifest, 0.01, True)
        bench.publish(NEW, 2)
        bench.updater.update()
        for _ in range(5):
            meter.record(runtime.manifest, 0.1, True)
        result = bench.updater.watch()
        assert result is not None
        assert (result.outcome, bench.serves()) == (Outcome.REVERTED, 0)
        assert "times as long" in result.reason


def wrong_self_test() -> Artifact:
    """Return the artifact with a self-test that its graph does not pass."""
    grid = params_from_range(-1.0, 1.0)
    test = SelfTest(grid, params_from_range(-9.0, 9.0), np.full((2, WANTED[1].shape[1]), 255, np.uint8))
    content, stage = test.to_content(), NEW.manifest.stages[0]
    stored = encode_blob(content)
    ref = BlobRef("", content_digest(content), "bytes", (len(content),), 8, len(stored))
    manifest = replace(NEW.manifest, stages=(replace(stage, self_test=ref),))
    return Artifact(manifest, {**NEW.blobs, ref.digest: stored})


@pytest.mark.parametrize(
    ("bad", "reason"), [(BROKEN, "cannot load"), (wrong_self_test(), "codes from what they must be")]
)
def test_an_artifact_that_fails_its_test_never_serves(bench: Bench, bad: Artifact, reason: str) -> None:
    bench.publish(bad, 2)
    result = bench.updater.update()
    assert (result.outcome, bench.serves()) == (Outcome.REFUSED, 0)
    assert reason in result.reason
    assert bench.updater.update().outcome is Outcome.UNCHANGED
    bench.publish(NEW, 3)
    assert bench.updater.update().outcome is Outcome.ON_TRIAL


def test_a_target_that_is_withdrawn_on_trial_is_left(bench: Bench) -> None:
    bench.publish(NEW, 2)
    bench.updater.update()
    again = bench.publish(OLD, 3)
    result = bench.updater.update()
    assert (result.outcome, bench.serves()) == (Outcome.REVERTED, 0)
    assert bench.state.slots().active == again
    assert bench.updater.update().outcome is Outcome.UNCHANGED


def test_a_newer_target_takes_the_place_of_the_one_on_trial(bench: Bench) -> None:
    bench.publish(NEW, 2)
    bench.updater.update()
    bench.publish(NEWER, 3)
    assert (bench.updater.update().outcome, bench.serves()) == (Outcome.ON_TRIAL, 2)
    assert bench.state.slots().active == Target(1, OLD.manifest.digest())


def test_an_older_target_is_not_taken(bench: Bench) -> None:
    bench.publish(NEW, 2)
    bench.updater.update()
    bench.confirm()
    bench.publish(OLD, 1)
    assert (bench.updater.update().outcome, bench.serves()) == (Outcome.UNCHANGED, 1)


def test_a_large_update_waits_for_another_network(tmp_path: Path) -> None:
    is_metered = True
    limits = Limits(free_bytes=0, metered_bytes=300)
    with Bench(tmp_path, settings={"limits": limits}, is_metered=lambda: is_metered) as bench:
        bench.publish(OLD, 1)
        assert bench.updater.update().outcome is Outcome.DEFERRED
        assert bench.updater.runtime is None
        is_metered = False
        assert bench.updater.update().outcome is Outcome.INSTALLED


def test_over_a_metered_network_nothing_at_all_is_fetched_if_that_is_the_limit(tmp_path: Path) -> None:
    is_metered = True
    limits = Limits(free_bytes=0, metered_bytes=0)
    with Bench(tmp_path, settings={"limits": limits}, is_metered=lambda: is_metered) as bench:
        bench.publish(OLD, 1)
        result = bench.updater.update()
        assert (result.outcome, result.reason) == (
            Outcome.DEFERRED,
            "nothing is fetched over a metered network",
        )
        assert bench.updates.sent_bytes == 0
        is_metered = False
        assert bench.updater.update().outcome is Outcome.INSTALLED
        bench.state.blobs.remove(OLD.manifest.digest())
        is_metered, before = True, bench.updates.sent_bytes
        bench.updater.update()  # does not repair it either
        assert bench.updates.sent_bytes == before


class Bundles(MemoryUpdates):
    """A service that is asked for bundles, and has none."""

    brings_bundles = True

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def fetch(self, wants: Sequence[Want], held: Collection[str], *_: Any) -> Iterator[Piece]:
        if wants[0].base_manifest:
            self.asked += 1
            raise NotFoundError("no bundle")
        yield from super().fetch(wants, held)


@pytest.mark.parametrize("has_room", [True, False])
def test_a_bundle_is_asked_for_only_where_there_is_room_for_it(tmp_path: Path, has_room: bool) -> None:
    updates, coarse = Bundles(), EXAMPLE.artifact(1, bits=4, is_observed=False)
    with Bench(tmp_path, updates=updates) as bench:
        bench.publish(OLD, 1)
        bench.updater.update()
    needed = sum(
        ref.stored_size_bytes + HEADER_BYTES
        for digest, ref in coarse.manifest.blobs.items()
        if digest not in OLD.manifest.blobs
    )
    manifest_bytes = len(encode_blob(coarse.manifest.to_bytes()))
    with StateFolder(tmp_path) as state:
        limit = used_bytes(state) + manifest_bytes + (2 if has_room else 1) * needed
    limits = Limits(disk_bytes=limit, free_bytes=0)
    with Bench(tmp_path, updates=updates, settings={"limits": limits}) as bench:
        bench.publish(coarse, 2)
        assert bench.updater.update().outcome is Outcome.ON_TRIAL
    assert updates.asked == has_room


def test_an_update_that_does_not_fit_is_refused_and_what_serves_stays(tmp_path: Path) -> None:
    limit = sum(map(len, OLD.blobs.values())) + 800
    with Bench(tmp_path, settings={"limits": Limits(disk_bytes=limit, free_bytes=0)}) as bench:
        bench.publish(OLD, 1)
        bench.updater.update()
        bench.publish(EXAMPLE.artifact(3, bits=3, is_observed=False), 2)
        with pytest.raises(UpdateRejectedError, match="free some space"):
            bench.updater.update()
        assert bench.serves() == 0


def test_an_artifact_for_other_devices_is_refused(bench: Bench) -> None:
    bench.publish(Artifact(replace(NEW.manifest, device_class="arm"), NEW.blobs), 2)
    with pytest.raises(UpdateRejectedError, match="'arm'"):
        bench.updater.update()
    assert bench.serves() == 0


def test_offline_a_device_goes_on_serving_and_takes_the_update_later(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench:
        bench.publish(OLD, 1)
        bench.updater.update()
        updates = bench.updates
    updates.is_reachable = False
    with Bench(tmp_path, updates) as bench:
        assert bench.serves() == 0
        bench.publish(NEW, 2)
        with pytest.raises(UnreachableError):
            bench.updater.update()
        updates.is_reachable = True
        assert bench.updater.update().outcome is Outcome.ON_TRIAL


def test_a_trial_that_a_restart_interrupts_begins_again_and_ends_after_a_few(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench:
        bench.publish(OLD, 1)
        bench.updater.update()
        bench.publish(NEW, 2)
        bench.updater.update()
        updates = bench.updates
    for _ in range(MAX_ATTEMPTS):
        with Bench(tmp_path, updates) as bench:
            assert (bench.serves(), bench.state.slots().phase) == (1, Phase.TRIAL)
    with Bench(tmp_path, updates) as bench:
        assert (bench.serves(), bench.state.slots().phase) == (0, Phase.REVERTED)
        assert bench.updater.update().outcome is Outcome.UNCHANGED


def test_a_resumed_trial_can_be_reverted_at_once(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench:
        bench.publish(OLD, 1)
        bench.updater.update()
        bench.publish(NEW, 2)
        bench.updater.update()
    with Bench(tmp_path) as bench:
        assert bench.updater.roll_back().outcome is Outcome.REVERTED
        assert bench.serves() == 0


def test_the_owner_of_a_device_can_go_back_and_the_target_is_not_taken_again(bench: Bench) -> None:
    with pytest.raises(IllegalTransitionError):
        bench.updater.roll_back()
    bench.publish(NEW, 2)
    bench.updater.update()
    bench.confirm()
    assert (bench.updater.roll_back().outcome, bench.serves()) == (Outcome.REVERTED, 0)
    assert bench.updater.update().outcome is Outcome.UNCHANGED
    bench.publish(NEWER, 3)
    assert bench.updater.update().outcome is Outcome.ON_TRIAL


@pytest.mark.parametrize("lost", ["a blob", "the manifest", "the slots"])
def test_what_is_damaged_on_the_disk_is_fetched_again(tmp_path: Path, lost: str) -> None:
    with Bench(tmp_path) as bench:
        target = bench.publish(OLD, 1)
        bench.updater.update()
        updates = bench.updates
    damaged = {"a blob": f"blobs/{min(OLD.blobs)}", "the manifest": f"blobs/{target.manifest_digest}"}
    (tmp_path / damaged.get(lost, "slots")).write_bytes(b"damaged")
    with Bench(tmp_path, updates) as bench:
        assert bench.updater.runtime is None
        bench.updater.update()
        assert bench.serves() == 0


def test_with_a_damaged_artifact_the_earlier_one_serves_until_it_is_repaired(
    bench: Bench, tmp_path: Path
) -> None:
    bench.publish(NEW, 2)
    bench.updater.update()
    bench.confirm()
    bench.state.close()
    (tmp_path / f"blobs/{min(NEW.blobs.keys() - OLD.blobs.keys())}").write_bytes(b"damaged")
    with Bench(tmp_path, bench.updates) as again:
        assert again.serves() == 0
        again.updater.update()
        assert again.serves() == 1


def test_a_device_that_dies_over_a_test_tries_again_and_then_refuses(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench:
        bench.publish(OLD, 1)
        bench.updater.update()
        updates = bench.updates

    def dies(*_: object) -> None:
        raise Death

    updates.publish(NEW, 2)
    for _ in range(MAX_ATTEMPTS):
        with Bench(tmp_path, updates, test=dies) as bench:
            assert bench.serves() == 0
            with pytest.raises(Death):
                bench.updater.update()
    with Bench(tmp_path, updates, test=dies) as bench:
        assert bench.updater.update().outcome is Outcome.UNCHANGED
        assert (bench.serves(), bench.state.slots().phase) == (0, Phase.REVERTED)


class FullDisk(Disk):
    """Has no space left from some moment on."""

    is_full = False

    def write(self, path: Path, data: bytes) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device")
        super().write(path, data)


def test_on_a_full_disk_what_fails_its_trial_is_left_and_is_not_confirmed_later(tmp_path: Path) -> None:
    disk = FullDisk()
    with Bench(tmp_path, disk=disk) as bench:
        bench.publish(OLD, 1)
        bench.updater.update()
        bench.publish(NEW, 2)
        bench.updater.update()
        bench.updater._serving._meter.record(bench.updater.runtime.manifest, 0.01, False)  # type: ignore[union-attr]
        disk.is_full = True
        with pytest.raises(ConfigurationError, match="No space left"):
            bench.updater.watch()
        assert bench.serves() == 0
        bench.now += 1000.0
        with pytest.raises(ConfigurationError):
            bench.updater.watch()
        disk.is_full = False
        result = bench.updater.watch()
        assert result is not None
        assert (result.outcome, bench.serves()) == (Outcome.REVERTED, 0)


def test_on_a_full_disk_an_update_fails_and_what_serves_stays(tmp_path: Path) -> None:
    disk = FullDisk()
    with Bench(tmp_path, disk=disk) as bench:
        bench.publish(OLD, 1)
        bench.updater.update()
        updates = bench.publish(NEW, 2) and bench.updates
        disk.is_full = True
        with pytest.raises(ConfigurationError, match="No space left"):
            bench.updater.update()
        assert bench.serves() == 0
    with Bench(tmp_path, updates, disk=disk) as bench:
        assert bench.serves() == 0


def test_what_cannot_be_written_down_as_on_trial_does_not_serve(tmp_path: Path) -> None:
    disk = FullDisk()

    def passes_and_fills_the_disk(folder: Path, digest: str) -> None:
        load(folder, digest)
        disk.is_full = bench.updater.runtime is not None

    with Bench(tmp_path, disk=disk, test=passes_and_fills_the_disk) as bench:
        bench.publish(OLD, 1)
        bench.updater.update()
        bench.publish(NEW, 2)
        with pytest.raises(ConfigurationError, match="No space left"):
            bench.updater.update()
        assert bench.serves() == 0


def test_a_disk_that_fills_while_on_trial_does_not_keep_a_device_from_starting(tmp_path: Path) -> None:
    disk = FullDisk()
    with Bench(tmp_path, disk=disk) as bench:
        bench.publish(OLD, 1)
        bench.updater.update()
        bench.publish(NEW, 2)
        bench.updater.update()
    disk.is_full = True
    with Bench(tmp_path, disk=disk) as bench:
        assert bench.serves() == 0


def test_a_device_that_dies_at_any_write_of_an_upgrade_gets_there_by_itself(tmp_path: Path) -> None:
    original, folder = tmp_path / "original", tmp_path / "device"
    with Bench(original) as bench:
        bench.publish(OLD, 1)
        bench.updater.update()

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(original, folder)

    def upgrade(disk: DyingDisk) -> None:
        with Bench(folder, updates, disk=disk) as bench:
            for _ in range(3):
                if bench.updater.update().outcome is Outcome.ON_TRIAL:
                    break
            bench.confirm()

    updates = MemoryUpdates(chunk_bytes=4096)
    updates.publish(OLD, 1)
    updates.publish(NEW, 2)
    count = 0
    for kind, lives in deaths(prepare, upgrade):
        count += 1
        with Bench(folder, updates) as bench:
            assert bench.serves() in (0, 1), (kind, lives)
            for _ in range(3):
                if (
                    bench.updater.update().outcome is Outcome.ON_TRIAL
                    or bench.state.slots().phase is Phase.TRIAL
                ):
                    bench.confirm()
            assert bench.state.slots().active == updates.target, (kind, lives)
            assert bench.serves() == 1
    assert count > 30


def test_inferences_never_fail_while_updates_come_and_go(bench: Bench) -> None:
    done, wrong = threading.Event(), []

    def infer_all_the_time() -> None:
        while not done.is_set():
            logits = bench.infer()
            if not any(np.array_equal(logits, wanted) for wanted in WANTED):
                wrong.append(logits)

    worker = threading.Thread(target=infer_all_the_time)
    worker.start()
    for version in range(2, 12):
        bench.publish((OLD, NEW, NEWER)[version % 3], version)
        assert bench.updater.update().outcome is Outcome.ON_TRIAL
        bench.now += RULES.longest_seconds
        assert bench.updater.watch() is not None
    done.set()
    worker.join()
    assert wrong == []


def test_by_default_an_update_is_tested_in_a_process_of_its_own(tmp_path: Path) -> None:
    updates = MemoryUpdates()
    updates.publish(OLD, 1)
    with StateFolder(tmp_path) as state:
        updater = Updater(state, updates, SETTINGS)
        assert updater.update().outcome is Outcome.INSTALLED
        updates.publish(BROKEN, 2)
        result = updater.update()
        assert (result.outcome, updater.runtime is not None) == (Outcome.REFUSED, True)
        assert result.reason.startswith("the self-test failed: ONNX Runtime cannot load")
        updater.close()


@pytest.mark.slow
def test_a_process_that_is_killed_at_any_write_of_an_upgrade_loses_nothing(tmp_path: Path) -> None:
    original, folder = tmp_path / "original", tmp_path / "device"
    old, new = killed_upgrade.artifacts()
    killed_upgrade.upgrade(original, Disk(), old, 1)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/support")])}
    operation = 0
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(original, folder)
        command = [sys.executable, killed_upgrade.__file__, str(folder), str(operation)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        with StateFolder(folder) as state:
            manifest = state.read_manifest()
            assert manifest in (old.manifest, new.manifest), operation
            Runtime(manifest, state.read_blob).close()
        for _ in range(2):  # a trial that was interrupted goes on, then an update that was
            killed_upgrade.upgrade(folder, Disk(), new, 2)
        with StateFolder(folder) as state:
            assert state.slots() == Slots(
                Phase.CONFIRMED, Target(2, new.manifest.digest()), None, Target(1, old.manifest.digest())
            ), operation
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        operation += 1
    assert operation > 30


class ForgetfulDisk(Disk):
    """Cannot write the slots from some time on, for a while."""

    failures = 0

    def rename(self, path: Path, target: Path) -> None:
        if target.name == "slots" and self.failures:
            text = path.read_text()
            if '"trial"' in text or '"confirmed"' in text:
                self.failures -= 1
                raise OSError(28, "No space left on device")
        super().rename(path, target)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_test_whose_end_cannot_be_written_is_done_again(tmp_path: Path, is_first: bool) -> None:
    disk = ForgetfulDisk()
    with Bench(tmp_path, disk=disk) as bench:
        if not is_first:
            bench.publish(OLD, 1)
            bench.updater.update()
        target = bench.publish(NEW, 2)
        disk.failures = MAX_ATTEMPTS + 2
        for _ in range(MAX_ATTEMPTS + 2):
            with pytest.raises(ConfigurationError, match="No space left"):
                bench.updater.update()
            assert is_first or bench.serves() == 0
        outcome = bench.updater.update().outcome
        assert outcome is (Outcome.INSTALLED if is_first else Outcome.ON_TRIAL)
        assert bench.state.slots().serving == target
        assert bench.serves() == 1


def test_what_is_damaged_waits_for_another_network_too(tmp_path: Path) -> None:
    is_metered = False
    limits = Limits(free_bytes=0, metered_bytes=300)
    with Bench(tmp_path, settings={"limits": limits}, is_metered=lambda: is_metered) as bench:
        bench.publish(OLD, 1)
        bench.updater.update()
        for digest in OLD.manifest.blobs:
            bench.state.blobs.remove(digest)
        is_metered = True
        bench.updater.update()
        assert len(bench.state.missing_blobs(OLD.manifest)) == len(OLD.manifest.blobs)
        is_metered = False
        bench.updater.update()
        assert bench.state.missing_blobs(OLD.manifest) == []


def test_a_test_without_memory_is_done_again_so_many_times(tmp_path: Path) -> None:
    tests = 0

    def test(path: Path, digest: str) -> None:
        nonlocal tests
        tests += 1
        if tests > 1:
            raise OverloadedError("the self-test was killed, or found too little memory", 600.0)
        load(path, digest)

    with Bench(tmp_path, test=test) as bench:
        bench.publish(OLD, 1)
        bench.updater.update()
        target = bench.publish(NEW, 2)
        for _ in range(MAX_ATTEMPTS - 1):
            with pytest.raises(OverloadedError):
                bench.updater.update()
            assert (bench.state.slots().phase, bench.state.slots().candidate) == (Phase.STAGED, target)
            came = bench.updates.sent_bytes
        result = bench.updater.update()
        assert (result.outcome, result.target) == (Outcome.REFUSED, target)
        assert "too little memory, 3 times in a row" in result.reason
        assert bench.updates.sent_bytes == came  # nothing is fetched again
        assert bench.updater.update().outcome is Outcome.UNCHANGED
        assert (tests, bench.serves()) == (1 + MAX_ATTEMPTS, 0)


def test_a_test_that_finds_memory_again_lets_the_artifact_serve(tmp_path: Path) -> None:
    is_short = True

    def test(path: Path, digest: str) -> None:
        if is_short:
            raise OverloadedError("the self-test was killed, or found too little memory", 600.0)
        load(path, digest)

    with Bench(tmp_path, test=test) as bench:
        bench.publish(OLD, 1)
        for _ in range(MAX_ATTEMPTS - 1):
            with pytest.raises(OverloadedError):
                bench.updater.update()
        is_short = False
        assert bench.updater.update().outcome is Outcome.INSTALLED


def test_a_service_that_is_stopped_over_a_test_tries_the_artifact_again(tmp_path: Path) -> None:
    is_stopped = False

    def test(path: Path, digest: str) -> None:
        if is_stopped:
            raise OverloadedError("the self-test was ended from outside", 0.0)
        load(path, digest)

    with Bench(tmp_path, test=test) as bench:
        bench.publish(OLD, 1)
        bench.updater.update()
        is_stopped = True
        bench.publish(NEW, 2)
        with pytest.raises(OverloadedError):
            bench.updater.update()
        assert (bench.serves(), bench.state.slots().refused_version) == (0, 0)
    is_stopped = False
    with Bench(tmp_path, updates=bench.updates, test=test) as bench:
        assert bench.updater.update().outcome is Outcome.ON_TRIAL
        assert bench.serves() == 1
