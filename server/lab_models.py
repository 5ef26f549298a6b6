"""Bringing a model: an ONNX file and inputs of the lab become generation 0 of some device classes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import MAGIC_PREFIX

from quantization.arrays import AnyArray, FloatArray
from quantization.calibration import method_from_name
from quantization.device_class import ARM, X86, X86_VNNI, DeviceClass
from quantization.errors import (
    ConfigurationError,
    InvalidDataError,
    MalformedError,
    NotFoundError,
    UnsupportedModelError,
)
from quantization.npz_content import read_arrays
from server.blob_store import BlobStore
from server.lab import prepare_model
from server.registry import Registry
from server.serve_settings import ServeSettings

MAX_MODEL_BYTES = 1 << 30
MAX_INPUT_BYTES = 4 << 30
"""Most that the lab's inputs may take, unpacked."""

_KNOWN = {known.name: known for known in (X86_VNNI, X86, ARM)}


@dataclass(frozen=True, slots=True)
class ClassOptions:
    """What is said of device classes that the registry does not know; None leaves the default.

    Attributes:
        max_weight_bits: As in `DeviceClass`.
        size_budget_bytes: Likewise.
    """

    max_weight_bits: int | None = None
    size_budget_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class PreparedClass:
    """What one class can be given.

    Attributes:
        model_name: What the model is called.
        model_digest: SHA-256 of the canonical float model, hex.
        device_class: Name of the class.
        generation: Number of the generation: 0, the lab's.
        manifest_digest: What to publish.
        size_bytes: Stored bytes of the artifact.
    """

    model_name: str
    model_digest: str
    device_class: str
    generation: int
    manifest_digest: str
    size_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def prepare_file(
    model: Path,
    data: Path,
    *,
    name: str,
    device_classes: Sequence[str],
    options: ClassOptions,
    range_method: str,
    settings: ServeSettings,
) -> tuple[PreparedClass, ...]:
    """Return what each class can be given, once it is stored; done twice, it changes nothing.

    Args:
        model: Float32 ONNX file.
        data: npz file whose array `x` has the lab's inputs, or npy file of them.
        name: What operators call the model.
        device_classes: Names; the registry's, the known ones', or new.
        options: Of those that are new.
        range_method: As `calibration.method_from_name` reads it.
        settings: Say where registry and content are.

    Raises:
        UnsupportedModelError: The model cannot be read or quantized.
        InvalidDataError: The inputs cannot be read, or do not fit the model.
        ConfigurationError: A class or the range method is none, or something cannot be opened.
    """
    content, inputs = _read_model(model), read_inputs(data)
    method = method_from_name(range_method)
    with Registry.open(settings.registry_place) as registry:
        classes = [_class_named(wanted, options, registry) for wanted in dict.fromkeys(device_classes)]
        try:
            prepared = prepare_model(
                content,
                inputs,
                name=name,
                device_classes=classes,
                registry=registry,
                blobs=BlobStore(settings.blob_place),
                range_method=method,
            )
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{model}: {error}") from error
        except InvalidDataError as error:
            raise InvalidDataError(f"{data}: {error}") from error
    return tuple(
        PreparedClass(
            prepared.model.name,
            prepared.model.digest,
            generation.device_class,
            generation.number,
            generation.manifest_digest,
            generation.size_bytes,
        )
        for generation in prepared.generations.values()
    )


def read_inputs(path: Path) -> FloatArray:
    """Return the lab's inputs as float32, without unpickling anything.

    Raises:
        InvalidDataError: The file cannot be read, has no array `x`, or holds no numbers.
    """
    try:
        with path.open("rb") as file:
            is_one_array = file.read(len(MAGIC_PREFIX)) == MAGIC_PREFIX
            file.seek(0)
            if is_one_array:
                return _numbers(path, np.load(file, allow_pickle=False))
            return _numbers(path, read_arrays(file, MAX_INPUT_BYTES, ["x"])["x"])
    except (OSError, ValueError, EOFError, MalformedError) as error:
        raise InvalidDataError(
            f"inputs {path} cannot be read ({error}); save them with numpy.savez(x=...)"
        ) from error


def _numbers(path: Path, array: AnyArray) -> FloatArray:
    if array.dtype.kind not in "biuf":
        raise InvalidDataError(
            f"inputs {path} must be numbers, and are of type {array.dtype}; save them as float32"
        )
    if array.ndim == 0:
        raise InvalidDataError(f"inputs {path} must be rows, and are one number")
    return np.ascontiguousarray(array, np.float32)


def _read_model(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise UnsupportedModelError(f"model {path} is larger than {MAX_MODEL_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise UnsupportedModelError(
            f"model {path} cannot be read ({error.strerror}); check --model"
        ) from error


def _class_named(name: str, options: ClassOptions, registry: Registry) -> DeviceClass:
    """Return the class as the registry has it, as it is known, or as the options say."""
    said = {key: value for key, value in asdict(options).items() if value is not None}
    try:
        registered = registry.device_class(name)
    except NotFoundError:
        known = _KNOWN.get(name, DeviceClass(name))
        return DeviceClass(**{**asdict(known), **said})
    different = {key: value for key, value in said.items() if getattr(registered, key) != value}
    if different:
        key, value = next(iter(different.items()))
        raise ConfigurationError(
            f"device class '{name}' is registered with {key} {getattr(registered, key)}, not {value}; choose another "
            "name"
        )
    return registered
