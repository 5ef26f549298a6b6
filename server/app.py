"""The ServerApp: one Flower run brings one generation, or as many as the run configuration says.

What the run configuration may hold is in `server.settings`. A model is in the registry already, or comes from a
model source: a function, found by name in the entry point group "quantfleet.models", that is handed Flower's context,
the registry and the blob store, prepares the model (`server.lab.prepare_model`) unless that was done, and returns its
name.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import entry_points

import structlog
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from quantization.errors import ConfigurationError, QuantFleetError
from server.blob_store import BlobStore
from server.registry import Registry
from server.settings import ServerSettings
from server.tuner import GenerationReport, run_generation
from server.tuning import RoundMoved, StepDone
from server.tuning_fence import fenced
from strategies.rounds import SYSTEM_CLOCK, Clock

MODEL_GROUP = "quantfleet.models"

ModelSource = Callable[[Context, Registry, BlobStore], str]
"""Sees to it that the registry has the model that the run configuration describes; returns the model's name."""

log = structlog.get_logger()

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Tune the model that the run configuration names, and log what comes of it.

    Raises:
        QuantFleetError: The run could not finish; it is logged, and Flower marks the run as failed.
    """
    configure_logs()
    try:
        run(grid, context)
    except QuantFleetError as error:
        log.error("run_failed", error=type(error).__name__, reason=str(error))  # noqa: TRY400  # one line, no trace
        raise


def run(grid: Grid, context: Context, *, clock: Clock = SYSTEM_CLOCK) -> tuple[GenerationReport, ...]:
    """Return the report of each generation that the run configuration asks for.

    Raises:
        QuantFleetError: See `server.tuner.run_generation`; or a setting cannot be used.
    """
    settings = ServerSettings.from_run_config(context.run_config)
    blobs = BlobStore(settings.blob_place)
    reports = []
    with Registry.open(settings.registry_place) as registry:
        log.info("run_started", run_id=context.run_id, registry=registry.place, blobs=settings.blob_place)
        with fenced(settings.registry_place, settings.tuning_run, context.run_id) as fence:

            def on_event(event: StepDone | RoundMoved) -> None:
                log_event(event)
                if isinstance(event, StepDone):
                    fence.check()

            settings = replace(settings, model_name=ensure_model(context, registry, blobs, settings))
            for _ in range(settings.generations):
                report = run_generation(grid, registry, blobs, settings, clock=clock, on_event=on_event)
                log_report(report)
                reports.append(report)
    return tuple(reports)


def ensure_model(context: Context, registry: Registry, blobs: BlobStore, settings: ServerSettings) -> str:
    """Return the name of the model to tune, once the registry has it.

    Raises:
        ConfigurationError: No source of that name is installed.
        NotFoundError: The registry lacks the model and no source is named, or the source did not bring it.
    """
    name = settings.model_name
    if settings.model_source:
        name = find_model_source(settings.model_source)(context, registry, blobs)
    model = registry.model(name)
    log.info("model_found", model=model.name, digest=model.digest, source=settings.model_source or "registry")
    return name


def find_model_source(name: str) -> ModelSource:
    """Return the installed model source of that name.

    Raises:
        ConfigurationError: There is none.
    """
    sources = {entry.name: entry for entry in entry_points(group=MODEL_GROUP)}
    if name not in sources:
        known = ", ".join(sorted(sources)) or "none"
        raise ConfigurationError(f"model-source '{name}' is not installed; installed are: {known}")
    source: ModelSource = sources[name].load()
    return source


def log_event(event: StepDone | RoundMoved) -> None:
    """Log a step of a generation, and the replies of rounds for those who look closely."""
    generation = event.generation
    subject = {
        "device_class": generation.device_class,
        "generation": generation.number,
        "step": generation.step,
    }
    if isinstance(event, StepDone):
        log.info("generation_advanced", **subject, reason=generation.reason)
    else:
        progress = event.progress
        log.debug("replies_folded", **subject, replied=progress.replied, asked=progress.asked)


def log_report(report: GenerationReport) -> None:
    """Log what a generation brought to each class."""
    for name, count in report.unprepared.items():
        log.warning("class_not_prepared", device_class=name, devices=count, model=report.model_digest)
    for generation in report.generations.values():
        log.info(
            "generation_closed",
            device_class=generation.device_class,
            generation=generation.number,
            step=generation.step,
            reason=generation.reason,
            clients=generation.clients,
            size_bytes=generation.size_bytes,
            update_bytes=generation.update_bytes,
        )


def configure_logs() -> None:
    """Send events to stderr, unless the process that runs the app has set up logging itself."""
    if not structlog.is_configured():
        structlog.configure(
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
            ],
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )
