"""Trained models on disk, so that a task trains once: `NAME-KEY.onnx` beside `NAME-KEY.onnx.sha256`.

An entry whose content is not what its digest promises is made again.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from quantization.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class ModelKey:
    """Everything that a trained model depends on.

    Attributes:
        task: Its name.
        recipe: Version of how it is built and trained; grows with every change.
        seed: Of splits and training.
        data_digest: SHA-256 of the data, as hex.
        variant: What else the caller chose.
    """

    task: str
    recipe: int
    seed: int
    data_digest: str
    variant: str = ""

    @property
    def file_name(self) -> str:
        """Name of the entry, without a folder."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{self.task}-{digest[:32]}.onnx"


def default_cache_dir() -> Path:
    """Return the user's folder for trained models."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "quantfleet" / "models"


def cached_model(cache_dir: Path | None, key: ModelKey, make: Callable[[], bytes]) -> bytes:
    """Return the model of a key: from the cache if it is there and whole, else made and kept.

    Args:
        cache_dir: Folder for entries; None for the user's, which is done without if it cannot be written.
        key: What is wanted.
        make: Trains it; called at most once.

    Raises:
        ConfigurationError: If a folder is given and cannot be written.
    """
    folder = cache_dir if cache_dir is not None else default_cache_dir()
    path = folder / key.file_name
    kept = _read(path)
    if kept is not None:
        return kept
    made = make()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, made)
        _write(_digest_path(path), f"{hashlib.sha256(made).hexdigest()}  {path.name}\n".encode())
    except OSError as error:
        if cache_dir is not None:
            raise ConfigurationError(
                f"cannot keep the trained model in {folder}: {error.strerror}; give another --cache-dir"
            ) from error
    return made


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _read(path: Path) -> bytes | None:
    """Return the content of an entry; None if it is not there or damaged."""
    try:
        content = path.read_bytes()
        promised = _digest_path(path).read_text("ascii").split()
    except (OSError, UnicodeDecodeError):
        return None
    return content if promised[:1] == [hashlib.sha256(content).hexdigest()] else None


def _write(path: Path, content: bytes) -> None:
    """Put a whole file in place, or none."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
