import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agents import BROKEN, EXAMPLE, INPUTS, NEW, NEWER, OLD, running_agent, version_of
from memory_link import MemoryLink, MemoryWatch
from waiting import eventually

from client.agent import Agent
from client.judging import JudgeSettings
from client.runtime import Runtime
from client.sampler import Sampler
from client.slots import Phase, Target
from client.state import StateFolder
from client.transport import Offer
from client.update_worker import Chore, UpdatePace
from protos.quantfleet.v1 import telemetry_pb2 as pb
from quantization.errors import (
    ConfigurationError,
    IllegalTransitionError,
    InvalidDataError,
    MalformedError,
    NotFoundError,
    OverloadedError,
    UnreachableError,
)

WANTED = [Runtime(one.manifest, one.blobs.__getitem__).infer(INPUTS) for one in (OLD, NEW, NEWER)]


@pytest.fixture
def link() -> MemoryLink:
    return MemoryLink()


@pytest.fixture
def agent(tmp_path: Path, link: MemoryLink) -> Iterator[Agent]:
    """Return an agent that serves the old artifact as version 1."""
    link.publish(OLD, 1)
    with running_agent(tmp_path, link) as made:
        eventually(lambda: version_of(made) == 1)
        yield made


def counted(link: MemoryLink, version: int) -> pb.TelemetryCounts:
    """Return the sum of what was reported of a version."""
    total = pb.TelemetryCounts()
    for report in list(link.reports):
        if report.version == version:
            for field, value in report.counts.ListFields():
                if field.name != "judge":
                    setattr(total, field.name, getattr(total, field.name) + value)
                else:
                    total.judge = value
    return total


def outcomes(link: MemoryLink) -> list[tuple[int, int]]:
    return [(one.version, one.outcome) for report in list(link.reports) for one in report.installs]


def test_an_agent_without_a_model_takes_the_first_that_is_published(tmp_path: Path, link: MemoryLink) -> None:
    with running_agent(tmp_path, link) as agent:
        with pytest.raises(NotFoundError, match="no model yet"):
            agent.infer(INPUTS)
        assert agent.status().serving is None
        link.publish(OLD, 1)
        eventually(lambda: version_of(agent) == 1)
        assert np.array_equal(agent.infer(INPUTS).output, WANTED[0])


def test_an_announced_update_serves_on_trial_and_is_confirmed(agent: Agent, link: MemoryLink) -> None:
    link.publish(NEW, 2)
    eventually(lambda: version_of(agent) == 2)
    assert np.array_equal(agent.infer(INPUTS).output, WANTED[1])
    eventually(lambda: agent.status().phase == "confirmed" and agent.infer(INPUTS).version == 2)
    status = agent.status()
    assert (status.serving, status.fallback) == (
        Target(2, NEW.manifest.digest()),
        Target(1, OLD.manifest.digest()),
    )
    assert (status.is_running, status.is_connected, status.device) == (True, True, "device-1")
    eventually(lambda: outcomes(link)[-1:] == [(2, pb.INSTALL_OUTCOME_CONFIRMED)])
    assert (2, pb.INSTALL_OUTCOME_ACTIVATED) in outcomes(link)


def test_each_answer_is_of_the_version_that_it_names(agent: Agent, link: MemoryLink) -> None:
    seen, is_over = [], threading.Event()

    def load() -> None:
        while not is_over.is_set():
            answer = agent.infer(INPUTS)
            assert np.array_equal(answer.output, WANTED[answer.version - 1])
            assert answer.generation == answer.version - 1
            seen.append(answer.version)

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    for version, artifact in ((2, NEW), (3, NEWER)):
        link.publish(artifact, version)
        eventually(lambda wanted=version: seen[-1:] == [wanted] and agent.status().phase == "confirmed")
    is_over.set()
    for thread in threads:
        thread.join()
    assert {*seen} == {1, 2, 3}
    assert agent.totals().failures == 0


def test_what_was_answered_is_reported_by_version(agent: Agent, link: MemoryLink) -> None:
    answer = agent.infer(INPUTS)
    said = answer.output.argmax(axis=1)
    assert agent.label(answer.sample_id, int(said[0]))
    assert not agent.label(answer.sample_id + 1, int(said[1]) + 1)
    samples = agent.totals().samples
    eventually(lambda: counted(link, 1).samples == samples and counted(link, 1).labelled == 2)
    counts = counted(link, 1)
    assert (counts.hits, counts.failures, counts.judged) == (1, 0, 0)


