"""What an owner sees of a device, and what the model answers: the values of the Python API, in-process and remote."""

from dataclasses import asdict, dataclass
from typing import Any

from client.garbage import used_bytes
from client.sessions import Float32Array
from client.slots import Slots, Target
from client.state import StateFolder


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What the model said to one batch.

    Attributes:
        output: The model's first output, float32: a row for each input.
        version: Of the target that answered; 0 if it came without one.
        generation: Number of the policy that answered.
        sample_id: Number of the first input, by which `label` names it; those that follow have the next numbers.
    """

    output: Float32Array
    version: int
    generation: int
    sample_id: int


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """How a device is doing.

    Attributes:
        device: Its name; empty if it has none.
        device_class: Name of its class.
        model_digest: SHA-256 of its model, hex; empty while it has none and waits for any.
        phase: Where it stands with the target that it was last told to install.
        serving: What serves; None before the first.
        fallback: What is there to go back to; None if there is nothing.
        refused_version: Of the last target that was refused; 0 before the first.
        generation: Number of the policy that serves; 0 also where nothing does.
        is_running: Whether an agent runs; what follows is 0 where none does.
        is_connected: Whether the update service answers.
        samples: Inputs that were answered since the agent started.
        failures: Inputs that should have been answered and were not, since then.
        spooled_reports: Reports that wait for the server.
        store_bytes: That blobs take on the disk.
        last_error: What the agent last failed at, in words; empty if nothing fails.
        rss_bytes: Resident memory of the agent's process; 0 where unknown.
        uptime_seconds: Since the agent started.
    """

    device: str
    device_class: str
    model_digest: str
    phase: str
    serving: Target | None
    fallback: Target | None
    refused_version: int
    generation: int
    is_running: bool = False
    is_connected: bool = False
    samples: int = 0
    failures: int = 0
    spooled_reports: int = 0
    store_bytes: int = 0
    last_error: str = ""
    rss_bytes: int = 0
    uptime_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return every field, as JSON has them."""
        return asdict(self)


def fallback_of(slots: Slots) -> Target | None:
    """Return what a device would go back to; None where there is nothing."""
    return (
        slots.active if slots.candidate is not None and slots.serving == slots.candidate else slots.fallback
    )


def read_status(state: StateFolder, device: str = "", device_class: str = "", **more: Any) -> DeviceStatus:  # noqa: ANN401
    """Return what a state folder says of its device.

    Args:
        state: The folder, as owner or guest.
        device: Name of the device.
        device_class: Of the device, where it has no artifact that says so.
        more: Further fields.

    Raises:
        MalformedError: If the slots are damaged.
    """
    slots = state.slots()
    manifest = state.read_manifest(slots.serving) if slots.serving is not None else None
    return DeviceStatus(
        device=device,
        device_class=manifest.device_class if manifest else device_class,
        model_digest=manifest.model_digest if manifest else "",
        phase=str(slots.phase),
        serving=slots.serving,
        fallback=fallback_of(slots),
        refused_version=slots.refused_version,
        generation=manifest.generation if manifest else 0,
        store_bytes=used_bytes(state),
        **more,
    )
