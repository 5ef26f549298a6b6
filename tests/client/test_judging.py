import threading
from collections.abc import Iterator

import numpy as np
import pytest
from agents import EXAMPLE, OLD
from artifacts import example
from waiting import eventually

from client.judging import Judge, JudgeSettings
from client.observer import Observer
from client.runtime import Runtime
from client.shadow import can_judge, judge_answers
from client.slots import Target
from client.telemetry import Telemetry
from quantization.errors import ConfigurationError, MalformedError, NotFoundError

READ = OLD.blobs.__getitem__
INPUTS = EXAMPLE.inputs(40)
SAID: list[int] = Runtime(OLD.manifest, READ).infer(INPUTS).argmax(axis=1).tolist()
FLOAT: list[int] = Observer(OLD.manifest, READ).logits(INPUTS).argmax(axis=1).tolist()


def test_agreement_is_with_the_float_model_of_the_observation_graph() -> None:
    said = judge_answers(OLD.manifest, READ, INPUTS, FLOAT)
    assert (said.judged, said.agreements) == (40, 40)
    wrong = [(index + 1) % 4 for index in FLOAT]
    assert judge_answers(OLD.manifest, READ, INPUTS, wrong).agreements == 0
    expected = sum(a == b for a, b in zip(SAID, FLOAT, strict=True))
    assert judge_answers(OLD.manifest, READ, INPUTS, SAID).agreements == expected


@pytest.mark.parametrize(("width", "least", "most"), [(1e4, 0.0, 0.0), (4.0, 0.0, 0.2), (1e-3, 0.5, 1.0)])
def test_values_beyond_their_ranges_are_counted(width: float, least: float, most: float) -> None:
    artifact = EXAMPLE.artifact(0, width=width)
    said = judge_answers(artifact.manifest, artifact.blobs.__getitem__, INPUTS, FLOAT)
    assert said.observed_values > len(INPUTS)
    assert least <= said.clipped_values / said.observed_values <= most


def test_a_model_with_residuals_is_judged_too() -> None:
    artifact = example().artifact()
    inputs = example().inputs(3)
    said = judge_answers(artifact.manifest, artifact.blobs.__getitem__, inputs, [0, 1, 2])
    assert said.judged == 3
    assert said.observed_values > 100


def test_an_artifact_without_observation_graph_judges_nothing() -> None:
    bare = EXAMPLE.artifact(is_observed=False)
    assert not can_judge(bare.manifest)
    with pytest.raises(ConfigurationError, match="no observation graph"):
        judge_answers(bare.manifest, bare.blobs.__getitem__, INPUTS, FLOAT)


class Judged:
    """A judge and what it counts."""

    def __init__(self, read_blob: object = READ, **settings: float) -> None:
        self.telemetry = Telemetry()
        self.telemetry.serve(OLD.manifest, Target(1, OLD.manifest.digest()))
        self.counted = self.telemetry.of(OLD.manifest)
        defaults = {"every": 1, "share": 1.0, "batch": 4, "wait_seconds": 0.01}
        rules = JudgeSettings(**{**defaults, **settings})  # type: ignore[arg-type]
        self.judge = Judge(self.telemetry, read_blob, rules, is_quiet=False)  # type: ignore[arg-type]

    def offer(self, start: int, count: int) -> None:
        self.judge.offer(INPUTS[start : start + count], SAID[start : start + count], self.counted)

    def rows(self) -> list[np.ndarray]:
        return [one.row for one in self.judge._queue]


@pytest.fixture
def judged() -> Iterator[Judged]:
    made = Judged()
    yield made
    made.judge.close()


@pytest.mark.parametrize("batches", [(10, 10), (1,) * 20, (3, 8, 2, 7), (20,)])
def test_every_third_sample_is_judged_however_they_come(batches: tuple[int, ...]) -> None:
    made = Judged(every=3, batch=100)
    start = 0
    for count in batches:
        made.offer(start, count)
        start += count
    assert [row.tolist() for row in made.rows()] == [INPUTS[place].tolist() for place in range(2, 20, 3)]


def test_what_does_not_fit_is_not_judged_and_costs_nothing() -> None:
    made = Judged(batch=4)
    made.offer(0, 40)
    made.offer(0, 40)
    assert len(made.rows()) == 4


def test_samples_are_judged_in_the_background(judged: Judged) -> None:
    judged.judge.start()
    judged.offer(0, 4)
    eventually(lambda: judged.counted.agreements.judged == 4)
    assert judged.counted.observed_values > 0


def test_a_few_samples_are_judged_after_a_while(judged: Judged) -> None:
    judged.judge.start()
    judged.offer(0, 1)
    eventually(lambda: judged.counted.agreements.judged == 1)


def test_what_cannot_be_judged_is_counted_and_ends_nothing() -> None:
    gone = threading.Event()

    def read(digest: str) -> bytes:
        if not gone.is_set():
            raise MalformedError(f"blob {digest} is no blob")
        return READ(digest)

    made = Judged(read)
    made.judge.start()
    made.offer(0, 4)
    eventually(lambda: made.judge.failures == 1)
    gone.set()
    made.offer(0, 4)
    eventually(lambda: made.counted.agreements.judged == 4)
    made.judge.close()


def test_an_artifact_that_was_left_and_collected_is_no_failure() -> None:
    calls: list[str] = []

    def read(digest: str) -> bytes:
        calls.append(digest)
        raise NotFoundError(f"blob {digest} is gone")

    made = Judged(read)
    made.judge.start()
    made.offer(0, 4)
    eventually(lambda: calls)
    made.judge.close()
    assert made.judge.failures == 0


def test_none_is_judged_where_none_is_wanted() -> None:
    made = Judged(every=0)
    made.judge.start()
    made.offer(0, 40)
    assert made.rows() == []
    made.judge.close()


@pytest.mark.parametrize(
    "wrong", [{"every": -1}, {"share": 0}, {"share": 1.1}, {"batch": 0}, {"wait_seconds": -1}]
)
def test_settings_that_cannot_be_followed_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="judge settings"):
        JudgeSettings(**wrong)  # type: ignore[arg-type]


def test_inputs_that_make_no_batch_end_nothing() -> None:
    made = Judged(batch=2)
    for row in (INPUTS[:1], INPUTS[:1, :2]):  # as of a model that takes inputs of any length
        made.judge.offer(row, SAID[:1], made.counted)
    made.judge.start()
    eventually(lambda: made.judge.failures == 1)
    made.offer(0, 2)
    eventually(lambda: made.counted.agreements.judged == 2)
    made.judge.close()
