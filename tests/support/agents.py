"""An agent with a server in memory, quick to update and to report."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from artifacts import example
from memory_link import MemoryLink

from client.agent import Agent
from client.garbage import Limits
from client.judging import JudgeSettings
from client.reporting import ReportSettings
from client.self_testing import load
from client.settings import DeviceSettings, SampleSettings
from client.state import StateFolder
from client.trial import TrialRules
from client.update_worker import UpdatePace
from quantization.artifact import Artifact
from quantization.blob import content_digest, encode_blob

EXAMPLE = example("mlp")
OLD, NEW, NEWER = (EXAMPLE.artifact(number, width=4.0 + number) for number in range(3))
INPUTS = EXAMPLE.inputs(4)


def with_skeleton(artifact: Artifact, skeleton: bytes) -> Artifact:
    """Return the artifact with another graph."""
    stored, stage = encode_blob(skeleton), artifact.manifest.stages[0]
    ref = replace(
        stage.skeleton, digest=content_digest(skeleton), shape=(len(skeleton),), stored_size_bytes=len(stored)
    )
    manifest = replace(artifact.manifest, stages=(replace(stage, skeleton=ref),))
    return Artifact(manifest, {**artifact.blobs, ref.digest: stored})


BROKEN = with_skeleton(NEW, b"not a graph")

SETTINGS = DeviceSettings(
    "x86-vnni",
    OLD.manifest.model_digest,
    limits=Limits(free_bytes=0),
    trial=TrialRules(least_seconds=0.0, least_runs=2, latency_ratio=1e9),
    sample=SampleSettings(rate=1.0),
    judge=JudgeSettings(every=0),
    report=ReportSettings(interval_seconds=0.05),
    pace=UpdatePace(first_backoff_seconds=0.02, longest_backoff_seconds=0.1),
)


@contextmanager
def running_agent(
    path: Path, link: MemoryLink | None = None, *, is_started: bool = True, **options: Any
) -> Iterator[Agent]:
    """Yield an agent on a state folder, which runs while the block does."""
    settings = replace(SETTINGS, **options.pop("settings", {}))
    state = StateFolder(path, **{key: options.pop(key) for key in ("disk",) if key in options})
    keywords = {"device": "device-1", "test": load, "rng": random.Random(0), **options}  # noqa: S311
    try:
        agent = Agent(state, settings, link, **keywords)
    except BaseException:
        state.close()
        raise
    try:
        if is_started:
            agent.start()
        yield agent
    finally:
        agent.close()


def version_of(agent: Agent) -> int:
    """Return the version that answers; 0 before the first."""
    return 0 if agent.updater.runtime is None else agent.infer(INPUTS).version
