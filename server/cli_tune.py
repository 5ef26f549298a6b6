"""The command `quantfleet-server tune`: looks after a model, and has Flower run a generation when one is due.

What came of it goes to stdout, events go to stderr. Exit codes: 0 done, 1 refused or failed, 2 wrong usage.
"""

# ruff: noqa: PLC0415  # `--help` must not wait for what tuning needs

import json
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantization.errors import QuantFleetError, RoundFailedError
from server.cli_errors import exit_codes
from server.cli_options import (
    AsJson,
    DefaultHome,
    Home,
    Offline,
    Passphrase,
    RegistryUrl,
    expanded,
    local_actor,
)

if TYPE_CHECKING:
    from server.tuner_settings import TunerSettings
    from server.tuning_daemon import Looked, Tuner
    from server.tuning_places import Places
    from server.tuning_runs import TuningRun
    from server.tuning_situation import Facts

_EXIT_FAILED = 1


def tune(
    *,
    home: Home = DefaultHome,
    superlink: Annotated[
        str, typer.Option(metavar="NAME", help="The SuperLink, as your Flower configuration names it.")
    ] = "",
    superlink_address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The SuperLink, by its address.")
    ] = "",
    superlink_certificates: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", callback=expanded, help="CA of the SuperLink's certificate, with its address."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", callback=expanded, help="Settings. (default: HOME/tuner.toml, if it is there)"
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="NAME", help="The model to look after. (default: the only one there is)")
    ] = "",
    once: Annotated[bool, typer.Option("--once", help="Run one generation, and end.")] = False,
    now: Annotated[
        bool, typer.Option("--now", help="Ask the tuner that is at work for a generation, and end.")
    ] = False,
    every: Annotated[
        float | None, typer.Option(metavar="HOURS", min=0, help="Hours between runs; 0 for no schedule.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="How long --once may take.")
    ] = 21600.0,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for the audit.")] = "",
    offline: Offline = None,
    passphrase: Passphrase = None,
    registry_url: RegistryUrl = None,
    blob_folder: Annotated[
        str | None, typer.Option(metavar="URL", help="The blob store. (default: the home folder's)")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Publish without signatures, for `serve --insecure`.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Have Flower run a generation whenever one is due: devices drift, a schedule says so, or an operator asks."""
    from server.serve_settings import ServeSettings
    from server.tuner_settings import read_settings
    from server.tuning_places import Places, opened_facts

    with exit_codes():
        server = ServeSettings.read(
            home, None, is_insecure=insecure, registry_url=registry_url, blob_folder=blob_folder
        )
        settings = read_settings(home, config).every_hours(every).of_model(model)
        places = Places(server, offline, passphrase)
        with opened_facts(places) as facts:
            if now:
                _request(facts, settings, reason, as_json=as_json)
                return
            _tune(
                facts,
                places,
                settings,
                (superlink, superlink_address, superlink_certificates),
                reason=reason,
                once_seconds=timeout if once else None,
                as_json=as_json,
            )


def _tune(
    facts: "Facts",
    places: "Places",
    settings: "TunerSettings",
    superlink: tuple[str, str, Path | None],
    *,
    reason: str,
    once_seconds: float | None,
    as_json: bool,
) -> None:
    from server.app import configure_logs
    from server.flower_runs import SuperLink
    from server.tuning_places import opened_tuner

    configure_logs()
    ended = _ended_by_signal()
    with opened_tuner(facts, places, SuperLink(*superlink), settings) as tuner:
        if once_seconds is None:
            typer.echo(json.dumps({"model": tuner.model, "tuner": tuner.holder}))
            sys.stdout.flush()
            _look_on(tuner, settings, ended)
            return
        result = _run_once(tuner, facts, settings, ended, reason=reason, seconds=once_seconds)
    _print(result, as_json=as_json)
    if not result["is_completed"]:
        raise typer.Exit(_EXIT_FAILED)


def _look_on(tuner: "Tuner", settings: "TunerSettings", ended: threading.Event) -> None:
    """Look until a signal comes; what goes wrong is logged, and looked at again."""
    while not ended.is_set():
        _look(tuner)
        ended.wait(settings.pace.look_seconds)


def _look(tuner: "Tuner") -> "Looked | None":
    """Return what a look found; None where the registry could not be used, which is logged and passes."""
    import structlog
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return tuner.look()
    except (QuantFleetError, SQLAlchemyError) as error:
        lines = str(getattr(error, "orig", None) or error).splitlines()
        reason = lines[0][:500] if lines else ""
        structlog.get_logger().error("look_failed", error=type(error).__name__, reason=reason)
        return None


def _run_once(
    tuner: "Tuner",
    facts: "Facts",
    settings: "TunerSettings",
    ended: threading.Event,
    *,
    reason: str,
    seconds: float,
) -> dict[str, Any]:
    """Ask for a generation, look until it is there, and return what came of it."""
    from server.tuning_result import result_of

    request = facts.tuning.request(tuner.model, actor=local_actor(), reason=reason)
    deadline, hold = time.monotonic() + seconds, ""
    while not ended.is_set():
        looked = tuner.look()
        if looked.hold != hold and _is_worth_saying(looked):
            typer.echo(f"waiting: {looked.hold}", err=True)
        hold, run = looked.hold, looked.run
        waits = any(one.number == request.number for one in facts.tuning.waiting_requests(tuner.model))
        if run is not None and not waits and _is_over(facts, tuner.model, run, settings):
            if looked.is_ours:
                tuner.publish_waiting()  # the run may have ended after this look's turn for that
            return result_of(facts, tuner.model, run)
        if time.monotonic() > deadline:
            raise RoundFailedError(
                f"no generation within {seconds:g} s ({hold or 'a run is at work'}); the request stays, and the next "
                "tuner goes on"
            )
        ended.wait(settings.pace.look_seconds)
    raise typer.Exit(_EXIT_FAILED)


def _is_worth_saying(looked: "Looked") -> bool:
    """Return whether somebody who waits should know why: nothing is at work."""
    return bool(looked.hold) and (looked.run is None or not looked.run.is_open)


def _is_over(facts: "Facts", model: str, run: "TuningRun", settings: "TunerSettings") -> bool:
    """Return whether no other run follows this one of itself."""
    from server.tuning_situation import situation
    from server.tuning_triggers import is_given_up

    if run.is_unfinished:
        return is_given_up(situation(facts, model), settings.triggers)
    return not run.is_open


def _request(facts: "Facts", settings: "TunerSettings", reason: str, *, as_json: bool) -> None:
    from server.tuning_places import only_model

    name = settings.model or only_model(facts)
    request = facts.tuning.request(name, actor=local_actor(), reason=reason)
    holder = facts.tuning.lease_holder(name)
    if as_json:
        typer.echo(json.dumps({"request": request.number, "model": name, "tuner": holder or None}))
    else:
        typer.echo(
            f"request {request.number} for '{name}'" + (f" waits for tuner {holder}" if holder else "")
        )
    if not holder:
        typer.echo("no tuner looks after this model now; start one with quantfleet-server tune", err=True)


def _print(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    run = result["run"]
    typer.echo(
        f"run {run['run_id'] or run['key']}: {run['state']}"
        + (f" ({run['detail']})" if run["detail"] else "")
    )
    for one in result["generations"]:
        served = "" if one["version"] is None else f", version {one['version']} {one['phase']}"
        typer.echo(
            f"{one['device_class']}: generation {one['number']} {one['step']}{served}: {one['reason']}"
        )


def _ended_by_signal() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    return ended
