"""The agent as a process of its own: from options to a device that serves until it is told to end."""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from client.connection import ServiceChoice
from client.events import event_log, log_to_stderr
from client.memory import keep_memory_small
from client.owned_device import SOCKET, OwnedDevice
from client.settings import DeviceSettings
from protos.quantfleet.v1.telemetry_pb2 import InstallAttempt

if TYPE_CHECKING:
    from client.metrics import OwnMetrics

_events = event_log("run")

CONFIG = "client.toml"
"""Settings in the state folder, for whoever names no other file."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command was told; what is None is left to the file or its default.

    Attributes:
        state: The state folder.
        config: Settings in TOML.
        device_class: Name of the device's class.
        model_digest: SHA-256 of the model that a device without one asks for.
        threads: Of one inference.
        address: Of the update service; empty for what the identity says.
        is_insecure: Whether to go without certificates.
        device: The device's name, where there are none.
        is_offline: Whether to go without a server.
        socket: Where to serve.
        metrics_address: Where to serve metrics; None for nowhere.
        log_level: Least severe event that is logged.
        is_log_json: Whether events are JSON.
    """

    state: Path
    config: Path | None = None
    device_class: str | None = None
    model_digest: str | None = None
    threads: int | None = None
    address: str = ""
    is_insecure: bool = False
    device: str = ""
    is_offline: bool = False
    socket: Path | None = None
    metrics_address: str | None = None
    log_level: str = "info"
    is_log_json: bool = False

    def settings(self) -> DeviceSettings:
        """Return the settings that the file and the options make.

        Raises:
            ConfigurationError: If they cannot be used.
        """
        own = {"device_class": self.device_class, "model_digest": self.model_digest, "threads": self.threads}
        path = self.config or self.state / CONFIG
        if self.config is None and not path.exists():
            return DeviceSettings.from_tables({}, f"{path} (which is not there)", **own)
        return DeviceSettings.from_toml(path, **own)


def run_agent(options: RunOptions, say: Callable[[str], object]) -> None:
    """Run the agent until SIGTERM or SIGINT.

    Args:
        options: What the command was told.
        say: Is handed one line of JSON when the device serves.

    Raises:
        QuantFleetError: If it cannot start.
    """
    log_to_stderr(options.log_level, is_json=options.is_log_json)
    keep_memory_small()
    settings = options.settings()
    service = None
    if not options.is_offline:
        service = ServiceChoice(options.address, options.device, options.is_insecure)
    with ExitStack() as stack, _ending() as is_ending:
        metrics = None if options.metrics_address is None else _make_metrics()
        device = stack.enter_context(
            OwnedDevice.open(
                options.state,
                settings=settings,
                service=service,
                is_offline=options.is_offline,
                socket=options.socket or options.state / SOCKET,
                on_attempt=_ignore if metrics is None else metrics.count,
            )
        )
        metrics_address = None
        if metrics is not None and options.metrics_address is not None:
            metrics_address = stack.enter_context(metrics.serving(device.agent, options.metrics_address))
        ready = {
            "device": device.status().device,
            "socket": str(device.socket),
            "metrics_address": metrics_address,
        }
        say(json.dumps(ready))
        _events.info("agent_ready", **ready)
        is_ending.wait()
        _events.info("agent_stopping")


def _make_metrics() -> "OwnMetrics":
    # prometheus-client is for those who want it.
    from prometheus_client import disable_created_metrics  # noqa: PLC0415

    from client.metrics import OwnMetrics  # noqa: PLC0415

    disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the series, and say when the process began
    return OwnMetrics()


def _ignore(_attempt: InstallAttempt) -> None:
    pass


@contextmanager
def _ending() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set while the block runs."""
    event = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        event.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
