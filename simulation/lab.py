"""The lab of a simulated task: registers its model, calibrated on lab data, as generation 0."""

from collections.abc import Callable

from flwr.app import Context

from quantization.calibration import method_from_name
from quantization.device_class import DeviceClass
from quantization.errors import InvalidDataError, NotFoundError, UnsupportedModelError
from server.blob_store import BlobStore
from server.lab import PreparedModel, prepare_model
from server.registry import Registry
from simulation.device import load_described, scenario_of
from simulation.fleet import class_named
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

    Raises:
        UnsupportedModelError: The model cannot be quantized or run; names the files.
        InvalidDataError: The model gives no usable values on these rows; names the files.
    """
    try:
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
    except (InvalidDataError, UnsupportedModelError) as error:
        raise type(error)(f"{task.origin or task.name}: {error}") from error


def bootstrap(context: Context, registry: Registry, blobs: BlobStore) -> str:
    """Return the name of the model of the task that a run configuration describes: the model source "simulated".

    The lab calibrates the model for those of the device classes that it was not prepared for before.

    Raises:
        ConfigurationError: If the description is wrong.
    """
    scenario = scenario_of(context.run_config)
    name = f"{scenario.task}-seed{scenario.seed}"
    prepared = _prepared_classes(registry, name)
    missing = [wanted for wanted in dict.fromkeys(scenario.device_classes) if wanted not in prepared]
    if missing:
        classes = tuple(class_named(wanted) for wanted in missing)
        prepare_task(load_described(scenario), classes, scenario.range_method, registry, blobs, name=name)
    return name


def _prepared_classes(registry: Registry, name: str) -> frozenset[str]:
    try:
        digest = registry.model(name).digest
    except NotFoundError:
        return frozenset()
    return frozenset(device_class.name for device_class in registry.device_classes(digest))