def test_a_label_counts_once_and_not_for_strangers(agent: Agent) -> None:
    answer = agent.infer(INPUTS)
    agent.label(answer.sample_id, 0)
    for stranger in (answer.sample_id, answer.sample_id + len(INPUTS), 0, -1):
        with pytest.raises(NotFoundError, match="is not known"):
            agent.label(stranger, 0)


def test_inputs_that_are_no_inputs_are_refused_and_counted_nowhere(agent: Agent) -> None:
    before = agent.totals()
    for wrong in (np.zeros((1, 2), np.float32), np.full_like(INPUTS, np.nan), np.zeros(0, np.float32)):
        with pytest.raises(InvalidDataError):
            agent.infer(wrong)
    assert agent.totals() == before


def test_the_float_model_judges_some_answers(tmp_path: Path, link: MemoryLink) -> None:
    link.publish(OLD, 1)
    judge = JudgeSettings(every=3, share=1.0, batch=8, wait_seconds=0.05)
    with running_agent(tmp_path, link, settings={"judge": judge}) as agent:
        eventually(lambda: version_of(agent) == 1)

        def is_judged() -> bool:
            agent.infer(INPUTS)
            return counted(link, 1).judged >= 8

        eventually(is_judged)
        counts = counted(link, 1)
    assert counts.judge == pb.JUDGE_CORRECTED_FLOAT_MODEL
    assert 0 < counts.agreements <= counts.judged <= counts.samples
    assert 0 <= counts.clipped_values < counts.observed_values


def test_ranges_that_are_far_too_narrow_show_in_agreement_and_clipping(
    tmp_path: Path, link: MemoryLink
) -> None:
    link.publish(EXAMPLE.artifact(0, width=0.01), 1)
    judge = JudgeSettings(every=1, share=1.0, batch=16, wait_seconds=0.05)
    with running_agent(tmp_path, link, settings={"judge": judge}) as agent:
        inputs = EXAMPLE.inputs(64)
        eventually(lambda: version_of(agent) == 1)

        def is_judged() -> bool:
            agent.infer(inputs)
            return counted(link, 1).judged >= 32

        eventually(is_judged)
        counts = counted(link, 1)
    assert counts.clipped_values > 0.5 * counts.observed_values
    assert counts.agreements < 0.9 * counts.judged


def test_an_update_that_does_not_load_is_refused_for_good_and_reported(
    agent: Agent, link: MemoryLink
) -> None:
    link.publish(BROKEN, 2)
    eventually(lambda: agent.status().refused_version == 2)
    assert np.array_equal(agent.infer(INPUTS).output, WANTED[0])
    eventually(lambda: (2, pb.INSTALL_OUTCOME_LOAD_FAILED) in outcomes(link))
    link.publish(NEW, 3)
    eventually(lambda: version_of(agent) == 3)


def test_going_back_by_hand_is_reported_and_not_undone(agent: Agent, link: MemoryLink) -> None:
    with pytest.raises(IllegalTransitionError, match="no earlier artifact"):
        agent.roll_back()
    link.publish(NEW, 2)
    eventually(lambda: version_of(agent) == 2 and agent.status().phase == "confirmed")
    agent.roll_back()
    assert agent.infer(INPUTS).version == 1
    eventually(lambda: (2, pb.INSTALL_OUTCOME_REVERTED) in outcomes(link))
    assert agent.status().refused_version == 2
    assert version_of(agent) == 1


def test_a_server_that_is_away_is_asked_until_it_is_back(tmp_path: Path, link: MemoryLink) -> None:
    link.publish(OLD, 1)
    link.is_reachable = False
    with running_agent(tmp_path, link) as agent:
        eventually(lambda: "UnreachableError" in agent.status().last_error)
        link.is_reachable = True
        eventually(lambda: version_of(agent) == 1)
        eventually(lambda: not agent.status().last_error)


def test_a_restart_goes_on_with_what_served_and_what_was_sampled(tmp_path: Path, link: MemoryLink) -> None:
    link.publish(OLD, 1)
    with running_agent(tmp_path, link) as agent:
        eventually(lambda: version_of(agent) == 1)
        agent.infer(INPUTS)
        samples = agent.totals().samples
    away = MemoryLink()
    away.is_reachable = False
    with running_agent(tmp_path, away) as agent:
        assert np.array_equal(agent.infer(INPUTS).output, WANTED[0])
        away.is_reachable = True
        eventually(
            lambda: sum(report.counts.samples for report in link.reports + away.reports) == samples + 4
        )
    with StateFolder(tmp_path) as state:
        sampler, data = Sampler(INPUTS.shape[1:]), state.read_samples()
        assert data is not None
        sampler.restore(data)
        assert sampler.seen == samples + 4


