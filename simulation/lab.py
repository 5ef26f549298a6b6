"""The lab of a simulated task: registers its model, calibrated on lab data, as generation 0."""

from collections.abc import Callable
from pathlib import Path

from flwr.app import Context

from quantization.calibration import method_from_name
from quantization.device_class import DeviceClass
from quantization.errors import ConfigurationError
from server.blob_store import BlobStore
from server.lab import PreparedModel, prepare_model
from server.registry import Registry
from server.settings import ServerSettings
from simulation.device import scenario_of
from simulation.fleet import class_named
from simulation.tasks import load_task
from simulation.tasks.task import TaskData

ProgressFunction = Callable[[int, int], None]


def prepare_task(
    task: TaskData,
    device_classes: tuple[DeviceClass, ...],
    range_method: str,
    registry: Registry,
    blobs: BlobStore,
    *,
    name: str = "",
    on_progress: ProgressFunction | None = None,
) -> PreparedModel:
    """Return the task's model, calibrated on its lab rows and published as generation 0.

    Args:
        task: Model and data.
        device_classes: Each gets a policy of its own.
        range_method: As `calibration.method_from_name` reads it.
        registry: Gets the facts.
        blobs: Gets the content.
        name: Of the model in the registry; the task's own by default.
        on_progress: Told how many of how many lab rows were measured.
    """
    return prepare_model(
        task.model,
        task.to_input(task.lab_x),
        name=name or task.name,
        device_classes=device_classes,
        range_method=method_from_name(range_method),
        registry=registry,
        blobs=blobs,
        on_progress=on_progress,
    )


def bootstrap(context: Context, registry: Registry, blobs: BlobStore) -> None:
    """Prepare the task that a run configuration names: the model source "simulated"."""
    scenario = scenario_of(context.run_config)
    if scenario.task is None:
        raise ConfigurationError("a Flower run simulates a built-in task; set task in the run configuration")
    task = load_task(scenario.task, scenario.seed, scenario.cache_dir and Path(scenario.cache_dir))
    classes = tuple(class_named(name) for name in dict.fromkeys(scenario.device_classes))
    name = ServerSettings.from_run_config(context.run_config).model_name
    prepare_task(task, classes, scenario.range_method, registry, blobs, name=name)
