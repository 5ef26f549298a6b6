"""Hypothesis strategies for the statistics that travel, and fleets whose answers are functions."""

from collections.abc import Callable

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantization.histogram import DyadicHistogram
from quantization.moments import ChannelMoments, ChannelReference
from quantization.side_by_side import AssessmentCounts, count_outputs, of_device

finite_values = hnp.arrays(
    np.float32,
    st.integers(0, 60),
    elements=st.one_of(
        st.floats(-8, 8, width=32), st.sampled_from([0.0, 1e-38, -3e38, 3e38, float("nan"), float("inf")])
    ),
)


@st.composite
def histograms(draw: st.DrawFn) -> DyadicHistogram:
    values = draw(finite_values)
    weights = None
    if draw(st.booleans()):
        weights = draw(hnp.arrays(np.float64, values.size, elements=st.floats(0.01, 40)))
    return DyadicHistogram.from_values(values, weights)


@st.composite
def device_moments(draw: st.DrawFn, channels: int = 3) -> ChannelMoments:
    """One device's contribution to one layer."""
    count = draw(st.integers(0, 10_000))
    if count == 0:
        return ChannelMoments.empty(channels)
    reference = ChannelReference(np.zeros(channels), np.ones(channels), 100)
    mean = draw(hnp.arrays(np.float64, channels, elements=st.floats(-50, 50)))
    variance = draw(hnp.arrays(np.float64, channels, elements=st.floats(0, 50)))
    return ChannelMoments.from_batch(mean, variance, count, reference).as_device()


@st.composite
def device_counts(draw: st.DrawFn, classes: int = 4) -> AssessmentCounts:
    """One device's contribution to an assessment."""
    samples = draw(st.integers(0, 12))
    if samples == 0:
        return AssessmentCounts.empty(devices=1, failures=draw(st.integers(0, 1)))
    scores = st.one_of(st.floats(-9, 9), st.just(float("nan")))
    outputs = [draw(hnp.arrays(np.float64, (samples, classes), elements=scores)) for _ in range(3)]
    labels = draw(st.none() | hnp.arrays(np.int64, samples, elements=st.integers(-1, classes - 1)))
    return of_device(count_outputs(*outputs, labels, candidate_seconds=draw(st.floats(0, 9))))


def app_that(action: str, answer: Callable[[int, RecordDict], RecordDict]) -> ClientApp:
    """Return a ClientApp whose reply is a function of the node's position in the fleet and of the request."""
    app = ClientApp()

    @app.query(action)
    def handle(message: Message, context: Context) -> Message:
        position = int(context.node_config["partition-id"])
        return Message(answer(position, message.content), reply_to=message)

    return app