def test_a_device_on_its_own_serves_and_keeps_its_reports(tmp_path: Path, link: MemoryLink) -> None:
    link.publish(OLD, 1)
    with running_agent(tmp_path, link) as agent:
        eventually(lambda: version_of(agent) == 1)
    with running_agent(tmp_path, None) as agent:
        assert agent.infer(INPUTS).version == 1
        assert not agent.is_connected
        eventually(lambda: agent.status().spooled_reports >= 1)
    later = MemoryLink()
    with running_agent(tmp_path, later):
        eventually(lambda: any(report.counts.samples == 4 for report in later.reports))


def test_a_second_agent_on_the_folder_is_refused(agent: Agent, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="in use by another process"), running_agent(tmp_path):
        pass
    assert agent.infer(INPUTS).version == 1


def test_a_device_without_a_model_must_know_which_to_ask_for(tmp_path: Path, link: MemoryLink) -> None:
    with (
        pytest.raises(ConfigurationError, match="--model-digest"),
        running_agent(tmp_path, link, settings={"model_digest": ""}),
    ):
        pass
    with running_agent(tmp_path, None, settings={"model_digest": ""}) as agent:
        assert agent.status().model_digest == ""


def test_chores_are_done_and_may_fail(tmp_path: Path, link: MemoryLink) -> None:
    done: list[str] = []

    def fail() -> None:
        done.append("failed")
        raise RuntimeError("a surprise")

    chores = (Chore("fail", 0.01, fail), Chore("work", 0.01, lambda: done.append("worked")))
    pace = UpdatePace(check_seconds=0.02)
    with running_agent(tmp_path, link, chores=chores, settings={"pace": pace}):
        eventually(lambda: done.count("failed") > 1 and done.count("worked") > 1)
        link.publish(OLD, 1)


def test_attempts_are_told_as_they_end(tmp_path: Path, link: MemoryLink) -> None:
    told: list[pb.InstallAttempt] = []
    link.publish(OLD, 1)
    with running_agent(tmp_path, link, on_attempt=told.append) as agent:
        eventually(lambda: version_of(agent) == 1 and told)
    (attempt,) = told
    assert (attempt.version, attempt.outcome) == (1, pb.INSTALL_OUTCOME_ACTIVATED)
    assert attempt.fetched_bytes > 1000
    assert attempt.install_seconds > 0


def test_what_cannot_be_fetched_is_reported_with_the_next_report(agent: Agent, link: MemoryLink) -> None:
    link.breaks_after_bytes = link.sent_bytes
    link.publish(NEW, 2)
    eventually(lambda: (2, pb.INSTALL_OUTCOME_FETCH_FAILED) in outcomes(link))
    assert version_of(agent) == 1
    link.breaks_after_bytes = None
    eventually(lambda: version_of(agent) == 2)


def test_what_fails_over_and_over_is_reported_once(agent: Agent, link: MemoryLink) -> None:
    link.breaks_after_bytes = link.sent_bytes
    asked = len(link.checks)
    link.publish(NEW, 2)
    eventually(lambda: len(link.checks) > asked + 5)
    link.breaks_after_bytes = None
    eventually(lambda: version_of(agent) == 2)
    eventually(lambda: (2, pb.INSTALL_OUTCOME_ACTIVATED) in outcomes(link))
    assert outcomes(link).count((2, pb.INSTALL_OUTCOME_FETCH_FAILED)) == 1


def test_that_the_server_is_away_is_not_reported(agent: Agent, link: MemoryLink) -> None:
    link.is_reachable = False
    link.publish(NEW, 2)
    eventually(lambda: agent.status().last_error.startswith("UnreachableError"))
    link.is_reachable = True
    eventually(lambda: version_of(agent) == 2)
    eventually(lambda: (2, pb.INSTALL_OUTCOME_ACTIVATED) in outcomes(link))
    assert (2, pb.INSTALL_OUTCOME_FETCH_FAILED) not in outcomes(link)


def test_announcements_that_lead_to_nothing_cause_ever_fewer_questions(
    tmp_path: Path, link: MemoryLink
) -> None:
    link.publish(OLD, 1)
    pace = UpdatePace(first_backoff_seconds=0.05, longest_backoff_seconds=3600)
    with running_agent(tmp_path, link, settings={"pace": pace}) as agent:
        eventually(lambda: version_of(agent) == 1 and bool(link.watches))
        before = len(link.checks)
        ends_at = time.monotonic() + 1.5
        version = 2
        while time.monotonic() < ends_at:
            version += 1
            link.watches[-1].offers.put(Offer(Target(version, NEW.manifest.digest())))
            time.sleep(0.002)
        assert 1 <= len(link.checks) - before <= 10


