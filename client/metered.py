"""Whether the network is paid by the byte now: as the owner says, or as a command of the owner's tells."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from client.events import event_log
from quantization.errors import ConfigurationError

_events = event_log("network")
_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """When the network is paid by the byte.

    Attributes:
        metered: Whether it always is.
        metered_command: Tells: a program and its arguments, which exits with 0 while the network is metered and 1 while
            it is not. Empty for none.
        remember_seconds: How long its answer holds.
    """

    metered: bool = False
    metered_command: tuple[str, ...] = ()
    remember_seconds: float = 60.0

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        if self.metered and self.metered_command:
            raise ConfigurationError(
                "metered is true, so metered_command would never be asked; leave one of them out"
            )
        if self.remember_seconds < 0:
            raise ConfigurationError(f"remember_seconds is 0 or more, not {self.remember_seconds}")


class MeteredNetwork:
    """Says whether the network is metered; for one thread."""

    def __init__(self, settings: NetworkSettings, clock: Callable[[], float] = time.monotonic) -> None:
        """Ask as the settings say; `clock` counts seconds and never goes back."""
        self._settings, self._clock = settings, clock
        self._answer, self._holds_until = settings.metered, float("-inf")

    def __call__(self) -> bool:
        """Return whether the network is metered; if the command does not tell, it is."""
        if self._settings.metered_command and self._clock() >= self._holds_until:
            self._answer = self._ask()
            self._holds_until = self._clock() + self._settings.remember_seconds
        return self._answer

    def _ask(self) -> bool:
        try:
            done = subprocess.run(  # noqa: S603  # the owner's own command
                self._settings.metered_command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_TIMEOUT_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            _events.warning("metered_command_failed", error=str(error))
            return True
        if done.returncode not in (0, 1):
            _events.warning("metered_command_failed", exit_code=done.returncode)
        return done.returncode != 1
