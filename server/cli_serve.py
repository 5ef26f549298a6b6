"""The commands `quantfleet-server serve` and `quantfleet-server prepare`, which work on the server's folder."""

# ruff: noqa: PLC0415  # `--help` must not wait for torch and gRPC

import asyncio
import contextlib
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli_common import Insecure, print_json, stdout_console, table_of
from server.cli_errors import exit_codes
from server.cli_options import AsJson, DefaultHome, Home, RegistryUrl, expanded

if TYPE_CHECKING:
    from server.lab_models import PreparedClass
    from server.serve_settings import ServeSettings

Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.toml",
        callback=expanded,
        help="Settings. (default: server.toml in --home, if it is there)",
    ),
]
BlobFolder = Annotated[
    str | None,
    typer.Option("--blob-folder", metavar="URL", help="Where content lies. (default: blobs in --home)"),
]


def serve(
    *,
    home: Home = DefaultHome,
    config: Config = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="For devices and operators. (default: 127.0.0.1:9443)"),
    ] = None,
    enrolment_address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="For devices that enrol; '' for none. (default: 127.0.0.1:9444)"
        ),
    ] = None,
    metrics_address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="For Prometheus; '' for none. (default: 127.0.0.1:9464)"),
    ] = None,
    registry_url: RegistryUrl = None,
    blob_folder: BlobFolder = None,
    insecure: Insecure = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Log what happens, not only what goes wrong.")
    ] = False,
) -> None:
    """Serve devices and operators until told to stop; prints one line of JSON when it is ready."""
    with exit_codes():
        from server.logs import configure_logs
        from server.serve_settings import ServeSettings

        configure_logs(is_verbose=verbose)
        settings = ServeSettings.read(
            home,
            config,
            is_insecure=insecure,
            address=address,
            enrolment_address=enrolment_address,
            metrics_address=metrics_address,
            registry_url=registry_url,
            blob_folder=blob_folder,
        )
        asyncio.run(_serve(settings))


async def _serve(settings: "ServeSettings") -> None:
    """Serve until a signal comes."""
    from server.serve import Addresses, serve

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def tell(addresses: Addresses) -> None:
        sys.stdout.write(json.dumps(addresses.to_json()) + "\n")
        sys.stdout.flush()

    await serve(settings, stop=stop, on_ready=tell)


def prepare(
    *,
    model: Annotated[
        Path, typer.Option(metavar="FILE.onnx", callback=expanded, help="Float32 model with a dynamic batch.")
    ],
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE.npz",
            callback=expanded,
            help="Inputs of the lab: array x, rows as the model takes them.",
        ),
    ],
    device_class: Annotated[
        list[str], typer.Option(metavar="C", help="Kind of hardware; repeat for several.")
    ],
    name: Annotated[str, typer.Option(help="What to call it. (default: the file's name)")] = "",
    range_method: Annotated[str, typer.Option(metavar="M", help="How ranges are chosen.")] = "mse",
    max_weight_bits: Annotated[
        int | None, typer.Option(min=2, max=8, help="Of classes that are new. (default: 8, and 7 for x86)")
    ] = None,
    size_budget_bytes: Annotated[
        int | None, typer.Option(min=1, help="Most that an artifact may take, of classes that are new.")
    ] = None,
    home: Home = DefaultHome,
    config: Config = None,
    registry_url: RegistryUrl = None,
    blob_folder: BlobFolder = None,
    as_json: AsJson = False,
) -> None:
    """Calibrate a float model in the lab, and store what each class runs first; publish that next."""
    with exit_codes():
        from server.lab_models import ClassOptions, prepare_file
        from server.logs import configure_logs
        from server.serve_settings import ServeSettings

        configure_logs(is_verbose=False)
        settings = ServeSettings.read(home, config, registry_url=registry_url, blob_folder=blob_folder)
        with contextlib.redirect_stdout(sys.stderr):
            prepared = prepare_file(
                model,
                data,
                name=name or model.stem,
                device_classes=device_class,
                options=ClassOptions(max_weight_bits, size_budget_bytes),
                range_method=range_method,
                settings=settings,
            )
        _print_prepared(prepared, as_json=as_json)


def _print_prepared(prepared: "tuple[PreparedClass, ...]", *, as_json: bool) -> None:
    if as_json:
        print_json([one.to_json() for one in prepared])
        return
    heads = ("model", "class", "generation", "size", "manifest")
    rows = [
        (
            one.model_name,
            one.device_class,
            str(one.generation),
            f"{one.size_bytes:,} bytes",
            one.manifest_digest,
        )
        for one in prepared
    ]
    stdout_console().print(table_of(heads, rows))
    for digest in dict.fromkeys(one.model_digest for one in prepared):
        typer.echo(f"model digest: {digest}")
    typer.echo("next, of each class that devices have:", err=True)
    for one in prepared:
        typer.echo(f"  quantfleet-server publish {one.manifest_digest}", err=True)
        where = f"--device-class {one.device_class} --model-digest {one.model_digest}"
        typer.echo(f"  quantfleet-client run --state DIR {where}", err=True)
