"""What a ServerApp does for the tuner that started it.

It says that it began, stops when it is no longer wanted, and says how it ended.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from quantization.errors import IllegalTransitionError, QuantFleetError
from server.tuning_registry import TuningRegistry
from server.tuning_runs import RunEvent


class Fence:
    """A run's place in the registry; every step asks whether it is still the run that should work."""

    def __init__(self, registry: TuningRegistry, key: str) -> None:
        self._registry = registry
        self._key = key

    def check(self) -> None:
        """Go on, or stop.

        Raises:
            IllegalTransitionError: The tuner has given this run up, and another one goes on with its work.
        """
        run = self._registry.run(self._key)
        if not run.is_open:
            raise IllegalTransitionError(
                f"the tuner has closed this run as '{run.state}' ({run.detail}); another one goes on"
            )


class NoFence:
    """Of a run that nobody but Flower has started."""

    def check(self) -> None:
        """Go on."""


def fenced(registry_url: str, key: str, run_id: int) -> AbstractContextManager[Fence | NoFence]:
    """Return the fence of a run; leaving it says how the run ended.

    Args:
        registry_url: The registry that the tuner shares.
        key: Of the run; empty where no tuner started it.
        run_id: Flower's id.

    Raises:
        NotFoundError: The registry has no run of that key: the tuner uses another registry.
        IllegalTransitionError: The tuner has given this run up before it began.
    """
    return _fenced(registry_url, key, run_id) if key else nullcontext(NoFence())


@contextmanager
def _fenced(registry_url: str, key: str, run_id: int) -> Iterator[Fence]:
    with TuningRegistry.open(registry_url) as registry:
        registry.move(registry.run(key), RunEvent.BEGAN, run_id=str(run_id))
        try:
            yield Fence(registry, key)
        except QuantFleetError as error:
            _end(registry, key, RunEvent.FAILED, str(error))
            raise
        _end(registry, key, RunEvent.COMPLETED, "")


def _end(registry: TuningRegistry, key: str, event: RunEvent, detail: str) -> None:
    """Close the run, unless the tuner has."""
    run = registry.run(key)
    if run.is_open:
        registry.move(run, event, detail=detail)
