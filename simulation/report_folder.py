"""The folder of a report: which files are ours, and how they are replaced.

Rules:

1. Only files of ours are replaced or removed; another program's file of the same name is refused, before the
   run starts.
2. A file is written beside its name and renamed: a reader sees the old one or the new one.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from quantization.errors import ConfigurationError

MARK = "quantfleet-sim"
"""In the head of every page and picture of ours."""

PAGE_NAME = "report.html"
RESULT_NAME = "result.json"
PLOT_NAMES = (
    "accuracy",
    "drift",
    "ranges",
    "sizes",
    "bits",
    "front",
    "layers",
    "prediction",
)

ReportFiles = Mapping[str, bytes]
"""Names of the files that a command writes, and what one of ours holds, by which it is known."""

REPORT: ReportFiles = {
    PAGE_NAME: MARK.encode(),
    RESULT_NAME: b'"federated_equals_pooled"',
    **{f"{name}.png": MARK.encode() for name in PLOT_NAMES},
}
"""Of `quantfleet-sim run`."""

STUDIES: Mapping[str, ReportFiles] = {
    name: {
        f"{name}.html": MARK.encode(),
        f"{name}.json": b'"fp32_weight_bytes"',
        f"{name}.png": MARK.encode(),
    }
    for name in ("pareto", "sensitivity")
}
"""Of `quantfleet-sim pareto` and `quantfleet-sim sensitivity`, by command."""

_MARK_WITHIN_BYTES = 1 << 20


def prepare_folder(folder: Path, ours: ReportFiles = REPORT) -> None:
    """Make the folder, and make sure that every file of a report can be written there.

    Args:
        folder: Made if absent.
        ours: The files of the report.

    Raises:
        ConfigurationError: It cannot be made or written to, or holds another program's file of our name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for name, mark in ours.items():
            _require_ours(folder / name, mark)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write to {folder}: {error.strerror}; give --out a folder that you may write to"
        ) from error


def write_files(folder: Path, files: Mapping[str, bytes], ours: ReportFiles = REPORT) -> None:
    """Write files of a report, and remove those of an earlier one that this one lacks.

    Args:
        folder: As `prepare_folder` left it.
        files: Content by name.
        ours: All files that such a report may have.

    Raises:
        ConfigurationError: A file cannot be written; those written before it stay.
    """
    try:
        for name, content in files.items():
            _write_atomically(folder / name, content)
        for name in ours.keys() - files.keys():
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write the report to {folder}: {error.strerror}; free the space, or give another --out"
        ) from error


def _require_ours(path: Path, mark: bytes) -> None:
    if not path.exists():
        return
    if path.is_file():
        with path.open("rb") as stream:
            if mark in stream.read(_MARK_WITHIN_BYTES):
                return
    raise ConfigurationError(f"{path} was not written by quantfleet-sim; move it, or give another --out")


def _write_atomically(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    unfinished = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.chmod(0o666 & ~_umask())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _umask() -> int:
    """Return the process's mask of permissions; reading it takes setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
