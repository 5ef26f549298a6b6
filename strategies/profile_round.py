"""How long layers take on a cohort's hardware: the latency table of a device class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from flwr.app import Message

from strategies.calibration_round import messages_by_manifest
from strategies.messages import DeviceHello
from strategies.precision_messages import ProfileReply, ProfileRequest
from strategies.precision_records import decode_profile, encode_profile_request, with_artifact
from strategies.records import CALIBRATE
from strategies.rounds import RoundContext, RoundOutcome


@dataclass(frozen=True, slots=True)
class LayerLatency:
    """Kernel time of one layer at batch 1 on one thread: the median over devices of each one's mean.

    Attributes:
        integer_seconds: In the integer graph; None where no device found the layer in its profile.
        float_seconds: In the float graph, without reading the codes; None likewise.
        devices: Devices that measured it in integers.
    """

    integer_seconds: float | None
    float_seconds: float | None
    devices: int


def profile_latency(
    context: RoundContext, cohort: Sequence[DeviceHello], request: ProfileRequest
) -> RoundOutcome[Mapping[str, LayerLatency]]:
    """Return the latency of each of the request's layers on the cohort's devices.

    The median is what a minority of liars and of busy devices cannot move beyond what the others say.

    Raises:
        RoundFailedError: If fewer than the quorum answered.
    """
    content = encode_profile_request(request)
    messages = messages_by_manifest(
        cohort, lambda held: with_artifact(content, context.artifact_for(held, request.artifact)), CALIBRATE
    )

    def fold(replies: list[ProfileReply], reply: Message) -> list[ProfileReply]:
        return [*replies, decode_profile(reply.content, request)]

    initial: list[ProfileReply] = []
    outcome = context.run("profile", messages, fold, initial)
    return outcome.with_value(
        {name: _latency(outcome.value, index) for index, name in enumerate(request.layers)}
    )


def _latency(replies: Sequence[ProfileReply], layer: int) -> LayerLatency:
    integer = [_seconds(reply.integer_ns[layer], reply.integer_runs[layer]) for reply in replies]
    floats = [_seconds(reply.float_ns[layer], reply.float_runs[layer]) for reply in replies]
    known, known_float = ([value for value in values if value is not None] for values in (integer, floats))
    return LayerLatency(
        median(known) if known else None, median(known_float) if known_float else None, len(known)
    )


def _seconds(nanoseconds: int, runs: int) -> float | None:
    return nanoseconds / runs / 1e9 if runs else None
