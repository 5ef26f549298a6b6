"""Probes of the reference model, dealt over a cohort: each device measures a few of them.

Which devices measure what depends on the order of their names alone (of their node ids, where they have none), so
that it is the same again when they have registered anew. Replies are kept apart by device, because gains are robust
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
        replies: By probe, then by device (`DeviceHello.key`, in the order of ranks); devices without samples are left
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
    fold = ProbesFold(dealt, cohort)
    outcome = context.run("probe", _messages(context, cohort, dealt), ProbesFold.add, fold)
    return outcome.with_value(fold.result(request))


def deal(
    cohort: Sequence[DeviceHello], request: ProbeRequest, devices_per_probe: int = DEVICES_PER_PROBE
) -> dict[int, ProbeRequest]:
    """Return by node what it is asked; nodes of one bundle share one request.

    There are as many bundles as leave each enough devices, and devices get them in turn, in the order of their ranks.
    """
    bundles = max(1, min(len(request.probes), len(cohort) // max(1, min(len(cohort), devices_per_probe))))
    requests = [replace(request, probes=request.probes[bundle::bundles]) for bundle in range(bundles)]
    ranked = sorted(cohort, key=lambda device: device.rank)
    return {device.node_id: requests[index % bundles] for index, device in enumerate(ranked)}


class ProbesFold:
    """The replies of a probe round, by device."""

    def __init__(self, requests: Mapping[int, ProbeRequest], cohort: Sequence[DeviceHello]) -> None:
        """Start from nothing.

        Args:
            requests: By node: what it was asked.
            cohort: Those that are asked.
        """
        self._requests = requests
        self._devices = {device.node_id: device for device in cohort}
        self._replies: dict[int, tuple[ProbeReply, ...]] = {}

    def add(self, reply: Message) -> "ProbesFold":
        """Add one reply, or refuse it with MalformedError and stay as it was."""
        node_id = reply.metadata.src_node_id
        probes = decode_probes(reply.content, self._requests[node_id])
        most = self._devices[node_id].sample_count
        if any(seen.count > most for seen in probes):
            raise MalformedError(f"probes of more samples than the {most} of the device")
        self._replies[node_id] = probes
        return self

    def result(self, request: ProbeRequest) -> ProbesResult:
        """Return what came, for all probes of a request."""
        replies: dict[str, dict[str, ProbeReply]] = {asked.name: {} for asked in request.probes}
        samples = 0
        replied = (self._devices[node_id] for node_id in self._replies)
        for device in sorted(replied, key=lambda device: device.rank):
            node_id, probes = device.node_id, self._replies[device.node_id]
            samples += max((seen.count for seen in probes), default=0)
            for asked, seen in zip(self._requests[node_id].probes, probes, strict=True):
                if seen.count:
                    replies[asked.name][device.key] = seen
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
