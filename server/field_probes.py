"""What a cohort's probes measured, as a blob, and the gains that they tell."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, fields

import numpy as np

from quantization.arrays import AnyArray
from quantization.errors import MalformedError
from quantization.npz_content import pack_arrays, unpack_arrays
from quantization.sensitivity import Gain, ProbeResult, estimate_gain
from server.precision import LayerLatency
from strategies.precision_messages import ProbeReply

_REPLY_FIELDS = len(fields(ProbeReply))

Replies = Mapping[str, ProbeReply]
"""What each device measured of one probe, by the device's name."""


@dataclass(frozen=True, slots=True)
class FieldProbes:
    """Replies to the probes of a model's layers, and how long layers take on the class of device.

    Attributes:
        losses: By layer: the exact loss of the weights that were probed.
        replies: By layer.
        latencies: By layer; empty where nobody measured.
    """

    losses: Mapping[str, float]
    replies: Mapping[str, Replies]
    latencies: Mapping[str, LayerLatency] = field(default_factory=dict)

    def gains(self) -> dict[str, Gain]:
        """Return the gain of every layer that some device probed."""
        found = {}
        for name, of_layer in self.replies.items():
            results = [
                ProbeResult(device, self.losses[name], reply.divergence_sum, reply.count)
                for device, reply in of_layer.items()
                if reply.count and self.losses[name] > 0
            ]
            if results:
                found[name] = estimate_gain(results)
        return found

    def to_bytes(self) -> bytes:
        """Return the blob."""
        arrays: dict[str, AnyArray] = {
            f"loss/{n}": np.array(loss, np.float64) for n, loss in self.losses.items()
        }
        for name, of_layer in self.replies.items():
            arrays[f"device/{name}"] = np.array(list(of_layer), np.str_)
            table = [astuple(reply) for reply in of_layer.values()]
            arrays[f"reply/{name}"] = np.array(table, np.int64).reshape(len(table), _REPLY_FIELDS)
        for name, latency in self.latencies.items():
            arrays[f"latency/{name}"] = np.array(astuple(latency), np.float64)
        return pack_arrays(arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> "FieldProbes":
        """Return what `to_bytes` wrote.

        Raises:
            MalformedError: The bytes are something else.
        """
        groups = unpack_arrays(data)
        try:
            replies = {
                name: {
                    str(device): ProbeReply(*row)
                    for device, row in zip(groups["device"][name], table.tolist(), strict=True)
                }
                for name, table in groups.get("reply", {}).items()
            }
        except (KeyError, TypeError, ValueError) as error:
            raise MalformedError(f"not a blob of probes: {error}") from error
        return cls(
            {name: float(loss) for name, loss in groups.get("loss", {}).items()},
            replies,
            {name: LayerLatency(*array.tolist()) for name, array in groups.get("latency", {}).items()},
        )


@dataclass(frozen=True, slots=True)
class Measured:
    """What a cohort measured of one model beside the reference.

    Attributes:
        loss: Divergence per input, nats at temperature 4: median of means over the devices.
        drop: Points of accuracy that it loses: by labels where there are enough of them, else half of the inputs on
            which it chooses another class.
        inputs: Behind them.
    """

    loss: float
    drop: float
    inputs: int


ENOUGH_LABELS = 300
"""Labelled inputs from which hits say how much accuracy is lost."""

_LOST_SHARE = 0.5  # of the inputs on which two models disagree, at most so many are lost by one of them


def measured(replies: Replies) -> Measured | None:
    """Return what the replies to one probe say; None where no device had inputs."""
    usable = {device: reply for device, reply in replies.items() if reply.count}
    if not usable:
        return None
    results = [ProbeResult(d, 1.0, reply.divergence_sum, reply.count) for d, reply in usable.items()]
    inputs = sum(reply.count for reply in usable.values())
    labelled = sum(reply.labelled for reply in usable.values())
    if labelled >= ENOUGH_LABELS:
        lost = sum(reply.reference_hits - reply.probe_hits for reply in usable.values()) / labelled
    else:
        lost = _LOST_SHARE * sum(reply.disagreements for reply in usable.values()) / inputs
    return Measured(estimate_gain(results).value, 100 * lost, inputs)
