import numpy as np
import pytest

from client.precision_answers import compare
from quantization.errors import MalformedError
from quantization.sensitivity import tempered_divergence
from strategies.precision_messages import DIVERGENCE_STEPS

RNG = np.random.default_rng(0)


def test_equal_logits_cost_nothing() -> None:
    logits = RNG.normal(size=(5, 4)).astype(np.float32)
    reply = compare(logits, logits, None)
    assert (reply.divergence_steps, reply.count, reply.disagreements, reply.labelled) == (0, 5, 0, 0)


def test_hits_are_counted_where_the_label_is_known() -> None:
    reference, probe = np.eye(3), np.eye(3)[[0, 2, 1]]
    reply = compare(reference, probe, np.array([0, 1, -1]))
    assert (reply.disagreements, reply.labelled, reply.reference_hits, reply.probe_hits) == (2, 2, 2, 1)


def test_positions_of_an_output_are_averaged() -> None:
    reference, probe = RNG.normal(size=(2, 3, 4, 6, 5))
    reply = compare(reference, probe, np.zeros(3, np.int64))
    rows = [np.moveaxis(logits, 1, -1).reshape(-1, 4) for logits in (reference, probe)]
    assert reply.divergence_sum == pytest.approx(tempered_divergence(*rows) / 30, abs=1 / DIVERGENCE_STEPS)
    assert (reply.count, reply.disagreements, reply.labelled) == (3, 3, 0)


@pytest.mark.parametrize("broken", [np.full((2, 3), np.nan), np.full((2, 3), np.inf), np.zeros((2, 4))])
def test_logits_that_are_not_finite_or_do_not_match_are_refused(broken: np.ndarray) -> None:
    with pytest.raises(MalformedError):
        compare(np.zeros((2, 3)), broken, None)
