"""A device in this process: its state folder, its connection, its agent and, where it is wanted, its socket."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from client.agent import Agent
from client.connection import Connection, ServiceChoice, connect
from client.device_status import Answer, DeviceStatus
from client.disk import Disk
from client.inference_service import InferenceServer
from client.renewal import renewal_chore
from client.settings import DeviceSettings
from client.slots import Target
from client.state import StateFolder
from client.update_worker import Chore
from protos.quantfleet.v1.telemetry_pb2 import InstallAttempt
from quantization.arrays import AnyArray
from quantization.errors import NotFoundError

SOCKET = "inference.sock"
"""Name of the default socket in a state folder."""


class OwnedDevice:
    """A device whose agent runs in this process; safe to call from many threads. Use it as a context manager.

    Attributes:
        agent: What does the work.
    """

    def __init__(self, agent: Agent, server: InferenceServer | None) -> None:
        """Use an agent that was started; `open` makes one."""
        self.agent = agent
        self._server = server

    @classmethod
    def open(
        cls,
        state: Path | str,
        *,
        settings: DeviceSettings | None = None,
        service: ServiceChoice | None = None,
        is_offline: bool = False,
        socket: Path | str | None = None,
        on_attempt: Callable[[InstallAttempt], object] = lambda _: None,
        disk: Disk = Disk(),  # noqa: B008  # has no state
        **options: Any,  # noqa: ANN401
    ) -> Self:
        """Return the device of a state folder, serving and keeping itself up to date.

        Args:
            state: The state folder, which this process owns from now on.
            settings: What the agent is told; made of `options` if None.
            service: Which server; what the device was enrolled with if None.
            is_offline: Whether it goes without a server.
            socket: Where other processes of the device reach it; None for nowhere.
            on_attempt: Is told how attempts to install a target end.
            disk: Does whatever changes the folder.
            options: Fields of `DeviceSettings`, such as `device_class`; those in `settings` otherwise.

        Raises:
            ConfigurationError: If the folder cannot be used or has another owner, the identity is not there, or the
                socket cannot be made.
        """
        settings = settings or DeviceSettings.from_tables({}, "options", **options)
        folder = StateFolder(state, disk=disk)
        closing = ExitStack()
        with closing:
            closing.callback(folder.close)
            connection, chores = _connection(
                folder, settings, None if is_offline else service or ServiceChoice()
            )
            if connection is not None:
                closing.callback(connection.close)
            name = "" if connection is None else connection.device
            agent = Agent(folder, settings, connection, device=name, chores=chores, on_attempt=on_attempt)
            closing.pop_all()
            closing.callback(agent.close)
            server = None if socket is None else InferenceServer(agent, Path(socket), settings.local)
            agent.start()
            closing.pop_all()
        return cls(agent, server)

    @property
    def socket(self) -> Path | None:
        """Where other processes of the device reach it; None for nowhere."""
        return None if self._server is None else self._server.path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop, with what was counted and sampled on the disk."""
        if self._server is not None:
            self._server.close()
        self.agent.close()

    def infer(self, x: AnyArray) -> Answer:
        """Return what the model says to a batch.

        Args:
            x: Shape (n, ...), the model's own input units.

        Raises:
            InvalidDataError: If the input is not what the model takes, or not finite.
            NotFoundError: If the device has no model yet.
        """
        return self.agent.infer(x)

    def label(self, sample_id: int, class_index: int) -> bool:
        """Tell the true class of an input that was answered lately; return whether the model had said so.

        Raises:
            NotFoundError: If the input was answered too long ago, or has its label already.
        """
        return self.agent.label(sample_id, class_index)

    def status(self) -> DeviceStatus:
        """Return how the device is doing."""
        return self.agent.status()

    def roll_back(self) -> Target:
        """Go back to the model that served before; return what serves now.

        Raises:
            IllegalTransitionError: If there is nothing to go back to.
            QuantFleetError: If it cannot be done; what serves stays.
        """
        self.agent.roll_back()
        serving = self.agent.status().serving
        if serving is None:
            raise NotFoundError("nothing serves")
        return serving


def _connection(
    state: StateFolder, settings: DeviceSettings, service: ServiceChoice | None
) -> tuple[Connection | None, tuple[Chore, ...]]:
    """Return the connection to a server, and what must be done to keep it; nothing for a device on its own."""
    if service is None:
        return None, ()
    connection = connect(state, service, settings.device_class, settings.model_digest)
    return connection, () if service.is_insecure else (renewal_chore(state, connection),)