def test_an_agent_that_is_closed_asks_nobody_any_more(tmp_path: Path, link: MemoryLink) -> None:
    link.publish(OLD, 1)
    with running_agent(tmp_path, link) as agent:
        eventually(lambda: version_of(agent) == 1)
    agent.close()
    with pytest.raises(UnreachableError, match="ending"):
        agent.roll_back()
    assert link.is_closed
    with StateFolder(tmp_path) as state:
        assert state.slots().phase is Phase.CONFIRMED


def test_outputs_that_are_no_classes_are_answered_and_take_no_labels(
    tmp_path: Path, link: MemoryLink
) -> None:
    # A model with positions would answer (n, positions, classes).
    link.publish(OLD, 1)
    with running_agent(tmp_path, link) as agent:
        eventually(lambda: version_of(agent) == 1)
        runtime = agent.updater.runtime
        assert runtime is not None
        answered = runtime.answer(INPUTS)
        wide = replace(answered, output=answered.output[:, None])
        runtime.answer = lambda _: wide  # type: ignore[method-assign]
        answer = agent.infer(INPUTS)
        assert answer.output.shape == (4, 1, 4)
        with pytest.raises(NotFoundError):
            agent.label(answer.sample_id, 0)


class RefusedWatch(MemoryWatch):
    """Announcements that the server refuses."""

    def __iter__(self) -> Iterator[Offer]:
        raise MalformedError("no such model")


class RefusingLink(MemoryLink):
    """A link that remembers a watch until it is cancelled, as the real one does; most are refused."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def watch(self, *_: object) -> MemoryWatch:
        self.asked += 1
        made = RefusedWatch()
        self.watches = [*(one for one in self.watches if one.is_connected), made]
        return made


def test_watches_that_are_refused_are_given_up(tmp_path: Path) -> None:
    link = RefusingLink()
    with running_agent(tmp_path, link):
        eventually(lambda: link.asked >= 4)
        assert len(link.watches) <= 2


def test_of_many_announcements_the_last_one_waits(tmp_path: Path, link: MemoryLink) -> None:
    with running_agent(tmp_path, link, is_started=False) as agent:
        worker = agent._worker
        for version in range(1, 1000):
            worker.announce(Offer(Target(version, "ab" * 32)))
        assert worker._asked.qsize() == 1
        worker._answer()
        assert worker._offered == Target(999, "ab" * 32)
        worker.announce(Offer(Target(1000, "ab" * 32)))
        assert worker._asked.qsize() == 1


def test_whoever_asks_while_the_agent_ends_is_told(tmp_path: Path, link: MemoryLink) -> None:
    link.publish(OLD, 1)
    with running_agent(tmp_path, link) as agent:
        is_over, ended = threading.Event(), []

        def ask() -> None:
            while not is_over.is_set():
                try:
                    agent.roll_back()
                except IllegalTransitionError:
                    continue
                except UnreachableError:
                    ended.append(True)
                    return

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        eventually(lambda: version_of(agent) == 1)
        agent.close()
        for thread in threads:
            thread.join(30)
        is_over.set()
        assert len(ended) == 4


class WaitingLink(MemoryLink):
    """A link over which a question takes until it is let go on."""

    def __init__(self) -> None:
        super().__init__()
        self.is_asked, self.may_go_on = threading.Event(), threading.Event()
        self.may_go_on.set()

    def check(self, *asked: Any) -> Offer | None:
        if not self.may_go_on.is_set():
            self.is_asked.set()
            assert self.may_go_on.wait(60)
        return super().check(*asked)


def test_nobody_waits_for_ever_to_go_back_and_what_was_given_up_is_not_done(tmp_path: Path) -> None:
    link = WaitingLink()
    link.publish(OLD, 1)
    with running_agent(tmp_path, link) as agent:
        eventually(lambda: version_of(agent) == 1)
        link.publish(NEW, 2)
        eventually(lambda: version_of(agent) == 2 and agent.status().phase == "confirmed")
        link.may_go_on.clear()
        agent._worker.announce(Offer(Target(2, NEW.manifest.digest())))
        assert link.is_asked.wait(60)
        with pytest.raises(OverloadedError, match="nothing was done"):
            agent._worker.roll_back(0.05)
        assert np.array_equal(agent.infer(INPUTS).output, WANTED[1])
        link.may_go_on.set()
        eventually(agent._worker._asked.empty)
        assert version_of(agent) == 2
        agent.roll_back()
        assert version_of(agent) == 1
