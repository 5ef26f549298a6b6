import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from artifacts import example

from client import self_testing
from client.self_testing import run_isolated
from client.state import StateFolder
from quantization.artifact import Artifact
from quantization.blob import content_digest, encode_blob
from quantization.errors import NotFoundError, OverloadedError, UpdateRejectedError

ARTIFACT = example("mlp").artifact(is_observed=False)


def put(path: Path, artifact: Artifact = ARTIFACT) -> str:
    with StateFolder(path) as state:
        for digest, stored in artifact.blobs.items():
            state.store_blob(digest, stored)
        return state.store_manifest(artifact.manifest)


def test_a_good_artifact_passes_in_a_process_of_its_own_beside_the_owner(tmp_path: Path) -> None:
    digest = put(tmp_path)
    with StateFolder(tmp_path):
        run_isolated(tmp_path, digest)


def test_an_artifact_that_does_not_load_fails_with_the_reason(tmp_path: Path) -> None:
    content = b"not a graph"
    stored, stage = encode_blob(content), ARTIFACT.manifest.stages[0]
    ref = replace(
        stage.skeleton, digest=content_digest(content), shape=(len(content),), stored_size_bytes=len(stored)
    )
    manifest = replace(ARTIFACT.manifest, stages=(replace(stage, skeleton=ref),))
    digest = put(tmp_path, Artifact(manifest, {**ARTIFACT.blobs, ref.digest: stored}))
    with pytest.raises(UpdateRejectedError, match="ONNX Runtime cannot load"):
        run_isolated(tmp_path, digest)


def test_an_artifact_that_is_damaged_on_the_disk_is_not_refused_but_not_found(tmp_path: Path) -> None:
    digest = put(tmp_path)
    (tmp_path / "blobs" / min(ARTIFACT.blobs)).write_bytes(b"QF")
    with pytest.raises(NotFoundError, match="damaged"):
        run_isolated(tmp_path, digest)
    with pytest.raises(NotFoundError):
        run_isolated(tmp_path, "0" * 64)


def interpreter(folder: Path, script: str) -> str:
    """Return a Python that runs a script in place of whatever it is asked to run."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{script}"\n')
    path.chmod(0o755)
    return str(path)


def test_an_artifact_that_kills_its_process_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})"
    monkeypatch.setattr(self_testing.sys, "executable", interpreter(tmp_path, script))
    with pytest.raises(UpdateRejectedError, match="killed the process of its self-test, signal 11"):
        run_isolated(tmp_path, "0" * 64)


def test_an_artifact_whose_test_does_not_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_testing.sys, "executable", interpreter(tmp_path, "import time; time.sleep(60)"))
    before = threading.active_count()
    with pytest.raises(UpdateRejectedError, match="was not done after"):
        run_isolated(tmp_path, "0" * 64, timeout_seconds=0.2)
    assert threading.active_count() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_test_that_somebody_ends_says_nothing_of_the_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    script = f"import os, signal; signal.signal({number:d}, signal.SIG_DFL); os.kill(os.getpid(), {number:d})"
    monkeypatch.setattr(self_testing.sys, "executable", interpreter(tmp_path, script))
    with pytest.raises(OverloadedError, match="ended from outside"):
        run_isolated(tmp_path, put(tmp_path / "state"))


def test_a_test_that_is_killed_says_nothing_of_the_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"
    monkeypatch.setattr(self_testing.sys, "executable", interpreter(tmp_path, script))
    with pytest.raises(OverloadedError, match="too little memory") as caught:
        run_isolated(tmp_path, "0" * 64)
    assert caught.value.retry_after_seconds > 60


def test_a_test_without_memory_says_nothing_of_the_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nulimit -v 100000; exec {sys.executable} "$@"\n')
    path.chmod(0o755)
    digest = put(tmp_path / "state")
    monkeypatch.setattr(self_testing.sys, "executable", str(path))
    with pytest.raises(OverloadedError, match="too little memory"):
        run_isolated(tmp_path / "state", digest)


@pytest.mark.parametrize(
    "error", [MemoryError(), UpdateRejectedError("ONNX Runtime cannot load the graph: std::bad_alloc")]
)
def test_memory_that_ends_while_an_artifact_loads_is_told_from_a_bad_artifact(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load(*_: object) -> None:
        raise error

    monkeypatch.setattr(self_testing, "load", load)
    assert self_testing._main(["folder", "0" * 64]) == self_testing._NO_MEMORY
