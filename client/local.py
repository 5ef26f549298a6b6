"""What a command does with a device whose agent may or may not run."""

from pathlib import Path

from client.api import RemoteModel
from client.device_status import DeviceStatus, read_status
from client.folder_lock import Access
from client.owned_device import SOCKET
from client.slots import Target
from client.state import StateFolder
from client.transport import NoService
from client.updater import Updater, UpdateSettings
from quantization.errors import ConfigurationError, NotFoundError, UnreachableError

_TIMEOUT_SECONDS = 60.0


def device_status(folder: Path, socket: Path | None = None) -> DeviceStatus:
    """Return how a device is doing: from its agent, else from its state folder.

    Args:
        folder: The state folder.
        socket: Of the agent; None for the default one.

    Raises:
        ConfigurationError: If there is no such folder.
        MalformedError: If what it holds is damaged.
    """
    _require(folder)
    try:
        with RemoteModel(socket or folder / SOCKET, timeout_seconds=_TIMEOUT_SECONDS) as agent:
            return agent.status()
    except UnreachableError:
        if socket is not None:
            raise
    with StateFolder(folder, Access.GUEST) as state, state.lock.owning() as is_alone:
        if is_alone:
            return read_status(state)
        silence = f"an agent runs, and does not answer on {socket or folder / SOCKET}; give its --socket"
        return read_status(state, is_running=True, last_error=silence)


def roll_back(folder: Path, socket: Path | None = None) -> Target:
    """Have a device go back to what served before; return what serves now.

    Args:
        folder: The state folder.
        socket: Of the agent; None for the default one.

    Raises:
        IllegalTransitionError: If there is nothing to go back to.
        ConfigurationError: If there is no such folder, or an agent runs that the socket does not reach.
        QuantFleetError: If it cannot be done; what serves stays.
    """
    _require(folder)
    try:
        with RemoteModel(socket or folder / SOCKET, timeout_seconds=_TIMEOUT_SECONDS) as agent:
            return agent.roll_back()
    except UnreachableError:
        if socket is not None:
            raise
    with StateFolder(folder) as state:
        manifest = state.read_manifest()
        if manifest is None:
            raise NotFoundError(f"nothing is installed in {folder}")
        updater = Updater(state, NoService(), UpdateSettings(manifest.device_class, manifest.model_digest))
        try:
            updater.roll_back()
        finally:
            updater.close()
        serving = state.slots().serving
    if serving is None:
        raise NotFoundError(f"nothing is installed in {folder}")
    return serving


def _require(folder: Path) -> None:
    if not (folder / "blobs").is_dir():
        raise ConfigurationError(
            f"{folder} is no state folder of a device; give the one that its agent runs on"
        )
