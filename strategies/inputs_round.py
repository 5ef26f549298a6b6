"""Second moments of layers' inputs, summed over a cohort.

Sums are integers, so the same in any order. A reply is checked as a whole before any of it is added: what was asked
for, sums that some columns can have, and, where the lab's energies are known, not far more energy than there. What is
refused changes nothing; the outcome names the device, the layer and the reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message

from quantization.errors import IncompatibleStatsError, MalformedError
from quantization.input_observation import distinct
from quantization.second_moments import SecondMoments
from strategies.calibration_round import messages_by_manifest
from strategies.messages import DeviceHello
from strategies.precision_messages import InputsRequest
from strategies.precision_records import decode_inputs, encode_inputs_request, with_artifact
from strategies.records import CALIBRATE
from strategies.rounds import RoundContext, RoundOutcome

ENERGY_LIMIT = 4.0
"""Mean square of a device's inputs, over the lab's, up to which it is taken for a device like others."""


@dataclass(frozen=True, slots=True)
class InputsResult:
    """Merged second moments of a cohort.

    Attributes:
        moments: By layer; layers that read the same tensor the same way share theirs.
        sample_count: Samples behind them.
    """

    moments: Mapping[str, SecondMoments]
    sample_count: int


def gather_inputs(
    context: RoundContext,
    cohort: Sequence[DeviceHello],
    request: InputsRequest,
    *,
    energies: Mapping[str, float] | None = None,
    energy_limit: float = ENERGY_LIMIT,
) -> RoundOutcome[InputsResult]:
    """Return the merged second moments of the cohort.

    Args:
        context: Where the round runs.
        cohort: The devices to ask; none may contribute more samples than it said it has.
        request: What to ask.
        energies: By layer: `SecondMoments.energy` of the lab's; None to take any.
        energy_limit: Greatest ratio of a device's energy to the lab's, per layer.

    Raises:
        RoundFailedError: If fewer than the quorum answered.
    """
    content = encode_inputs_request(request)
    messages = messages_by_manifest(
        cohort, lambda held: with_artifact(content, context.artifact_for(held, request.artifact)), CALIBRATE
    )
    fold = InputsFold(
        request, {device.node_id: device.sample_count for device in cohort}, energies, energy_limit
    )
    outcome = context.run("inputs", messages, InputsFold.add, fold)
    return outcome.with_value(fold.result())


class InputsFold:
    """The sum of inputs replies; as large as one of them, twice while one is added."""

    def __init__(
        self,
        request: InputsRequest,
        samples: Mapping[int, int],
        energies: Mapping[str, float] | None,
        energy_limit: float = ENERGY_LIMIT,
    ) -> None:
        """Start from nothing.

        Args:
            request: That is answered.
            samples: By node: how many it has.
            energies: By layer, of the lab.
            energy_limit: See `gather_inputs`.
        """
        self._request = request
        self._samples = samples
        self._energies = energies or {}
        self._limit = energy_limit
        self._sources = distinct(request.layers)
        self._sums = [layer.empty(with_cross=request.with_cross) for layer in self._sources]
        self._sample_count = 0

    def add(self, reply: Message) -> "InputsFold":
        """Add one reply, or refuse it with MalformedError and stay as it was."""
        moments, samples = decode_inputs(reply.content, self._request)
        most = self._samples.get(reply.metadata.src_node_id, 0) * (1 + self._request.recipe.copies)
        if samples > most:
            raise MalformedError(f"moments of {samples} samples from a device with {most}")
        self._sums = [
            self._added(layer.name, total, seen)
            for layer, total, seen in zip(self._sources, self._sums, moments, strict=True)
        ]
        self._sample_count += samples
        return self

    def result(self) -> InputsResult:
        """Return the merged moments."""
        by_source = {layer.source: total for layer, total in zip(self._sources, self._sums, strict=True)}
        moments = {layer.name: by_source[layer.source] for layer in self._request.layers}
        return InputsResult(moments, self._sample_count)

    def _added(self, layer: str, total: SecondMoments, seen: SecondMoments) -> SecondMoments:
        try:
            if layer in self._energies:
                seen.check_plausible(self._energies[layer], self._limit)
            return total.merge(seen)
        except (MalformedError, IncompatibleStatsError) as error:
            raise MalformedError(f"layer {layer!r}: {error}") from error
