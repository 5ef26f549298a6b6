"""One round of federated training: devices fine-tune a state on their own inputs, and their movements are averaged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message

from quantization.training_update import TrainingUpdate
from strategies.messages import DeviceHello
from strategies.rounds import RoundContext, RoundOutcome, messages_to
from strategies.training_messages import TrainRequest
from strategies.training_records import CAN_TRAIN, TRAIN, decode_update, encode_train_request


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a round of training brought.

    Attributes:
        update: Sums of all movements, and the loss of the state that the round started from.
        samples: Rows that were trained on, each device's at most its greatest weight.
    """

    update: TrainingUpdate
    samples: int


def can_train(device: DeviceHello) -> bool:
    """Return whether the device has inputs and what training needs."""
    return CAN_TRAIN in device.capabilities and device.sample_count > 0


def train(
    context: RoundContext, cohort: Sequence[DeviceHello], request: TrainRequest
) -> RoundOutcome[TrainingResult]:
    """Return the summed movements of the cohort's devices that can train.

    Args:
        context: Where the round runs.
        cohort: The devices to ask; those that cannot train are left out.
        request: What to ask.

    Raises:
        RoundFailedError: If fewer than the quorum answered, or no device can train.
    """
    able = {device.node_id: device.sample_count for device in cohort if can_train(device)}
    fold = TrainingFold(request, able)
    messages = messages_to(able, encode_train_request(request), TRAIN)
    return context.run("train", messages, TrainingFold.add, fold).with_value(fold.result())


class TrainingFold:
    """The sum of training replies."""

    def __init__(self, request: TrainRequest, sample_counts: Mapping[int, int]) -> None:
        """Start with nothing.

        Args:
            request: What was asked.
            sample_counts: By node id: how many inputs a device said it has; it counts as no more.
        """
        self._request = request
        self._sample_counts = sample_counts
        self._sum = TrainingUpdate.empty(request.layers)

    def add(self, reply: Message) -> "TrainingFold":
        """Add one reply, or refuse it with MalformedError and stay as it was."""
        most = min(self._request.max_weight, self._sample_counts.get(reply.metadata.src_node_id, 0))
        update = decode_update(reply.content, self._request.layers, most)
        self._sum = self._sum.merge(update)
        return self

    def result(self) -> TrainingResult:
        """Return the sums."""
        return TrainingResult(self._sum, self._sum.weight)
