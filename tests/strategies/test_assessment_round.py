import numpy as np
from flwr.app import RecordDict
from statistics_strategies import app_that

from quantization.side_by_side import AssessmentCounts, count_outputs, of_device
from simulation.grid import InProcessGrid
from strategies.assessment_round import assess
from strategies.messages import AssessRequest, Delivery, DeviceHello
from strategies.records import decode_assess_request, encode_assessment
from strategies.rounds import RoundContext


def _counts(position: int) -> AssessmentCounts:
    rng = np.random.default_rng(position)
    current, candidate, reference = rng.normal(size=(3, 8, 4))
    return of_device(count_outputs(current, candidate, reference, rng.integers(-1, 4, 8)))


def _context(grid: InProcessGrid) -> RoundContext:
    return RoundContext(grid, clock=grid.clock)


def _cohort(grid: InProcessGrid) -> tuple[DeviceHello, ...]:
    return tuple(DeviceHello(node_id, "arm", 0, "", 8, True) for node_id in grid.get_node_ids())


def test_counts_of_the_cohort_are_added() -> None:
    grid = InProcessGrid(app_that("assess", lambda position, _: encode_assessment(_counts(position))), 7)
    request = AssessRequest(Delivery(b"now"), Delivery(b"next"))
    outcome = assess(_context(grid), _cohort(grid), request)
    expected = AssessmentCounts.empty()
    for position in range(7):
        expected = expected.merge(_counts(position))
    assert outcome.value == expected
    assert outcome.value.devices == 7


def test_a_device_cannot_speak_for_many_nor_about_another_model() -> None:
    def answer(position: int, _: RecordDict) -> RecordDict:
        if position == 1:
            return encode_assessment(_counts(0).merge(_counts(1)))
        if position == 2:
            return encode_assessment(of_device(count_outputs(*np.zeros((3, 1, 9)))))
        return encode_assessment(_counts(position))

    grid = InProcessGrid(app_that("assess", answer), 8)
    outcome = assess(
        _context(grid),
        _cohort(grid),
        AssessRequest(Delivery(b"now"), Delivery(b"next")),
    )
    assert outcome.failed == {"malformed": 2}
    assert outcome.value.devices == 6


def test_current_and_candidate_are_delivered_apart() -> None:
    seen = []

    def answer(position: int, content: RecordDict) -> RecordDict:
        request = decode_assess_request(content)
        seen.append((request.artifact.manifest, request.candidate.manifest))
        return encode_assessment(_counts(position))

    grid = InProcessGrid(app_that("assess", answer), 2)
    request = AssessRequest(Delivery(b"now"), Delivery(b"next"))
    assess(_context(grid), _cohort(grid), request)
    assess(
        _context(grid),
        _cohort(grid),
        request,
        deliver_candidate=lambda held: Delivery(b"x" + held.encode()),
    )
    assert set(seen) == {(b"now", b"next"), (b"now", b"x")}
