"""Probes of the reference model, dealt over a cohort: each device measures a few of them.

Which devices measure what depends on their node ids alone. Replies are kept apart by device, because gains are robust
estimates over devices (`quantization.sensitivity`), not sums; there are a few numbers per probe and device.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from flwr.app import Message

from quantization.errors import MalformedError
from strategies.messages import DeviceHello
from strategies.precision_messages import ProbeReply, ProbeRequest
from strategies.precision_records import decode_probes, encode_probe_request, with_artifact
from strategies.records import PROBE
from strategies.rounds import RoundContext, RoundOutcome, messages_to

DEVICES_PER_PROBE = 12
"""Devices that measure each probe, at least, where the cohort has so many."""


@dataclass(frozen=True, slots=True)
class ProbesResult:
    """What a cohort measured.

    Attributes:
        replies: By probe, then by device (its node id as text, in the order of ids); devices without samples are left
            out. Every probe is there, with or without a reply.
        sample_count: Samples of all devices together.
    """

    replies: Mapping[str, Mapping[str, ProbeReply]]
    sample_count: int


def probe(
    context: RoundContext,
    cohort: Sequence[DeviceHello],
    request: ProbeRequest,
    *,
    devices_per_probe: int = DEVICES_PER_PROBE,
) -> RoundOutcome[ProbesResult]:
    """Return what the cohort measured of the request's probes.

    Args:
        context: Where the round runs.
        cohort: The devices to ask; none may count more samples than it said it has.
        request: All probes; each device gets some of them.
        devices_per_probe: Devices that measure each probe, at least, where there are so many.

    Raises:
        RoundFailedError: If fewer than the quorum answered.
    """
    dealt = deal(cohort, request, devices_per_probe)
    fold = ProbesFold(dealt, {device.node_id: device.sample_count for device in cohort})
    outcome = context.run(_messages(context, cohort, dealt), ProbesFold.add, fold)
    return outcome.with_value(fold.result(request))


def deal(
    cohort: Sequence[DeviceHello], request: ProbeRequest, devices_per_probe: int = DEVICES_PER_PROBE
) -> dict[int, ProbeRequest]:
    """Return by node what it is asked; nodes of one bundle share one request.

    There are as many bundles as leave each enough devices, and devices get them in turn, in the order of their ids.
    """
    bundles = max(1, min(len(request.probes), len(cohort) // max(1, min(len(cohort), devices_per_probe))))
    requests = [replace(request, probes=request.probes[bundle::bundles]) for bundle in range(bundles)]
    node_ids = sorted(device.node_id for device in cohort)
    return {node_id: requests[index % bundles] for index, node_id in enumerate(node_ids)}


class ProbesFold:
    """The replies of a probe round, by device."""

    def __init__(self, requests: Mapping[int, ProbeRequest], samples: Mapping[int, int]) -> None:
        """Start from nothing.

        Args:
            requests: By node: what it was asked.
            samples: By node: how many it has.
        """
        self._requests = requests
        self._samples = samples
        self._replies: dict[int, tuple[ProbeReply, ...]] = {}

    def add(self, reply: Message) -> "ProbesFold":
        """Add one reply, or refuse it with MalformedError and stay as it was."""
        node_id = reply.metadata.src_node_id
        probes = decode_probes(reply.content, self._requests[node_id])
        if any(seen.count > self._samples[node_id] for seen in probes):
            raise MalformedError(f"probes of more samples than the {self._samples[node_id]} of the device")
        self._replies[node_id] = probes
        return self

    def result(self, request: ProbeRequest) -> ProbesResult:
        """Return what came, for all probes of a request."""
        replies: dict[str, dict[str, ProbeReply]] = {asked.name: {} for asked in request.probes}
        samples = 0
        for node_id, probes in sorted(self._replies.items()):
            samples += max((seen.count for seen in probes), default=0)
            for asked, seen in zip(self._requests[node_id].probes, probes, strict=True):
                if seen.count:
                    replies[asked.name][str(node_id)] = seen
        return ProbesResult(replies, samples)


def _messages(
    context: RoundContext, cohort: Sequence[DeviceHello], dealt: Mapping[int, ProbeRequest]
) -> Iterator[Message]:
    """Yield one message per device, with one content object per bundle and manifest that is held."""
    groups: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for device in cohort:
        groups[id(dealt[device.node_id])][device.manifest_digest].append(device.node_id)
    for by_manifest in groups.values():
        request = dealt[next(iter(by_manifest.values()))[0]]
        content = encode_probe_request(request)
        for held, node_ids in by_manifest.items():
            artifact = context.artifact_for(held, request.artifact)
            yield from messages_to(node_ids, with_artifact(content, artifact), PROBE)
