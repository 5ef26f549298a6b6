"""Statistics of a cohort: channel moments first, then histograms under candidate corrections.

Each round asks for what the one before made meaningful: corrections follow from the moments, and ranges
belong to the corrected model. Replies are decoded, checked and added to a few vectors as they arrive.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from flwr.app import Message, RecordDict

from quantization.histogram import DyadicHistogram
from quantization.moments import ChannelMoments
from strategies.histogram_sum import HistogramSum
from strategies.messages import DeviceHello, MomentsRequest, RangesRequest
from strategies.moment_sum import MomentSum
from strategies.records import (
    CALIBRATE,
    PLAIN_MOMENTS,
    SEQUENTIAL_MOMENTS,
    encode_moments_request,
    encode_ranges_request,
    read_histograms,
    read_moments,
    read_sample_count,
)
from strategies.rounds import RoundContext, RoundOutcome, messages_to

Request = TypeVar("Request", MomentsRequest, RangesRequest)


@dataclass(frozen=True, slots=True)
class MomentsResult:
    """Merged moments of a cohort.

    Attributes:
        plain: By layer, of the model as it is.
        sequential: By layer, with all layers before it normalised.
        sample_count: Samples behind them.
    """

    plain: Mapping[str, ChannelMoments]
    sequential: Mapping[str, ChannelMoments]
    sample_count: int


@dataclass(frozen=True, slots=True)
class RangesResult:
    """Merged histograms of a cohort, under the candidate's corrections.

    Attributes:
        histograms: By site.
        plain: Moments by layer, which say how far the corrected model is from the lab's.
        sample_count: Samples behind them.
    """

    histograms: Mapping[str, DyadicHistogram]
    plain: Mapping[str, ChannelMoments]
    sample_count: int


def calibrate_moments(
    context: RoundContext, cohort: Sequence[DeviceHello], request: MomentsRequest
) -> RoundOutcome[MomentsResult]:
    """Return the merged channel moments of the cohort.

    Args:
        context: Where the round runs.
        cohort: The devices to ask.
        request: What to ask.

    Raises:
        RoundFailedError: If fewer than the quorum answered.
    """
    fold = MomentsFold(request)
    messages = _messages(context, cohort, request, encode_moments_request)
    return context.run("moments", messages, MomentsFold.add, fold).with_value(fold.result())


def calibrate_ranges(
    context: RoundContext, cohort: Sequence[DeviceHello], request: RangesRequest
) -> RoundOutcome[RangesResult]:
    """Return the merged histograms of the cohort, and its moments with the candidate's corrections and weights.

    Arguments and errors are those of `calibrate_moments`.
    """
    fold = RangesFold(request)
    messages = _messages(context, cohort, request, encode_ranges_request)
    return context.run("ranges", messages, RangesFold.add, fold).with_value(fold.result())


def messages_by_manifest(
    cohort: Iterable[DeviceHello], encode: Callable[[str], RecordDict], message_type: str
) -> Iterator[Message]:
    """Yield one message per device, with one content object for all that hold the same manifest.

    Args:
        cohort: The devices to ask.
        encode: The content for devices that hold the manifest of this digest.
        message_type: Of the messages.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for device in cohort:
        groups[device.manifest_digest].append(device.node_id)
    for digest, node_ids in groups.items():
        yield from messages_to(node_ids, encode(digest), message_type)


def _messages(
    context: RoundContext,
    cohort: Sequence[DeviceHello],
    request: Request,
    encode: Callable[[Request], RecordDict],
) -> Iterator[Message]:
    def content(digest: str) -> RecordDict:
        return encode(replace(request, artifact=context.artifact_for(digest, request.artifact)))

    return messages_by_manifest(cohort, content, CALIBRATE)


class MomentsFold:
    """The sum of moments replies."""

    def __init__(self, request: MomentsRequest) -> None:
        self._layers = request.layers
        self._plain, self._sequential = MomentSum(request.layers), MomentSum(request.layers)
        self._sample_count = 0

    def add(self, reply: Message) -> "MomentsFold":
        """Add one reply, or refuse it with MalformedError and stay as it was."""
        samples = read_sample_count(reply.content)
        plain = read_moments(reply.content, PLAIN_MOMENTS, self._layers)
        sequential = read_moments(reply.content, SEQUENTIAL_MOMENTS, self._layers)
        reaches = self._plain.check(plain), self._sequential.check(sequential)
        self._plain.add(plain, reaches[0])
        self._sequential.add(sequential, reaches[1])
        self._sample_count += samples
        return self

    def result(self) -> MomentsResult:
        """Return the merged moments."""
        return MomentsResult(self._plain.result(), self._sequential.result(), self._sample_count)


class RangesFold:
    """The sum of ranges replies."""

    def __init__(self, request: RangesRequest) -> None:
        self._request = request
        self._histograms, self._plain = HistogramSum(request.sites), MomentSum(request.layers)
        self._sample_count = 0

    def add(self, reply: Message) -> "RangesFold":
        """Add one reply, or refuse it with MalformedError and stay as it was."""
        samples = read_sample_count(reply.content)
        plain = read_moments(reply.content, PLAIN_MOMENTS, self._request.layers)
        reach = self._plain.check(plain)
        histograms = self._histograms.check(read_histograms(reply.content, self._request.sites))
        self._plain.add(plain, reach)
        self._histograms.add(histograms)
        self._sample_count += samples
        return self

    def result(self) -> RangesResult:
        """Return the merged histograms and moments."""
        return RangesResult(self._histograms.result(), self._plain.result(), self._sample_count)
