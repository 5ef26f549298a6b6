"""A generation whose ServerApp, tuner and SuperLink are killed, one after the other: it completes all the same."""

import time
from pathlib import Path

import pytest

from server.generation import Step
from simulation.tuning_stage import Part, StageSettings, TuningStage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_a_generation_survives_its_tuner_and_its_superlink(tmp_path: Path) -> None:
    with TuningStage(tmp_path, StageSettings(cache=tmp_path / "models")) as stage:
        stage.ask()
        deadline = time.monotonic() + 300
        while (generation := stage.generation()) is None or generation.step is Step.STARTED:
            assert time.monotonic() < deadline, generation
            time.sleep(0.2)
        assert stage.is_working()  # its moments are folded and kept
        moments = generation.moments_digest
        assert stage.kill(Part.TUNER)
        assert stage.kill(Part.SUPERLINK_TREE)
        done = stage.wait(400)
        assert (done.number, done.step, done.clients) == (1, Step.PUBLISHED, 2)
        assert done.moments_digest == moments  # nobody was asked twice
        assert stage.runs() >= 2
        artifact = stage.artifact()
        assert set(artifact.blobs)
